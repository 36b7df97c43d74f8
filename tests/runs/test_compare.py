"""`ftml-bench compare`."""

import json
import math
import re
import shutil

import pytest

from ftml_bench import cli
from ftml_bench.errors import UsageError
from ftml_bench.report import comparing
from ftml_bench.runs.definition import Cell
from tests.runs.made import changed, edit, write_all, write_run

TOO_FEW = "cannot be told apart with 6 seeds"


def board(tmp_path, name, shift=0.0, seeds=range(6)):
    return write_all(tmp_path / name, shift, definition=changed(seeds=list(seeds)))


def rows(table):
    return {(row[0], row[1]): row[2:] for row in table.rows}


def test_a_row_that_got_better_by_hand(tmp_path):
    old, new = board(tmp_path, "old"), board(tmp_path, "new", -0.25)
    results, versions = comparing.tables(old, new)
    found = rows(results)
    # FTML: every loss 0.25 lower. At 10 points 0.65 + 0.01 a cell, below 0.8: 10 datapoints in place of 20.
    # Two rows: the least p of six seeds is 2 / 64, and twice that after the correction for the other row.
    assert found["FTML", "datapoints to γ"] == ["-10.0", "-10.0 to -10.0", "0.031", "0.062", "6", TOO_FEW]
    assert found["FTML", "loss at 20"] == ["-0.250", "-0.250 to -0.250", "0.031", "0.062", "6", TOO_FEW]
    assert found["FromScratch", "loss at 20"] == ["0.000", "0.000 to 0.000", "1.000", "1.000", "6", "level"]
    assert "6 of 12 cells of NEW have the curve of OLD, bit for bit." in versions.notes
    assert {row[3] for row in versions.rows} == {"the same"}


def test_seven_seeds_of_one_sign_decide(tmp_path):
    old, new = board(tmp_path, "old", seeds=range(7)), board(tmp_path, "new", -0.25, seeds=range(7))
    assert rows(comparing.tables(old, new)[0])["FTML", "loss at 20"][2:] == ["0.016", "0.031", "7", "ahead"]
    assert rows(comparing.tables(new, old)[0])["FTML", "loss at 20"][-1] == "behind"


def test_three_seeds_can_decide_nothing_and_that_is_said(tmp_path, capsys):
    old, new = board(tmp_path, "old", seeds=range(3)), board(tmp_path, "new", -0.25, seeds=range(3))
    assert cli.main(["compare", str(old), str(new)]) == 0
    out = capsys.readouterr().out
    said = "3 seeds cannot go below p = 0.25; for 0.05 after the correction for 2 rows it takes 7, all of one sign."
    assert said in out
    assert "ahead" not in out.split("* Over")[0]


def test_only_seeds_that_both_have_are_paired(tmp_path):
    old, new = board(tmp_path, "old", seeds=[0, 1, 7]), board(tmp_path, "new", seeds=[0, 1, 2, 3])
    found = rows(comparing.tables(old, new)[0])
    assert found["FTML", "loss at 20"][4] == "2"
    other = board(tmp_path, "other", seeds=[9])
    assert rows(comparing.tables(old, other)[0])["FTML", "loss at 20"][-1] == "no seed that both have finished"


def test_other_versions_and_settings_are_said(tmp_path):
    old, new = board(tmp_path, "old"), tmp_path / "new"
    write_all(new, definition=changed({"steps": 6}, seeds=list(range(6))))
    for file in new.rglob("record.json"):
        edit(file, device="cuda")
    results, versions = comparing.tables(old, new)
    assert rows(results)["FTML", "loss at 20"][-1] == "level (other settings)"
    assert ["device", "cpu", "cuda", "other"] in versions.rows
    (said,) = (note for note in results.notes if "settings" in note)
    assert said == "OLD and NEW differ in settings, which may be all that is seen here: steps 5 and 6."
    assert ["leaderboard", "small", "small", "the same"] in versions.rows


def test_rows_with_other_settings_and_other_leaderboards_are_named(tmp_path):
    old, new = board(tmp_path, "old"), tmp_path / "new"
    rows_of = {"FTML": {"meta_batch_size": 3}, "FromScratch": {}}
    write_all(new, definition=changed({"arrivals": 2, "strategies": rows_of}, seeds=list(range(6)), name="mine"))
    results, versions = comparing.tables(old, new)
    (said,) = (note for note in results.notes if "settings" in note)
    assert said.endswith("all that is seen here: arrivals the stream's own and 2; those of FTML.")
    assert ["leaderboard", "small", "mine", "other"] in versions.rows
    assert not any("settings" in note for table in comparing.tables(old, old) for note in table.notes)


def test_what_cannot_be_compared_is_refused(tmp_path, capsys):
    old, new = board(tmp_path, "old"), tmp_path / "new"
    write_all(new, definition=changed({"settings": {"rounds": 4}}))
    for arguments in ([str(old), str(new)], [str(old), str(tmp_path)], [str(old)]):
        assert cli.main(["compare", *arguments]) == 2
        assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize(
    ("of_new", "said"),
    [
        ({"settings": {"rounds": 4}}, "waves has another stream (rounds the stream's own and 4): not compared"),
        (
            {"benchmark": "LinearRegression", "settings": {}},
            "waves has another stream (Sinusoids and LinearRegression): not compared",
        ),
    ],
)
def test_the_setting_of_a_stream_that_differs_is_named(tmp_path, of_new, said):
    old, new = board(tmp_path, "old"), tmp_path / "new"
    write_all(new, definition=changed(of_new))
    with pytest.raises(UsageError, match=re.escape(said)):
        comparing.tables(old, new)


@pytest.mark.parametrize(
    ("protocol", "said"),
    [
        ({"version": 2}, "has another version of the protocol (1 and 2)"),
        ({"benchmark_version": 2}, "has another version of the stream (1 and 2)"),
        ({"score": "next_arrival"}, "has another score ('held_out' and 'next_arrival')"),
        ({"warmup": {"rounds": 1, "steps": 5}}, "has another warm-up (none and rounds 1, steps 5)"),
        ({"held_out_per_round": 5}, "has another number of held-out points a round (25 and 5)"),
        ({"image_set": "folder"}, "has another set of images ('none' and 'folder')"),
    ],
)
def test_what_was_made_or_tested_otherwise_is_not_compared(tmp_path, protocol, said):
    old, new = board(tmp_path, "old"), board(tmp_path, "new")
    for file in new.rglob("record.json"):
        edit(file, protocol=json.loads(file.read_text())["protocol"] | protocol)
    with pytest.raises(UsageError, match=re.escape(f"no benchmark to compare: waves {said}")):
        comparing.tables(old, new)


def test_curves_that_hold_no_number_are_the_same_bit_for_bit(tmp_path):
    old, new = board(tmp_path, "old"), board(tmp_path, "new")
    for folder in (old, new):
        shutil.rmtree(folder / "waves/FTML/seed-5")
        write_run(
            folder,
            Cell("waves", "FTML", 5),
            [math.nan],
            "diverged",
            diverged_round=0,
            definition=changed(seeds=[*range(6)]),
        )
    assert "12 of 12 cells of NEW have the curve of OLD, bit for bit." in comparing.tables(old, new)[-1].notes
