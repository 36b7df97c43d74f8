"""Where the points of a buffer lie: in the stream's own tensors, or in a file, so that they need not fit into memory.

Both file points one after the other, number them 0, 1, ... and read any of them back in one go. What that costs does
not depend on how many points there are, nor on how many pieces they came in.
"""

from __future__ import annotations

import math
import mmap
import os
import tempfile
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from ftml_bench.benchmarks.stacked import StackedDataset
from ftml_bench.errors import UsageError

AT_ONCE = 1024  # points that are written to a file at a time


class Storage(Protocol):
    """Points in the order in which they came."""

    def append(self, data: StackedDataset) -> Tensor:
        """File the points of `data`; their numbers, (n,) int64."""
        ...

    def take(self, numbers: Tensor) -> tuple[Tensor, Tensor]:
        """The points with these numbers, (n,) int64: x (n, *input) as stored (images: bytes), and y (n, *target)."""
        ...

    def labels(self, numbers: Tensor) -> Tensor:
        """Their y alone, (n, *target)."""
        ...

    def tensors(self) -> tuple[Tensor, Tensor, Tensor] | None:
        """Inputs, the row among them of every point by its number, and its y, on the device; None if not there."""
        ...


class Grown:
    """A tensor that grows at its end. Its space is doubled when it is full, so that n rows cost O(n) in all."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._space: Tensor | None = None
        self._n = 0

    def __len__(self) -> int:
        return self._n

    def append(self, rows: Tensor) -> None:
        """Add rows (n, ...) of the shape and type of those before."""
        if self._space is None:
            self._space = torch.empty_like(rows, device=self._device)
        check_alike(rows, self._space)
        end = self._n + len(rows)
        if end > len(self._space):
            space = self._space.new_empty((max(end, 2 * len(self._space)), *rows.shape[1:]))
            space[: self._n] = self._space[: self._n]
            self._space = space
        self._space[self._n : end] = rows
        self._n = end

    @property
    def space(self) -> Tensor:
        """The rows, with room for more at the end."""
        assert self._space is not None
        return self._space

    def __getitem__(self, numbers: Tensor) -> Tensor:
        """The rows with these numbers, (n, ...)."""
        return self.space.index_select(0, numbers)  # several times faster than self._space[numbers]


class SharedStorage:
    """Reads points from the tensors that they arrived in: of an image no copy is made.

    :param device: where points are read; for another than the CPU each of those tensors is copied there, once.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._bases: list[Tensor] = []
        self._known: dict[int, tuple[int, Tensor]] = {}  # id -> its place in _bases, and the tensor itself, kept alive
        self._base, self._row, self._y = Grown(device), Grown(device), Grown(device)

    def append(self, data: StackedDataset) -> Tensor:
        """See `Storage.append`."""
        base, known = self._known.get(id(data.x), (0, None))
        if known is not data.x:  # in a deep copy the ids are still those of the original's tensors
            base = len(self._bases)
            self._known[id(data.x)] = base, data.x
            self._bases.append(data.x.to(self._device))
        start = len(self._y)
        self._y.append(data.y)
        self._row.append(data.rows)
        self._base.append(torch.full((len(data),), base))
        return torch.arange(start, len(self._y))

    def take(self, numbers: Tensor) -> tuple[Tensor, Tensor]:
        """See `Storage.take`."""
        numbers = numbers.to(self._device)
        row, y = self._row[numbers], self._y[numbers]
        if len(self._bases) == 1:
            return self._bases[0].index_select(0, row), y
        base = self._base[numbers]
        x = torch.cat([self._bases[i].index_select(0, row[base == i]) for i in base.unique().tolist()])
        by_base = base.argsort(stable=True)  # the order that they are in now
        return x.index_select(0, by_base.argsort()), y

    def labels(self, numbers: Tensor) -> Tensor:
        """See `Storage.labels`."""
        return self._y[numbers.to(self._device)]

    def tensors(self) -> tuple[Tensor, Tensor, Tensor] | None:
        """See `Storage.tensors`; only where all points came in one tensor."""
        return (self._bases[0], self._row.space, self._y.space) if len(self._bases) == 1 else None


