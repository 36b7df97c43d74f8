"""A disk that is full, for a moment or for good, a folder that is removed: nothing is lost, nothing else is stopped.

Every call by which a run changes files is made to fail in turn, alone and with all that follow; then the disk is well
again, and the same command has to come to the results of a run that nothing happened to.
"""

import errno
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from ftml_bench.errors import UsageError
from ftml_bench.runs import pool, provenance, record, schedule
from ftml_bench.runs.definition import from_dict
from tests.runs import kills

HEADER = {"definition": "abc", "protocol": {}}
CHANGES = {"open", "os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.truncate", "os.fsync"}


class Faults:
    """Has calls that change files in a folder fail; those that have been made are in `calls`.

    Python tells of them itself (`sys.addaudithook`), whoever makes them and by whatever library.
    """

    def __init__(self):
        self.folder, self.first, self.last, self.calls = None, 0, 0, []
        sys.addaudithook(self._told)

    def start(self, folder, first=0, last=0):
        """From now on the calls with these numbers, counted from 1, fail."""
        self.folder, self.first, self.last, self.calls = str(folder), first, last, []

    def stop(self):
        self.folder = None

    def fsync(self, descriptor):
        if self.folder is not None:
            self._count("os.fsync", self.folder)

    def _told(self, event, arguments):
        if self.folder is None or event not in CHANGES or not arguments:
            return
        path = arguments[0]
        reads = event == "open" and not arguments[2] & (os.O_WRONLY | os.O_RDWR)
        if isinstance(path, str | Path) and str(path).startswith(self.folder) and not reads:
            self._count(event, path)

    def _count(self, event, path):
        self.calls.append(event)
        if self.first <= len(self.calls) <= self.last:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))


FAULTS = Faults()


@pytest.fixture(autouse=True)
def _light(monkeypatch):
    monkeypatch.setattr(schedule, "RUN_CELL", "tests.runs.kills:run_light")
    monkeypatch.setattr(kills, "PAUSE", 0.0)
    monkeypatch.setattr(provenance, "_commit", lambda: None)  # which asks git
    monkeypatch.setattr(pool, "one_thread", lambda: None)  # other tests of this process may have their threads


def board(seeds=(0, 1)):
    entry = {
        "benchmark": "Sinusoids",
        "steps": 1,
        "optimizer": {"name": "Adam"},
        "strategies": {"FTML": {"strategy": "FTML"}},
    }
    return from_dict({"name": "faults", "seeds": list(seeds), "benchmarks": {"waves": entry}}, "faults")


def run(root, jobs=1):
    return [outcome.status for outcome in schedule.run_cells(board(), root, jobs=jobs, data=None, quiet=True)]


def run_here(monkeypatch, root):
    """`run` in this process, also of what was tried before."""
    with monkeypatch.context() as patch:
        patch.setattr(schedule, "LocalPool", lambda processes: pool.ThisProcess())
        return run(root)


@pytest.mark.parametrize("lasts", ["for a moment", "for good"])
def test_every_call_that_changes_a_file_may_fail(lasts, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(os, "fsync", FAULTS.fsync)
    monkeypatch.setattr(kills, "ROUNDS", 2)
    FAULTS.start(tmp_path / "whole")
    assert run(tmp_path / "whole") == ["finished", "finished"]
    FAULTS.stop()
    calls = FAULTS.calls
    expected = kills.results(tmp_path / "whole")
    assert {"open", "os.rename", "os.mkdir", "os.remove", "os.fsync"} <= set(calls)
    for number in range(1, len(calls) + 1):
        root = tmp_path / "out"
        FAULTS.start(root, number, number if lasts == "for a moment" else 10**9)
        try:
            statuses = run_here(monkeypatch, root)
        except UsageError as error:  # of the folder itself
            statuses = str(error)
        finally:
            FAULTS.stop()
        refused = str(statuses).endswith(" cannot be written: No space left on device")
        if lasts == "for a moment" and not refused:
            assert statuses == ["finished", "finished"], (number, calls[number - 1])
        assert capsys.readouterr().err.count("No space left on device") <= 1, number  # said once
        assert run_here(monkeypatch, root) == ["finished", "finished"], (number, calls[number - 1])
        assert kills.results(root) == expected, (number, calls[number - 1])
        assert not list(tmp_path.rglob(".*"))
        capsys.readouterr()
        shutil.rmtree(root)


LIMITED = """
import resource, sys
from pathlib import Path
from tests.runs.test_storage_faults import kills, run, schedule
schedule.RUN_CELL = "tests.runs.kills:run_light"
kills.PAUSE = 0.0
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), resource.RLIM_INFINITY))
print(*run(Path(sys.argv[1]), jobs=int(sys.argv[3])))
"""


def run_limited(root, size, jobs):
    """In a process whose files cannot grow beyond that many bytes: each write that would fails, by whomever made."""
    command = [sys.executable, "-c", LIMITED, str(root), str(size), str(jobs)]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    return subprocess.run(command, env=environment, capture_output=True, text=True)


@pytest.mark.parametrize(
    ("size", "jobs", "saved"), [(0, 1, 0), (60, 1, 0), (200, 1, 0), (300, 2, 0), (500, 1, 2), (600, 2, 2)]
)
def test_every_write_may_fail(size, jobs, saved, tmp_path):
    run(tmp_path / "whole")
    ended = run_limited(tmp_path / "out", size, jobs)
    assert "File too large" in ended.stderr
    assert (ended.returncode, ended.stdout) in [(0, "failed failed\n"), (1, "")]
    if ended.returncode:
        assert ended.stderr.splitlines()[-1].startswith("ftml_bench.errors.UsageError: ")
    assert len(list((tmp_path / "out").rglob("state.pt"))) == saved
    assert run(tmp_path / "out") == ["finished", "finished"]
    assert kills.results(tmp_path / "out") == kills.results(tmp_path / "whole")
    resumed = [record.read(path.parent).record.get("resumed") for path in (tmp_path / "out").rglob("record.json")]
    assert all(resumed) == bool(saved)
