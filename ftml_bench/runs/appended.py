"""The files of a cell that grow while it runs: tables of CSV, and TensorBoard's events."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ftml_bench.errors import UsageError
from ftml_bench.runs.storage import StorageError, storing

TABLES = ("curve.csv", "timing.csv", "measures.csv")
EVENTS = "events.out.tfevents.*"  # as TensorBoard's writer calls them

#: Of each file, by its path within the cell's folder: length in bytes, and SHA-256 of that much of it.
Contents = dict[str, list[Any]]


class Table:
    """A CSV file that grows by whole rows, each on its way to the disk when `append` returns.

    It knows what it has to hold, so that it is seen if another process wrote to it, or if it was removed.
    """

    def __init__(self, path: Path, columns: Iterable[str], *, new: bool) -> None:
        """Begin a table, or go on with one that is there.

        :raises StorageError: it cannot be opened or written.
        """
        self.path = path
        self._hash = hashlib.sha256()
        self._lines = 0
        with storing(path):
            if not new:
                content = path.read_bytes()
                self._hash.update(content)
                self._lines = content.count(b"\n")
            self._file = path.open("wb" if new else "ab", buffering=0)
        if new:
            self.append(columns)

    def append(self, values: Iterable[Any]) -> None:
        """Add a row; floats by repr, so that they are read back bit for bit.

        :raises StorageError: it cannot be written, or somebody has removed or replaced the file.
        """
        line = ",".join(repr(float(v)) if isinstance(v, float) else str(v) for v in values).encode() + b"\n"
        self.check_there()
        with storing(self.path):
            written = 0
            while written < len(line):  # a disk that becomes full takes a part
                written += self._file.write(line[written:])
        self._hash.update(line)
        self._lines += 1

    @property
    def rows(self) -> int:
        """How many rows it has, the names of its columns not counted."""
        return self._lines - 1

    @property
    def digest(self) -> str:
        """SHA-256 of what it has to hold."""
        return self._hash.hexdigest()

    def check_there(self) -> None:
        """See that the file that is written is still the one of that name.

        :raises StorageError: somebody has removed or replaced it.
        """
        with storing(self.path):
            try:
                same = os.path.samestat(os.fstat(self._file.fileno()), self.path.stat())
            except FileNotFoundError:
                same = False
        if not same:
            raise StorageError(self.path, "was removed or replaced while it was written")

    def check(self) -> None:
        """See that it holds what was appended to it and nothing else.

        :raises StorageError: it does not.
        """
        self.check_there()
        with storing(self.path):
            content = self.path.read_bytes()
        if hashlib.sha256(content).digest() != self._hash.digest():
            raise StorageError(self.path, "is not what was written to it: has another process written there?")

    def close(self) -> None:
        """Check it, and end it: it is on the disk then."""
        self.check()
        with storing(self.path):
            os.fsync(self._file.fileno())
            self._file.close()


def table_hash(content: bytes) -> dict[str, Any]:
    """What a record says of a table: {"rows": without the names of its columns, "sha256": ...}."""
    return {"rows": max(content.count(b"\n") - 1, 0), "sha256": hashlib.sha256(content).hexdigest()}


def contents(folder: Path) -> Contents:
    """What the growing files of a cell hold now, which is on the disk when this returns."""
    found: Contents = {}
    for path in _appended(folder):
        with path.open("rb") as file:
            os.fsync(file.fileno())
            content = file.read()
        found[path.relative_to(folder).as_posix()] = [len(content), hashlib.sha256(content).hexdigest()]
    return found


def cut_back(folder: Path, then: Contents) -> None:
    """Brings the growing files to what `contents` said of them.

    :raises UsageError: one of them does not begin with that; then nothing is changed.
    """
    for name, (length, digest) in then.items():
        path = folder / name
        content = path.read_bytes()[:length] if path.is_file() else b""
        if len(content) < length:
            raise UsageError(f"{path} is shorter than when the state was saved")
        if hashlib.sha256(content).hexdigest() != digest:
            raise UsageError(f"{path} is not the one that the state was saved with")
    for path in _appended(folder):
        name = path.relative_to(folder).as_posix()
        if name in then:
            os.truncate(path, then[name][0])
        else:
            path.unlink()


def event_files(folder: Path) -> list[Path]:
    """What a cell has written for TensorBoard, oldest first; cells of before have it in `tb`."""
    return [path for where in ("tb", ".") for path in sorted(folder.glob(f"{where}/{EVENTS}"))]


def _appended(folder: Path) -> list[Path]:
    return [path for path in (*(folder / name for name in TABLES), *event_files(folder)) if path.is_file()]
