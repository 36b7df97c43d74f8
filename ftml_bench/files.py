"""How files that others made are opened: what is missing, unreadable or damaged is said in one line, by its name; and
how ours are written: as a whole or not at all."""

from __future__ import annotations

import hashlib
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from ftml_bench.errors import UsageError


def is_there(path: Path) -> bool:
    """Whether anything has that name, be it a file or not, readable or not: opening it says what is wrong with it."""
    try:
        path.lstat()
    except FileNotFoundError:
        return False
    except OSError:  # such as a folder that may not be searched, or a file in the place of a folder
        return True
    return True


def in_home(path: str | os.PathLike[str]) -> Path:
    """A path in which "~" stands for the user's home.

    :raises UsageError: there is none, as in a container without users.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise UsageError(f"{path}: there is no home folder: set HOME, XDG_CACHE_HOME or FTML_BENCH_DATA") from error


@contextmanager
def opened(path: Path) -> Iterator[BinaryIO]:
    """A file to read from.

    :raises UsageError: if it cannot be opened, or read to where it is needed; says why.
    """
    try:
        # Opening a pipe would wait for somebody to write into it.
        if not path.is_file():
            path.stat()
            raise UsageError(f"{path} cannot be read: it is {'a folder' if path.is_dir() else 'no file'}")
        with path.open("rb") as file:
            yield file
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror or error}") from error


def check_md5(path: Path, file: BinaryIO, expected: str) -> None:
    """Compare the MD5 of a file, `path` opened at its start, and go back there.

    :raises UsageError: if it is another.
    """
    md5 = hashlib.md5(usedforsecurity=False)
    while block := file.read(1 << 20):
        md5.update(block)
    if md5.hexdigest() != expected:
        raise damaged(path, f"its MD5 is {md5.hexdigest()}, expected {expected}")
    file.seek(0)


def damaged(path: Path, what: str, mend: str = "remove it and fetch it again") -> UsageError:
    """The error for a file that is not what it has to be."""
    return UsageError(f"{path} is damaged: {what}; {mend}")


@contextmanager
def _named(path: Path, temporary: Path) -> Iterator[None]:
    """Names the file in what the system says of a write, as of a full disk: only errors of opening have a name, that of
    `temporary`."""
    try:
        yield
    except OSError as error:
        if error.filename in (None, str(temporary)) and error.errno is not None:
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A file to write, which takes the place of `path` as a whole when all is written; if anything fails, what was
    there stays.

    It is on the disk before it gets its name, so that a power cut, too, leaves the old content or the new. Of several
    that write at once each writes a whole file, and the last one's stays.
    """
    # Not by the process's number, which threads share, and processes in two containers on one disk may.
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
    try:
        with _named(path, temporary):
            with temporary.open("xb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Puts the names in a folder on the disk, where the system can (on Windows a folder cannot be opened)."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_temporary(path: Path) -> None:
    """Removes what a process that was ended while it wrote `path` has left of that."""
    for temporary in path.parent.glob(f".{path.name}.*"):
        temporary.unlink(missing_ok=True)
