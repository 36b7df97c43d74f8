"""What the streams of coloured digits share: the colours, and rounds with as many images of every digit.

Finn et al. 2019, Figure 1 (right), show the idea and give no values: the colours are ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from ftml_bench.benchmarks.checks import check_int
from ftml_bench.benchmarks.transforms import rainbow
from ftml_bench.errors import UsageError

CLASSES = 10
COLORS = 56
_LIGHTEST = 65.0  # L* in 0..100: white strokes are seen on anything darker


@dataclass(frozen=True)
class Coloring:
    """A background, RGB from 0 to 255."""

    background: tuple[int, int, int]

    def __str__(self) -> str:
        return "#{:02x}{:02x}{:02x}".format(*self.background)

    def __call__(self, grey: Tensor) -> Tensor:
        """White digits on this background, (N, 3, H, W) uint8; see `transforms.rainbow`. `grey`: (N, H, W) uint8."""
        return rainbow(grey, self.background, "whole", 0)


@lru_cache
def palette() -> tuple[Coloring, ...]:
    """The 56 backgrounds: black, then each time the colour that is farthest from all before it.

    Chosen among 16 levels of red, green and blue, none lighter than L* = 65. Distances are those of CIELAB (CIE 1976),
    where equal distances look about equally large; the two nearest colours are 22 apart.
    """
    levels = torch.arange(0, 256, 17)
    rgb = torch.cartesian_prod(levels, levels, levels)
    lab = _cielab(rgb)
    rgb, lab = rgb[lab[:, 0] <= _LIGHTEST], lab[lab[:, 0] <= _LIGHTEST]
    chosen = [0]
    nearest = torch.full((len(lab),), torch.inf, dtype=lab.dtype)
    while len(chosen) < COLORS:
        nearest = torch.minimum(nearest, (lab - lab[chosen[-1]]).norm(dim=1))
        chosen.append(int(nearest.argmax()))
    return tuple(Coloring((red, green, blue)) for red, green, blue in rgb[chosen].tolist())


def check_classwise(name: str, value: object, most: int | None = None) -> int:
    """How many images of each digit there are in `value` images: a tenth.

    :raises UsageError: if it is not a multiple of 10 from 10 to `most`.
    """
    number = check_int(name, value, least=CLASSES, most=most)
    if number % CLASSES:
        raise UsageError(f"{name} {number}: expected a multiple of {CLASSES}, as many images of every digit")
    return number // CLASSES


def rows_by_class(labels: Tensor, order: Tensor) -> list[Tensor]:
    """Of each class its rows, in the order of `order`.

    :param labels: (M,) int64; `order`: (n,) int64, rows of `labels`.
    :return: one tensor a class, int64, of as many rows as it has among `order`.
    """
    return [order[labels[order] == label] for label in range(CLASSES)]


def pick(rows: Sequence[Tensor], start: int, count: int, shuffle: Tensor) -> Tensor:
    """`count` rows of every class from the `start`-th on, (10 count,), in the order of `shuffle`, a permutation."""
    return torch.cat([of_class[start : start + count] for of_class in rows])[shuffle]


def _cielab(rgb: Tensor) -> Tensor:
    """L*, a*, b* (white point D65) of sRGB colours, (N, 3) from 0 to 255: float64."""
    value = rgb.double() / 255
    linear = torch.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)
    to_xyz = [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
    white = torch.tensor([0.95047, 1.0, 1.08883], dtype=torch.float64)
    x = linear @ torch.tensor(to_xyz, dtype=torch.float64).T / white
    f = torch.where(x > 216 / 24389, x ** (1 / 3), (24389 / 27 * x + 16) / 116)
    return torch.stack([116 * f[:, 1] - 16, 500 * (f[:, 0] - f[:, 1]), 200 * (f[:, 1] - f[:, 2])], dim=1)
