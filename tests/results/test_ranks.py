"""Ranks over streams and performance profiles against counts by hand, and `ftml-bench report --overall`."""

from __future__ import annotations

import math
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ftml_bench import cli
from ftml_bench.errors import UsageError
from ftml_bench.report import overall as shown
from ftml_bench.results.ranks import overall, profile, rank
from tests.runs.made import changed, write_all

RESULTS = Path(__file__).parents[2] / "leaderboards/results"


def test_ranks_by_hand():
    found = rank([[0.1, 0.2, 0.3, 0.4], [0.2, 0.1, 0.3, 0.3], [0.1, 0.2, 0.3, 0.4], [0.1, 0.3, 0.2, 0.4]])
    assert found.of_streams[1].tolist() == [2, 1, 3.5, 3.5]
    assert found.means.tolist() == [1.25, 2.0, 2.875, 3.875]
    # Demšar (2006), table 5: q of Nemenyi for four learners is 2.569.
    assert found.critical_difference == pytest.approx(2.569 * math.sqrt(4 * 5 / (6 * 4)), rel=1e-3)


def test_friedmans_statistic_by_hand():
    """12 n / (k (k + 1)) * sum of (mean rank - (k + 1) / 2)^2 = 6 for three streams that agree on three learners."""
    found = rank([[1, 2, 3]] * 3)
    assert found.p == pytest.approx(math.exp(-6 / 2))  # chi-square of two degrees of freedom
    assert math.isnan(rank([[1, 2]] * 3).p)
    assert math.isnan(rank([[1, 1, 1]] * 3).p)


def test_groups_are_the_longest_runs_that_cannot_be_told_apart():
    found = replace(rank([[1, 2, 3, 4]] * 4), critical_difference=1.5, means=np.array([1.0, 3.9, 2.2, 2.8]))
    assert found.groups() == [[0, 2], [2, 3], [3, 1]]
    found = replace(found, critical_difference=2.0)
    assert found.groups() == [[0, 2, 3], [2, 3, 1]]
    assert replace(found, critical_difference=0.1).groups() == []


def test_a_profile_by_hand():
    factors, shares = profile([[1.0, 2.0], [3.0, 1.0], [1.0, 1.0]])
    assert factors.tolist() == [1, 2, 3]
    assert shares.tolist() == [[2 / 3, 2 / 3, 1], [2 / 3, 1, 1]]


def test_a_profile_with_a_best_of_zero():
    """Who has it too is at the factor 1, who has not at none."""
    factors, shares = profile([[0.0, 0.0, 1.0], [1.0, 2.0, 4.0]])
    assert factors.tolist() == [1, 2, 4]
    assert shares.tolist() == [[1, 1, 1], [0.5, 1, 1], [0, 0, 0.5]]


def board(tmp_path, name, shift, **more):
    return write_all(tmp_path / name, shift, definition=changed(name=name, **more))


def test_rows_that_no_seed_has_finished_together_are_refused(tmp_path):
    folders = [board(tmp_path, name, 0.0) for name in ("one", "two")]
    for folder in folders:
        shutil.rmtree(folder / "waves/FTML/seed-0")
        shutil.rmtree(folder / "waves/FromScratch/seed-1")
    with pytest.raises(UsageError, match="one: waves: expected a seed that all of FTML, FromScratch have finished"):
        overall(folders)


def test_learners_are_ranked_by_the_seeds_that_all_have_finished(tmp_path):
    """FTML's other seed, on which it would be far behind, is not finished: nor does the other row's count."""
    folders = [board(tmp_path, name, 0.0) for name in ("one", "two")]
    whole = overall(folders)
    shutil.rmtree(folders[0] / "waves/FTML/seed-1")
    found = overall(folders)
    assert whole.seeds_left_out == [[], []]
    assert found.seeds_left_out == [[1], []]
    assert found.scores[0] == pytest.approx(whole.by_seed[0])
    assert found.scores[1] == pytest.approx(whole.scores[1])
    assert "Seeds left out, for some learner has not finished them: one: waves 1." in shown.table(found).notes


def test_nothing_is_written_into_a_leaderboard_that_follows_overall(tmp_path, capsys):
    folders = [board(tmp_path, name, 0.0) for name in ("one", "two", "three")]
    before = sorted(folders[0].rglob("*"))
    assert cli.main(["report", "--overall", *map(str, folders)]) == 2
    assert f"--overall: {folders[0]} is a leaderboard's, expected a folder to write to" in capsys.readouterr().err
    assert sorted(folders[0].rglob("*")) == before


def test_two_boards_together(tmp_path, capsys):
    """FTML is better by 0.1 on one, worse by 0.3 on the other; the other row is 0.02 worse everywhere."""
    folders = [board(tmp_path, "one", -0.1), board(tmp_path, "two", 0.3)]
    found = overall(folders)
    assert found.streams == ["one: waves", "two: waves"]
    assert found.scores == pytest.approx(np.array([[0.6025, 0.7125], [1.0025, 0.7125]]))
    assert found.ranks.means.tolist() == [1.5, 1.5]
    assert len(found.by_seed) == 4
    assert cli.main(["report", *map(str, folders), "--overall", str(tmp_path / "out")]) == 0
    assert "mean rank    1.50         1.50" in capsys.readouterr().out
    assert {file.name for file in (tmp_path / "out").iterdir()} == {
        f"overall.{kind}" for kind in ("md", "png", "svg", "pdf")
    }
    assert "| mean rank | **1.50** | **1.50** |" in (tmp_path / "out/overall.md").read_text()


def test_what_cannot_be_ranked_is_refused(tmp_path, capsys):
    one = board(tmp_path, "one", 0.0)
    assert cli.main(["report", str(one), "--overall"]) == 2
    error = capsys.readouterr().err
    assert "expected two streams and two rows that all of them have, got one: waves" in error
    assert error.count("\n") == 1


@pytest.mark.usefixtures("undrawn")
def test_several_reports_are_made_one_after_the_other(tmp_path, capsys):
    folders = [board(tmp_path, "one", 0.0), board(tmp_path, "two", 0.1)]
    assert cli.main(["report", *map(str, folders)]) == 0
    assert capsys.readouterr().out.count("TensorBoard:") == 2
    assert all((folder / "seeds.csv").is_file() for folder in folders)


def test_the_picture_of_committed_results_names_every_learner():
    found = overall([RESULTS / name for name in ("quick", "rainbow_mnist_small", "colored")])
    assert found.learners == ["FTML", "FollowTheLeader", "TrainOnEverything", "FromScratch"]
    assert found.left_out == ["FollowTheLeader Adam", "FromScratch x10", "TrainOnEverything groups"]
    left, right = shown.picture(found).axes
    texts = [text.get_text() for text in left.texts]
    assert all(any(name in text for text in texts) for name in found.learners)
    assert [text.get_text() for text in right.texts] == found.learners
    assert all(line.get_ydata()[-1] == 1 for line in right.get_lines())
