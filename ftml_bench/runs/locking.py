"""One process at a time runs a leaderboard's folder, and what it was running has ended before another begins.

Both by locks of the system (`flock`), which end with the process that holds them, however it ends. The process that
runs a leaderboard holds `.lock`; the workers that write into the folder share `.writers`, so that the next one sees
those of a process that is gone for as long as they are there. A worker that comes late, on another machine or not, sees
that `.lock` is not that of its run any more, and does not begin; and a cell is written to by one worker at a time, by a
`.lock` of its own. Network file systems (NFS, Lustre and the like) pass the locks on to other machines, unless they are
mounted without; one that has no locks is refused.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO

import portalocker
from portalocker import LockFlags

from ftml_bench.errors import UsageError
from ftml_bench.runs.provenance import now
from ftml_bench.runs.storage import StorageError

LOCK, WRITERS = ".lock", ".writers"
PATIENCE = 10.0  # seconds for the workers of a process that is gone to end
# The same for the worker of one cell. A machine that has lost its cluster takes a minute until it ends what it runs.
PATIENCE_FOR_CELL = 120.0
_BLINK = 0.3  # seconds in which those who only look for a moment have looked


class LostError(Exception):
    """The run that a worker belongs to holds its folder no more."""


@contextmanager
def alone(root: Path) -> Iterator[str]:
    """Inside, no other process runs the leaderboard in `root`, a folder that is there. Gives the run's name.

    :raises UsageError: one does, named; or workers of one that is gone still do; or there are no locks.
    """
    file = _within(_BLINK, root, LOCK)
    if file is None:
        raise _in_use(root)
    try:
        with suppress(OSError):  # a full disk: it is held all the same
            file.truncate(0)
            file.write(f"process {os.getpid()} on {socket.gethostname()} since {now()}".encode())
        await_writers(root)
        yield _name(root)
    finally:
        if _is(file, root / LOCK):  # else the folder was removed, and what has its name now is another's
            for name in (WRITERS, LOCK):
                with suppress(OSError):
                    (root / name).unlink(missing_ok=True)
        file.close()


def refuse_in_use(root: Path) -> None:
    """Sees that no process runs the leaderboard in `root`; changes nothing.

    :raises UsageError: one does; named.
    """
    if holder(root) is not None:
        raise _in_use(root)


def holder(root: Path) -> str | None:
    """The process that runs the leaderboard in `root`, as it names itself; None if there is none. Changes nothing."""
    return _name(root) if _is_locked(root / LOCK) else None


def is_held(root: Path, run: str) -> bool:
    """Whether the run of that name still holds the leaderboard in `root`, as far as this machine can see."""
    return _name(root) == run and _is_locked(root / LOCK)


@contextmanager
def writing(root: Path, run: str, folders: Iterable[Path]) -> Iterator[None]:
    """Inside, this process, and no other, writes into these folders of cells, for the run of that name.

    :raises LostError: it does not hold `root` any more.
    :raises OSError: the leaderboard's folder is gone, or another process writes into a cell's.
    """
    with ExitStack() as held:
        file = held.enter_context((root / WRITERS).open("a+b", buffering=0))  # on NFS shared locks are readers' alone
        portalocker.lock(file, LockFlags.SHARED)
        if not is_held(root, run):  # else, from here on, another that begins waits until this process has ended
            raise LostError
        for folder in folders:
            held.enter_context(_only_writer(folder))
        yield


@contextmanager
def _only_writer(folder: Path) -> Iterator[None]:
    folder.mkdir(parents=True, exist_ok=True)
    file = _within(PATIENCE_FOR_CELL, folder, LOCK)
    if file is None:
        raise StorageError(folder, "is still written to by a worker that is out of reach")
    try:
        yield
    finally:
        with suppress(OSError):
            if _is(file, folder / LOCK):
                (folder / LOCK).unlink()
        file.close()


def await_writers(root: Path) -> None:
    """Waits until no worker writes into `root`.

    :raises UsageError: they do not end.
    """
    file = _within(PATIENCE, root, WRITERS)
    if file is None:
        raise UsageError(f"{root} is still written to by workers of a run that has ended: end them, or wait")
    file.close()


def _within(seconds: float, folder: Path, name: str) -> IO[bytes] | None:
    """The file of that name, as soon as no other process holds it; None if that takes longer."""
    deadline = time.monotonic() + seconds
    while (file := _locked(folder / name)) is None and time.monotonic() < deadline:
        time.sleep(0.05)
    return file


def _locked(path: Path) -> IO[bytes] | None:
    """The file, locked; None if another process holds it."""
    while True:
        try:
            file = path.open("ab", buffering=0)
        except OSError as error:
            raise UsageError(f"{path} cannot be written: {error.strerror or error}") from error
        try:
            portalocker.lock(file, LockFlags.EXCLUSIVE | LockFlags.NON_BLOCKING)
        except portalocker.AlreadyLocked:
            file.close()
            return None
        except portalocker.LockException as error:
            file.close()
            raise _no_locks(path, error) from error
        if _is(file, path):
            return file
        file.close()  # the one who held it has removed it


def _is_locked(path: Path) -> bool:
    """Whether another process holds the file's lock; changes nothing."""
    try:
        with path.open("rb", buffering=0) as file:
            # shared, so that those who look do not take one another for the holder
            portalocker.lock(file, LockFlags.SHARED | LockFlags.NON_BLOCKING)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except portalocker.AlreadyLocked:
        return True
    except portalocker.LockException as error:
        raise _no_locks(path, error) from error
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror or error}") from error
    return False


def _no_locks(path: Path, error: Exception) -> UsageError:
    return UsageError(f"{path.parent}: its file system has no locks ({error}): choose another --out")


def _is(file: IO[bytes], path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except OSError:
        return False


def _name(root: Path) -> str:
    with suppress(OSError, UnicodeDecodeError):
        return (root / LOCK).read_text(encoding="utf-8") or "another process"
    return "another process"


def _in_use(root: Path) -> UsageError:
    return UsageError(f"{root} is in use by {_name(root)}: wait until that has ended, or choose another --out")
