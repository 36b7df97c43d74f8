"""Datapoints as rows of one stacked tensor, which many datasets share: images stay bytes and are stored once."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils.data import Dataset


def as_input(x: Tensor) -> Tensor:
    """What a model gets: bytes become float32 in [0, 1], anything else is returned as it is.

    The streams use it as their transform, so it runs when a datapoint is read and no float copy is kept.

    :param x: one datapoint or a batch of them, any shape.
    """
    return x / 255 if x.dtype == torch.uint8 else x  # one pass; bit for bit x.float() / 255


class StackedDataset(Dataset[tuple[Tensor, "int | Tensor"]]):
    """Some rows of a shared tensor, with their labels."""

    def __init__(self, x: Tensor, y: Tensor, rows: Tensor) -> None:
        """
        :param x: the base, (M, *input): bytes for images. Kept by reference, never copied.
        :param y: the labels of this dataset's N points: (N,) int64 classes, (N, ...) where a point has one a token or
            pixel, or (N, k) float32 regression targets.
        :param rows: (N,) int64, where in `x` each point is.
        :raises ValueError: if `rows` and `y` have different lengths, or a row is outside `x`.
        """
        if len(y) != len(rows):
            raise ValueError(f"{len(y)} labels for {len(rows)} rows")
        if len(rows) and not 0 <= int(rows.min()) <= int(rows.max()) < len(x):
            raise ValueError(f"rows from {int(rows.min())} to {int(rows.max())} in a base of {len(x)}")
        self.x = x
        self.y = y
        self.rows = rows

    @property
    def is_classification(self) -> bool:
        """Whether the labels are classes."""
        return not self.y.is_floating_point()

    @property
    def targets(self) -> Tensor:
        """The classes, (N,) or (N, ...) int64; Avalanche looks for this name.

        :raises AttributeError: for regression, where Avalanche must not take targets for classes.
        """
        if not self.is_classification:
            raise AttributeError("targets: these are regression data, see y")
        return self.y

    def __repr__(self) -> str:
        return f"<{len(self)} points: {self.kind}>"

    @property
    def kind(self) -> str:
        """What a point is, for people: "inputs (3, 14, 14), classes"."""
        of_point = tuple(self.y.shape[1:])
        targets = f"targets {of_point}" if not self.is_classification else f"classes {of_point or ''}".strip()
        return f"inputs {tuple(self.x.shape[1:])}, {targets}"

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[Tensor, int | Tensor]:
        """One point, as stored: its input, and its class as an int, its classes or its regression targets, (k,)."""
        y = self.y[index]
        return self.x[self.rows[index]], int(y) if self.is_classification and y.dim() == 0 else y

    def subset(self, indices: Tensor) -> StackedDataset:
        """The points at `indices`, (n,) int64, in that order; shares the base."""
        return StackedDataset(self.x, self.y[indices], self.rows[indices])

    def take(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """The points at `indices`, (n,) int64, stacked: (n, *input) as stored (images: bytes), and their labels."""
        return self.x[self.rows[indices]], self.y[indices]
