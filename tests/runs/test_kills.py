"""A sample of `kills.py`: killed at random and started again, a leaderboard has the results of one left alone.

With cells of a few lines: one of the suite's own is killed in `test_resuming.py`.
"""

import sys

import pytest

from tests.runs import kills


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_a_board_that_is_killed_at_random_comes_to_the_results_of_one_that_is_not(tmp_path):
    killer = kills.Killer(tmp_path, real=False, seed=0)
    done = 0
    while done < 8:
        done += killer.board(most=4)
    assert killer.wrong == []


def test_what_is_compared_sees_a_lost_evaluation_and_what_was_left_behind(tmp_path):
    folder = tmp_path / "waves/FTML/seed-0"
    folder.mkdir(parents=True)
    (folder / "record.json").write_text('{"status": "finished", "started": "now"}')
    (folder / "curve.csv").write_text("round\n1\n")
    found = kills.results(tmp_path)
    assert found == {
        "waves/FTML/seed-0/record.json": {"status": "finished"},
        "waves/FTML/seed-0/curve.csv": b"round\n1\n",
    }
    (folder / "state.pt").touch()
    (tmp_path / ".lock").touch()
    assert len(kills.results(tmp_path)) == 4
