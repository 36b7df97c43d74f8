"""One process at a time runs a leaderboard's folder, and what it was running has ended before another begins.

Both by locks of the system (`flock`), which end with the process that holds them, however it ends. The process that
runs a leaderboard holds `.lock`; the workers that write into the folder share `.writers`, so that the next one sees
those of a process that is gone for as long as they are there. Network file systems (NFS, Lustre and the like) pass the
locks on to other machines, unless they are mounted without; one that has no locks is refused.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime, timezone
from pathlib import Path
from typing import IO

import portalocker
from portalocker import LockFlags

from ftml_bench.errors import UsageError

LOCK, WRITERS = ".lock", ".writers"
PATIENCE = 10.0  # seconds for the workers of a process that is gone to end


@contextmanager
def alone(root: Path) -> Iterator[None]:
    """Inside, no other process runs the leaderboard in `root`, a folder that is there.

    :raises UsageError: one does, named; or workers of one that is gone still do; or there are no locks.
    """
    file = _locked(root, LOCK, LockFlags.EXCLUSIVE)
    if file is None:
        raise _in_use(root)
    try:
        with suppress(OSError):  # a full disk: it is held all the same
            file.truncate(0)
            file.write(f"process {os.getpid()} on {socket.gethostname()} since {_now()}".encode())
        _await_writers(root)
        yield
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
    if not (root / LOCK).is_file():
        return None
    file = _locked(root, LOCK, LockFlags.EXCLUSIVE)
    if file is None:
        return _name(root)
    file.close()
    return None


def writing(root: Path) -> IO[bytes]:
    """Says that this process writes into `root`, until what it gives is closed or the process ends.

    :raises OSError: the folder is gone.
    """
    file = (root / WRITERS).open("ab", buffering=0)
    portalocker.lock(file, LockFlags.SHARED)
    return file


def _await_writers(root: Path) -> None:
    deadline = time.monotonic() + PATIENCE
    while (file := _locked(root, WRITERS, LockFlags.EXCLUSIVE)) is None:
        if time.monotonic() > deadline:
            raise UsageError(f"{root} is still written to by workers of a run that has ended: end them, or wait")
        time.sleep(0.05)
    file.close()


def _locked(root: Path, name: str, flag: LockFlags) -> IO[bytes] | None:
    """The file of that name, locked; None if another process holds it."""
    path = root / name
    while True:
        try:
            file = path.open("ab", buffering=0)
        except OSError as error:
            raise UsageError(f"{path} cannot be written: {error.strerror or error}") from error
        try:
            portalocker.lock(file, flag | LockFlags.NON_BLOCKING)
        except portalocker.AlreadyLocked:
            file.close()
            return None
        except portalocker.LockException as error:
            file.close()
            raise UsageError(f"{root}: its file system has no locks ({error}): choose another --out") from error
        if _is(file, path):
            return file
        file.close()  # the one who held it has removed it


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


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")
