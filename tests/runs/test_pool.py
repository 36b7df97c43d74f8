"""A process that dies takes only its own cell with it; workers end with their parent; nothing foreign is a success."""

import ctypes
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest

from ftml_bench import cli
from ftml_bench.runs import definition as definitions
from ftml_bench.runs import locking, pool, record, schedule
from ftml_bench.runs.pool import LocalPool, ThisProcess
from ftml_bench.runs.record import CURVE_COLUMNS, RunWriter
from ftml_bench.runs.tasks import Task
from tests.runs import kills

LINUX = sys.platform == "linux"


def fake_cell(definition, cell, folder, data, on_evaluation, device="cpu"):
    """Stands for a cell: one evaluation, then what the row's setting `ends` says; it counts how often it was begun."""
    ends = definition.benchmark(cell.benchmark).row(cell.row).settings["ends"]
    begun = folder.parents[2].parent / f"begun {cell.row} {cell.seed}"
    begun.write_text(begun.read_text() + "x" if begun.exists() else "x")
    writer = RunWriter.start(folder, {"definition": definition.hash, "protocol": {}})
    writer.append({**dict.fromkeys(CURVE_COLUMNS, 1), "loss": 0.5, "accuracy": None}, 1.0)
    on_evaluation(1, 1)
    if ends == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if ends == "killed once" and begun.read_text() == "x":
        os._exit(0)
    if ends == "exit":
        sys.exit(0)
    if ends == "generator":
        raise GeneratorExit
    if ends == "keyboard":
        raise KeyboardInterrupt
    if ends == "forever":
        time.sleep(600)
    if ends == "forever in C":
        ctypes.PyDLL(None).sleep(600)  # without letting go of Python's lock
    writer.finish("finished")
    return "finished"


@pytest.fixture(autouse=True)
def _fake(monkeypatch):
    monkeypatch.setattr(schedule, "RUN_CELL", f"{__name__}:fake_cell")
    monkeypatch.setattr(pool, "one_thread", lambda: None)  # other tests of this process may have their threads


def leaderboard(*, seeds=(0,), **rows):
    """One benchmark; a row for each name, whose cells end as its value says."""
    entry = {
        "benchmark": "Sinusoids",
        "steps": 1,
        "optimizer": {"name": "Adam"},
        "strategies": {name: {"strategy": "FromScratch", "ends": ends} for name, ends in rows.items()},
    }
    return definitions.from_dict({"name": "test", "seeds": list(seeds), "benchmarks": {"sines": entry}}, "test")


def run(board, root, jobs=2):
    outcomes = schedule.run_cells(board, root, jobs=jobs, data=None, quiet=True)
    return [(outcome.cell.row, outcome.status, outcome.message) for outcome in outcomes]


def begun(folder, row):
    return len((folder / f"begun {row} 0").read_text())


# -- a process that dies


def test_only_the_cell_of_a_process_that_dies_fails_after_three_of_them(tmp_path, capsys):
    board = leaderboard(dead="killed", one="finished", two="finished", three="finished")
    reason = "its process was ended by SIGKILL (out of memory?) (3 times)"
    others = [(name, "finished", "") for name in ("one", "two", "three")]
    assert run(board, tmp_path / "out") == [("dead", "failed", reason), *others]
    assert begun(tmp_path, "dead") == 3
    assert [begun(tmp_path, name) for name in ("one", "two", "three")] == [1, 1, 1]
    assert record.read(tmp_path / "out/sines/dead/seed-0").record["reason"] == reason
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("ftml-bench: ")]
    assert said == [
        "ftml-bench: sines/dead/seed-0: its process was ended by SIGKILL (out of memory?); what this stops is tried "
        "again after the others"
    ]
    assert run(board, tmp_path / "out")[0] == ("dead", "failed", reason)  # a new start tries anew
    assert begun(tmp_path, "dead") == 6


def test_a_cell_whose_process_dies_once_is_run_again(tmp_path):
    """Exit code 0 in the middle of a cell is a death like any other."""
    board = leaderboard(unlucky="killed once", other="finished")
    assert run(board, tmp_path / "out") == [("unlucky", "finished", ""), ("other", "finished", "")]
    assert (begun(tmp_path, "unlucky"), begun(tmp_path, "other")) == (2, 1)


