"""The bar of a leaderboard: what it names, how fast it says that it goes, and when it says that it will be done."""

import contextlib
import io
import re
import subprocess
import sys

import pytest

from ftml_bench import bars
from ftml_bench.runs import definition as definitions
from ftml_bench.runs import progress
from ftml_bench.runs.definition import Cell
from ftml_bench.runs.pace import Pace

QUICK = [Cell("digits", row, seed) for row in ("FTML", "FromScratch") for seed in (0, 1)]


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


def test_rows_that_differ_are_reckoned_by_their_own_speed(clock):
    """Ten evaluations a cell; FTML takes 6 s each, FromScratch 1 s."""
    pace = Pace(QUICK, clock)
    pace.evaluated(QUICK[0], 0, 10)
    assert pace.seconds_left is None
    assert pace.rate is None
    for done in range(1, 11):
        clock.now += 6
        pace.evaluated(QUICK[0], done, 10)
    pace.over(QUICK[0])
    assert pace.seconds_left == 6 * 30  # nothing else is known of FromScratch yet
    pace.evaluated(QUICK[2], 0, 10)
    clock.now += 2
    pace.evaluated(QUICK[2], 2, 10)
    assert pace.rate == 1
    assert pace.seconds_left == 1 * 8 + 1 * 10 + 6 * 10
    assert (pace.done, pace.total) == (12, 40)


def test_cells_that_run_at_once_share_what_is_left(clock):
    pace = Pace(QUICK[:2], clock)
    for cell in QUICK[:2]:
        pace.evaluated(cell, 0, 10)
    clock.now = 10
    for cell in QUICK[:2]:
        pace.evaluated(cell, 5, 10)
    assert pace.rate == 1
    assert pace.seconds_left == 10
    pace.over(QUICK[1])
    assert pace.seconds_left == 10  # the longest cell decides, however many run
    assert pace.total == 15  # one that failed makes no more


def test_what_was_done_before_counts_for_no_speed(clock):
    """A cell that goes on from its saved state, and one that is begun again in a new process."""
    pace = Pace(QUICK[:1], clock)
    pace.evaluated(QUICK[0], 90, 100)
    clock.now = 4
    pace.evaluated(QUICK[0], 92, 100)
    assert pace.seconds_left == 2 * 8
    pace.stopped(QUICK[0])
    assert pace.running == []
    clock.now = 1000
    pace.evaluated(QUICK[0], 90, 100)
    assert pace.running == QUICK[:1]
    clock.now = 1006
    pace.evaluated(QUICK[0], 91, 100)
    assert pace.rate == pytest.approx(1 / 6)


def test_another_benchmark_is_reckoned_by_the_mean_of_what_is_known(clock):
    other = Cell("waves", "FTML", 0)
    pace = Pace([QUICK[0], QUICK[2], other], clock)
    for cell, seconds in ((QUICK[0], 6), (QUICK[2], 2)):
        pace.evaluated(cell, 0, 10)
        clock.now += 10 * seconds
        pace.evaluated(cell, 10, 10)
        pace.over(cell)
    assert pace.seconds_left == 10 * 4


@pytest.mark.parametrize("columns", [30, 40, 80, 200])
def test_names_fit(columns):
    cells = [f"rainbow_mnist/TrainOnEverything groups/seed-{seed}" for seed in range(4)]
    for count in range(1, 5):
        assert len(progress.names(cells[:count], columns)) <= columns


def test_names_are_whole_where_there_is_room():
    assert progress.names(["digits/FTML/0"], 16) == "digits/FTML/0"
    assert progress.names(["a/b/0", "a/b/1"], 12) == "a/b/0, a/b/1"
    assert progress.names(["a/b/0", "a/b/1"], 11) == "a/b/0 +1"
    assert progress.names(["TrainOnEverything groups/2"], 19) == "TrainOnE…g groups/2"


def drawn(columns, monkeypatch):
    """The states of a bar on a terminal of so many columns, or, with None, in a file."""
    written = io.StringIO()
    monkeypatch.setattr(written, "isatty", lambda: columns is not None, raising=False)
    monkeypatch.setattr("tqdm.std._screen_shape_wrapper", lambda: lambda file: (columns, 24))
    monkeypatch.setattr(bars, "SECONDS_IN_A_LOG", 0)
    clock = Clock()
    monkeypatch.setattr(progress, "Pace", lambda todo: Pace(todo, clock))
    quick = definitions.load("rainbow_mnist_small")
    todo = quick.cells()
    with contextlib.redirect_stderr(written):
        bar = progress.Progress(quick, todo, kept=0, quiet=False)
        bar._bar.mininterval = 0
        for cell in todo[12:14]:
            bar.evaluated(cell, 0, 100)
        for done in range(1, 4):
            clock.now += 11.2
            for cell in todo[12:14]:
                bar.evaluated(cell, done, 100)
        bar.ended(todo[12])
        bar.close()
    return [line for line in re.split(r"[\r\n]+", written.getvalue()) if line.strip()]


@pytest.mark.parametrize("columns", [60, 80, 120])
def test_the_bar_stays_on_its_line(columns, monkeypatch):
    lines = drawn(columns, monkeypatch)
    assert max(map(len, lines)) <= columns
    assert columns < 80 or re.match(r"Train.*/1 ", lines[-1])


def test_the_bar_in_a_file_is_lines_that_read(monkeypatch):
    lines = drawn(None, monkeypatch)
    cells = len(definitions.load("rainbow_mnist_small").cells())
    assert "starting" in lines[0]
    assert re.search(rf"\| 0/{cells} cells \[00:00<\d+:\d\d:\d\d, 5\.6 s/evaluation\]$", lines[-2])
    assert re.search(rf"\| 1/{cells} cells \[00:00<[\d:]+, 11\.2 s/evaluation\]$", lines[-1])


def test_a_bar_that_is_hidden_says_nothing(capsys):
    quick = definitions.load("quick")
    bar = progress.Progress(quick, quick.cells(), kept=0, quiet=True)
    bar.evaluated(quick.cells()[0], 1, 10)
    bar.wait()
    bar.ended(quick.cells()[0])
    bar.close()
    assert capsys.readouterr().err == ""


def test_a_bar_in_a_worker_that_is_killed_leaks_no_semaphore():
    """As of a learner that draws one: Python's resource tracker would say so when all is over."""
    code = (
        "import multiprocessing, os, signal; multiprocessing.set_start_method('spawn')\n"
        "import ftml_bench.runs.worker\n"
        "from tqdm import tqdm; list(tqdm(range(2), disable=False, file=open(os.devnull, 'w')))\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (-9, "")