class FileStorage:
    """Copies inputs into a file and maps it: its pages are the system's, which keeps as many as there is room for.

    Labels and numbers stay in memory, with what its round knows of a point 40 bytes for classes. The file has no name,
    belongs to this storage alone, and is gone with it. It grows by doubling; space not yet written takes none on the
    disk.

    :param folder: a folder on a disk with room for all inputs; made if missing.
    :param device: where points are brought to.
    """

    def __init__(self, folder: str | os.PathLike[str], device: torch.device) -> None:
        self._device = device
        try:
            Path(folder).mkdir(parents=True, exist_ok=True)
            self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 (open as long as the storage lives)
        except OSError as error:
            raise UsageError(f"buffer folder {folder}: {error.strerror}: expected one to write into") from error
        self._staging: Tensor | None = None
        self._x: Tensor | None = None  # the file, with room for more than is in it
        self._y = Grown(device)

    def append(self, data: StackedDataset) -> Tensor:
        """See `Storage.append`."""
        # Always through the same memory: pieces of their own would, when they are freed, be broken up by the little
        # that stays of each arrival, and what is between would be lost to the next piece.
        if self._staging is None:
            self._staging = torch.empty((AT_ONCE, *data.x.shape[1:]), dtype=data.x.dtype)
        check_alike(data.x, self._staging)
        x, start = data.x.cpu(), len(self._y)
        # Written, not assigned: a full disk is an error then, and what is written the system may take at once.
        self._file.seek(start * _bytes(x))
        for rows in data.rows.split(AT_ONCE):
            piece = torch.index_select(x, 0, rows, out=self._staging[: len(rows)])
            self._file.write(memoryview(piece.numpy()).cast("B"))  # type: ignore[arg-type]
        self._file.flush()
        self._y.append(data.y)
        self._map(len(self._y))
        return torch.arange(start, len(self._y))

    def take(self, numbers: Tensor) -> tuple[Tensor, Tensor]:
        """See `Storage.take`."""
        assert self._x is not None
        return self._x.index_select(0, numbers).to(self._device), self.labels(numbers)

    def labels(self, numbers: Tensor) -> Tensor:
        """See `Storage.labels`."""
        return self._y[numbers.to(self._device)]

    def tensors(self) -> None:
        """See `Storage.tensors`."""
        return None

    def dataset(self, numbers: Tensor) -> StackedDataset:
        """The points with these numbers as a dataset, which reads from the file."""
        assert self._x is not None
        return StackedDataset(self._x, self.labels(numbers).cpu(), numbers)

    def _map(self, points: int) -> None:
        """Make the mapping reach over so many points at least."""
        assert self._staging is not None
        room = 0 if self._x is None else len(self._x)
        if points <= room:
            return
        room, size = max(points, 2 * room), _bytes(self._staging)
        self._file.truncate(room * size)
        pages = mmap.mmap(self._file.fileno(), room * size)
        if hasattr(mmap, "MADV_RANDOM"):  # not on Windows
            pages.madvise(mmap.MADV_RANDOM)  # a point alone comes from a disk, not what lies around it
        self._x = torch.frombuffer(pages, dtype=self._staging.dtype).view(room, *self._staging.shape[1:])


def check_alike(rows: Tensor, others: Tensor) -> None:
    """
    :raises UsageError: if the points of `rows` and `others` differ in shape or type.
    """
    if rows.shape[1:] != others.shape[1:] or rows.dtype != others.dtype:
        raise UsageError(
            f"points of shape {tuple(rows.shape[1:])} and type {rows.dtype} came to a buffer of points of shape "
            f"{tuple(others.shape[1:])} and type {others.dtype}: expected one shape and type in a stream"
        )


def _bytes(x: Tensor) -> int:
    """Bytes of one row."""
    return math.prod(x.shape[1:]) * x.element_size()