def test_what_was_cut_off_is_not_run_in_the_process_that_decides(tmp_path):
    """With one job a cell takes the whole run with it, once; the next start sees it die, and goes on."""
    board = leaderboard(dead="killed", other="finished")
    script = (
        "import sys; from pathlib import Path; from tests.runs.test_pool import leaderboard, schedule\n"
        "schedule.RUN_CELL = 'tests.runs.test_pool:fake_cell'\n"
        "board = leaderboard(dead='killed', other='finished')\n"
        "schedule.run_cells(board, Path(sys.argv[1]), jobs=1, data=None, quiet=True)"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    assert subprocess.run([sys.executable, "-c", script, str(tmp_path / "out")], env=environment).returncode == -9
    assert [(row, status) for row, status, _ in run(board, tmp_path / "out", jobs=1)] == [
        ("dead", "failed"),
        ("other", "finished"),
    ]


def test_evaluations_are_told_in_the_order_in_which_they_were_made(tmp_path):
    board = leaderboard(seeds=range(4), good="finished")
    (tmp_path / "leaderboard.yaml").touch()
    with locking.alone(tmp_path) as holder:
        runners = f"{__name__}:fake_cell", ""
        tasks = [Task(board, (cell,), tmp_path, None, "cpu", runners, holder) for cell in board.cells()]
        for place in (LocalPool(2), ThisProcess()):
            told, ended = [], []
            tell = partial(_append, told)
            for task in tasks:
                place.submit(task)
            while len(ended) < len(tasks):
                outcome = place.outcome(tell)
                if outcome is not None:
                    ended.append(outcome[0].cells[0])
                    assert (ended[-1], 1, 1) in told
            place.cancel()
            assert sorted(told, key=str) == [(cell, 1, 1) for cell in board.cells()]
            assert sorted(ended, key=str) == board.cells()


def _append(told, *what):
    told.append(what)


# -- workers end with their parent


@pytest.mark.skipif(not LINUX, reason="looks into /proc")
@pytest.mark.parametrize("ends", ["forever", "forever in C"])
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_workers_end_with_their_parent(ends, number, tmp_path):
    script = (
        "import sys; from pathlib import Path; from tests.runs.test_pool import leaderboard, schedule\n"
        "schedule.RUN_CELL = 'tests.runs.test_pool:fake_cell'\n"
        f"board = leaderboard(one={ends!r}, two={ends!r})\n"
        "schedule.run_cells(board, Path(sys.argv[1]), jobs=2, data=None, quiet=True)"
    )
    mark = str(tmp_path)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), kills.MARK: mark}
    process = subprocess.Popen([sys.executable, "-c", script, str(tmp_path / "out")], env=environment)
    while not ((tmp_path / "begun one 0").exists() and (tmp_path / "begun two 0").exists()):
        assert process.poll() is None
        time.sleep(0.05)
    assert len(kills.workers(mark)) == 2
    process.send_signal(number)
    assert process.wait() == -number
    deadline = time.monotonic() + 5.0
    while kills.marked(mark) and time.monotonic() < deadline:
        time.sleep(0.05)
    left = kills.marked(mark)
    for worker in left:
        os.kill(worker, signal.SIGKILL)
    assert not left


@pytest.mark.parametrize(("number", "code"), [("SIGTERM", 143), ("SIGHUP", 129), ("SIGINT", 130)])
@pytest.mark.parametrize("jobs", [1, 2])
def test_the_signals_that_end_a_process_stop_a_leaderboard_in_order(number, code, jobs, tmp_path):
    process = start_board(tmp_path, jobs)
    process.send_signal(getattr(signal, number))
    said = process.communicate()[1]
    assert process.returncode == code
    assert said.splitlines()[-1] == "ftml-bench: stopped; the same command goes on with the cells that are not finished"
    assert "Traceback" not in said
    assert not list((tmp_path / "out").glob(".*"))
    assert start_board(tmp_path, jobs).wait() == 0


LIBRARY = """
import os, signal, time
from ftml_bench.runs.signals import Stopped, as_ctrl_c
signal.signal(signal.SIGTERM, signal.SIG_DFL)
def waits():
    try:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(5)
    except Stopped:
        raise KeyboardInterrupt from None
for wait in (waits, lambda: signal.raise_signal(signal.SIGINT)):
    try:
        with as_ctrl_c():
            wait()
    except KeyboardInterrupt as error:
        print(type(error).__name__, error)
"""


