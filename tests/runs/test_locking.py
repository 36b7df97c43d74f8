"""One process at a time runs a folder: the next is refused, unless the one before has ended, however."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import portalocker
import pytest

from ftml_bench import cli
from ftml_bench.errors import UsageError
from ftml_bench.runs import locking

HOLDS = "import sys; from pathlib import Path; from ftml_bench.runs import locking; root = Path(sys.argv[1])\n"
ALONE = HOLDS + "with locking.alone(root):\n print('held', flush=True); sys.stdin.read()"
WRITING = (
    HOLDS
    + "with locking.writing(root, sys.argv[2], [root / sys.argv[3]]):\n print('held', flush=True); sys.stdin.read()"
)


@pytest.fixture
def hold(tmp_path):
    """Starts a process that holds a lock of `tmp_path`; all end with the test."""
    started = []

    def start(code, *arguments):
        command = [sys.executable, "-c", code, str(tmp_path), *arguments]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        started.append(process)
        assert process.stdout.readline() == "held\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()
        process.stdin.close()
        process.stdout.close()


def snapshot(folder):
    return {path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in folder.iterdir()}


def test_a_second_process_is_refused_in_one_line_that_names_the_first(tmp_path, hold, capsys):
    holder = hold(ALONE)
    before = snapshot(tmp_path)
    assert cli.main(["leaderboard", "quick", "--out", str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert f"{tmp_path} is in use by process {holder.pid} on {socket.gethostname()} since 20" in said
    with pytest.raises(UsageError, match=f"in use by process {holder.pid} "), locking.alone(tmp_path):
        pass
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_dead_process_holds_nothing(number, tmp_path, hold):
    holder = hold(ALONE)
    os.kill(holder.pid, number)
    holder.wait()
    assert (tmp_path / ".lock").is_file()  # and stays in nobody's way
    locking.refuse_in_use(tmp_path)
    with locking.alone(tmp_path):
        assert f"process {os.getpid()} " in (tmp_path / ".lock").read_text()
    assert not list(tmp_path.iterdir())


def end(process, number=signal.SIGKILL):
    process.send_signal(number)
    process.wait()


def test_workers_of_a_process_that_is_gone_are_awaited(tmp_path, hold, monkeypatch):
    """They end with it, but a moment later; what they write then must not meet what the next one writes."""
    driver = hold(ALONE)
    name = locking.holder(tmp_path)
    worker, other = hold(WRITING, name, "one"), hold(WRITING, name, "two")  # several of them write at once
    end(driver)
    monkeypatch.setattr(locking, "PATIENCE", 0.2)
    with (
        pytest.raises(UsageError, match="still written to by workers of a run that has ended"),
        locking.alone(tmp_path),
    ):
        pass
    monkeypatch.setattr(locking, "PATIENCE", 60.0)
    for process in (worker, other):
        process.stdin.close()
    with locking.alone(tmp_path):
        assert [process.wait(5) for process in (worker, other)] == [0, 0]
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


@pytest.mark.parametrize("now", ["dead", "another", "gone"])
def test_a_worker_that_comes_late_does_not_begin(now, tmp_path, hold):
    """Its run has ended, and another may write there."""
    driver = hold(ALONE)
    name = locking.holder(tmp_path)
    assert locking.is_held(tmp_path, name)
    if now == "gone":
        driver.stdin.close()
        driver.wait()
    else:
        end(driver)
    if now == "another":
        hold(ALONE)
    assert not locking.is_held(tmp_path, name)
    with pytest.raises(locking.LostError), locking.writing(tmp_path, name, [tmp_path / "cell"]):
        pass
    assert not (tmp_path / "cell").exists()


def test_a_cell_is_written_to_by_one_worker_at_a_time(tmp_path, hold, monkeypatch):
    """Of a machine that is out of reach, a worker may be there while the cell is begun on another."""
    hold(ALONE)
    name = locking.holder(tmp_path)
    first = hold(WRITING, name, "cell")
    monkeypatch.setattr(locking, "PATIENCE_FOR_CELL", 0.2)
    with (
        pytest.raises(OSError, match="cell: is still written to by a worker that is out of reach"),
        locking.writing(tmp_path, name, [tmp_path / "cell"]),
    ):
        pass
    with locking.writing(tmp_path, name, [tmp_path / "other"]):
        pass
    end(first)  # what it leaves is in nobody's way
    assert (tmp_path / "cell/.lock").is_file()
    with locking.writing(tmp_path, name, [tmp_path / "cell"]):
        pass
    assert not list(tmp_path.glob("*/.lock"))


def test_who_looks_for_a_moment_does_not_hold_a_folder(tmp_path):
    """As `--status` does, and workers that look whether their run goes on."""
    stop = threading.Event()

    def look():
        while not stop.is_set():
            with suppress(FileNotFoundError), (tmp_path / ".lock").open("rb") as file:
                with suppress(portalocker.LockException):
                    portalocker.lock(file, portalocker.LockFlags.SHARED | portalocker.LockFlags.NON_BLOCKING)
                time.sleep(0.01)
            time.sleep(0.01)

    looking = threading.Thread(target=look)
    looking.start()
    for _ in range(20):
        with locking.alone(tmp_path):
            pass
    stop.set()
    looking.join()


def test_looking_changes_nothing(tmp_path, monkeypatch):
    """Nor does it need the right to: the folder may be somebody else's."""
    opened = []
    path_open = Path.open

    def watched(path, mode="r", **more):
        opened.append(mode)
        return path_open(path, mode, **more)

    monkeypatch.setattr(Path, "open", watched)
    assert locking.holder(tmp_path) is None
    assert list(tmp_path.iterdir()) == []
    (tmp_path / ".lock").write_text("left behind")
    opened.clear()
    assert locking.holder(tmp_path) is None
    assert not locking.is_held(tmp_path, "left behind")
    assert set(opened) <= {"r", "rb"}
    assert (tmp_path / ".lock").read_text() == "left behind"


def test_a_folder_that_was_made_anew_keeps_the_lock_of_its_owner(tmp_path):
    root = tmp_path / "board"
    root.mkdir()
    with locking.alone(root):
        root.rename(tmp_path / "away")
        root.mkdir()
        with locking.alone(root):  # another lock: that of another folder
            pass
        (root / ".lock").write_text("of another process")
    assert (root / ".lock").read_text() == "of another process"


def test_where_there_are_no_locks_nothing_is_run(tmp_path, monkeypatch):
    def unsupported(*_):
        raise portalocker.LockException("[Errno 95] Operation not supported")

    monkeypatch.setattr(portalocker, "lock", unsupported)
    with (
        pytest.raises(UsageError, match=r"its file system has no locks .*choose another --out"),
        locking.alone(tmp_path),
    ):
        pass


def test_a_folder_that_cannot_be_written_is_said():
    with pytest.raises(UsageError, match=r"^/proc/.lock cannot be written: "), locking.alone(Path("/proc")):
        pass
