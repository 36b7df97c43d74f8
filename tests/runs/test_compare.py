"""`ftml-bench compare`: statistics against counts by hand."""

from dataclasses import replace

import pytest

from ftml_bench import cli
from ftml_bench.report import comparing
from ftml_bench.report.comparing import change, least_p
from tests.runs.made import DEFINITION, edit, write_all


@pytest.mark.parametrize(
    ("differences", "p"),
    [
        ([-1.0], 1.0),  # both signs are as far
        ([-1.0, -2.0, -3.0], 2 / 8),
        ([-1.0, -2.0, 3.0], 1.0),  # a sum of 0: every flip is as far
        ([-1.0, -1.0, -4.0, 1.0], 8 / 16),  # sums of at least 5: where two of the 1s or all go with the 4, 4 of 8 ways
        ([-1.0] * 6, 2 / 64),
        ([0.0, 0.0], 1.0),
        ([0.1, 0.2, 0.3], 2 / 8),
    ],
)
def test_the_sign_flip_test_by_hand(differences, p):
    assert change(differences).p == p


def test_the_interval_of_two_seeds_by_hand():
    """Resamples of (0, 1) have the means 0, 1/2, 1/2, 1, so that its 2.5 % and 97.5 % are 0 and 1."""
    found = change([0.0, 1.0])
    assert (found.mean, found.low, found.high, found.seeds) == (0.5, 0.0, 1.0, 2)
    one = change([2.0])
    assert (one.low, one.high) == (2.0, 2.0)


def test_the_interval_is_as_wide_as_the_means_scatter():
    """Of 20 differences the mean has the standard error 0.5 / sqrt(20); 1.96 of them on both sides."""
    found = change([0.0, 1.0] * 10)
    width = 2 * 1.96 * 0.5 / 20**0.5
    assert found.high - found.low == pytest.approx(width, rel=0.1)
    assert found.p < 0.01  # of more than 16, drawn: 10 ones of one sign are 2 in 1024


@pytest.mark.parametrize(
    ("differences", "verdict"),
    [
        ([-1.0, -1.1, -1.2, -1.0, -0.9, -1.0], "better"),
        ([1.0, 1.1, 1.2, 1.0, 0.9, 1.0], "worse"),
        ([-1.0, -1.1, -1.2, -1.0, -0.9, 1.0], "not decided"),
        ([-1.0, -1.1, -1.2], "not decided"),  # three seeds decide nothing
        ([0.0, 0.0, 0.0], "no change"),
    ],
)
def test_verdicts(differences, verdict):
    assert change(differences).verdict == verdict


def test_the_least_p_by_hand():
    assert [least_p(n) for n in (1, 2, 3, 5, 6)] == [1, 0.5, 0.25, 0.0625, 0.03125]
    assert comparing._enough() == 6


def board(tmp_path, name, shift=0.0, seeds=range(6)):
    return write_all(tmp_path / name, shift, definition=replace(DEFINITION, seeds=tuple(seeds)))


def rows(table):
    return {(row[0], row[1]): row[2:] for row in table.rows}


def test_a_row_that_got_better_by_hand(tmp_path):
    old, new = board(tmp_path, "old"), board(tmp_path, "new", -0.25)
    results, versions = comparing.tables(old, new)
    found = rows(results)
    # FTML: every loss 0.25 lower. At 10 points 0.65 + 0.01 a cell, below 0.8: 10 datapoints in place of 20.
    assert found["FTML", "datapoints to γ"] == ["-10.0", "-10.0 to -10.0", "0.031", "6", "better"]
    assert found["FTML", "loss at 20"] == ["-0.250", "-0.250 to -0.250", "0.031", "6", "better"]
    assert found["FromScratch", "loss at 20"] == ["+0.000", "+0.000 to +0.000", "1.000", "6", "no change"]
    assert "6 of 12 cells of NEW have the curve of OLD, bit for bit." in versions.notes
    assert {row[3] for row in versions.rows} == {"the same"}
    assert rows(comparing.tables(new, old)[0])["FTML", "loss at 20"][-1] == "worse"


def test_three_seeds_can_decide_nothing_and_that_is_said(tmp_path, capsys):
    old, new = board(tmp_path, "old", seeds=range(3)), board(tmp_path, "new", -0.25, seeds=range(3))
    assert cli.main(["compare", str(old), str(new)]) == 0
    out = capsys.readouterr().out
    assert "With 3 seeds p is at least 0.25: nothing can be decided at 0.05. It takes 6 seeds, all of one sign." in out
    assert "better" not in out.split("* Over")[0]


def test_only_seeds_that_both_have_are_paired(tmp_path):
    old, new = board(tmp_path, "old", seeds=[0, 1, 7]), board(tmp_path, "new", seeds=[0, 1, 2, 3])
    found = rows(comparing.tables(old, new)[0])
    assert found["FTML", "loss at 20"][3] == "2"
    other = board(tmp_path, "other", seeds=[9])
    assert rows(comparing.tables(old, other)[0])["FTML", "loss at 20"][-1] == "no seed that both have finished"


def test_other_versions_and_settings_are_said(tmp_path):
    old, new = board(tmp_path, "old"), tmp_path / "new"
    spec = replace(DEFINITION.benchmarks[0], steps=6)
    write_all(new, definition=replace(DEFINITION, seeds=tuple(range(6)), benchmarks=(spec,)))
    for file in new.rglob("record.json"):
        edit(file, device="cuda")
    results, versions = comparing.tables(old, new)
    assert rows(results)["FTML", "loss at 20"][-1] == "no change (other settings)"
    assert ["device", "cpu", "cuda", "other"] in versions.rows


def test_what_cannot_be_compared_is_refused(tmp_path, capsys):
    old, new = board(tmp_path, "old"), tmp_path / "new"
    spec = replace(DEFINITION.benchmarks[0], settings={"rounds": 4})
    write_all(new, definition=replace(DEFINITION, benchmarks=(spec,)))
    for arguments in ([str(old), str(new)], [str(old), str(tmp_path)], [str(old)]):
        assert cli.main(["compare", *arguments]) == 2
        assert capsys.readouterr().err.count("\n") == 1