def test_a_library_that_says_a_signal_in_its_own_way_does_not_change_which_it_was():
    """As Ray does while it waits. In a process of its own: signals come to the first thread alone."""
    found = subprocess.run([sys.executable, "-c", LIBRARY], capture_output=True, text=True, preexec_fn=signals_as_usual)
    assert found.stdout == "Stopped SIGTERM\nKeyboardInterrupt \n"


def test_a_terminal_that_is_closed_does_not_end_what_nohup_runs(tmp_path):
    process = start_board(tmp_path, 2, preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN))
    os.killpg(process.pid, signal.SIGHUP)
    assert process.wait() == 0


def signals_as_usual():
    """What runs the tests may ignore signals, as under nohup, and hand that on."""
    for number in (signal.SIGHUP, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL)


def start_board(folder, jobs, **settings):
    """The leaderboard that `kills` kills, in a group of its own; returns when its first cell is running."""
    (folder / "board.yaml").write_text(kills.BOARD)
    settings.setdefault("preexec_fn", signals_as_usual)
    command = [sys.executable, kills.__file__, "board", "light", str(folder / "board.yaml")]
    command += ["--out", str(folder / "out"), "--jobs", str(jobs)]
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True, **settings
    )
    while not list(folder.glob("out/*/*/*/record.json")) and process.poll() is None:
        time.sleep(0.01)
    return process


# -- foreign code


@pytest.mark.parametrize(
    ("ends", "reason"),
    [("exit", "SystemExit: 0"), ("generator", "GeneratorExit: "), ("keyboard", "KeyboardInterrupt: ")],
)
@pytest.mark.parametrize("jobs", [1, 2])
def test_what_foreign_code_raises_is_a_failure_with_a_reason(ends, reason, jobs, tmp_path):
    if ends == "keyboard" and jobs == 1:  # in the process that Ctrl-C comes to, it is Ctrl-C
        with pytest.raises(KeyboardInterrupt):
            run(leaderboard(bad=ends), tmp_path / "out", 1)
        return
    outcomes = run(leaderboard(bad=ends, good="finished"), tmp_path / "out", jobs)
    assert outcomes[1] == ("good", "finished", "")
    assert outcomes[0][:2] == ("bad", "failed")
    assert outcomes[0][2].startswith(reason)
    assert begun(tmp_path, "bad") == 1


@pytest.mark.parametrize("code", ["import sys; sys.exit(0)", "raise GeneratorExit", "raise SystemExit"])
def test_a_module_that_ends_the_process_is_no_success(code, tmp_path, monkeypatch, capsys):
    (tmp_path / "foreign_module.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    assert cli.main(["run", "Sinusoids", "foreign_module:Strategy"]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "cannot import foreign_module (" in said


def test_a_class_that_ends_the_process_when_it_is_built_is_no_success(tmp_path, monkeypatch, capsys):
    (tmp_path / "foreign_class.py").write_text(
        "import sys\nclass Bench:\n    def __init__(self, seed=0):\n        sys.exit(0)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    assert cli.main(["run", "foreign_class:Bench", "FTML"]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "foreign_class.py:4 ended the command by SystemExit(0)" in said


IMPORTING = """
import os, signal
from ftml_bench.runs.signals import as_ctrl_c, put_off
signal.signal(signal.SIGTERM, signal.SIG_DFL)
for number in (signal.SIGTERM, signal.SIGINT):
    try:
        with as_ctrl_c():
            with put_off():
                os.kill(os.getpid(), number)
                print("imported", flush=True)
            print("goes on")
    except KeyboardInterrupt as error:
        print(type(error).__name__, error, flush=True)
try:
    with as_ctrl_c():
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        except KeyboardInterrupt as error:
            raise ValueError("what a library makes of it") from error
except KeyboardInterrupt as error:
    print(type(error).__name__, error, flush=True)
with put_off():
    os.kill(os.getpid(), signal.SIGTERM)
    print("imported", flush=True)
print("goes on")
"""


def test_a_signal_waits_for_the_end_of_an_import():
    found = subprocess.run(
        [sys.executable, "-c", IMPORTING], capture_output=True, text=True, preexec_fn=signals_as_usual
    )
    assert found.stdout == "imported\nStopped SIGTERM\nimported\nKeyboardInterrupt \nStopped SIGTERM\nimported\n"
    assert found.returncode == -signal.SIGTERM
