"""What the rainbow streams share: the order of the tasks, and a task's images made from grey digits."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from ftml_bench.benchmarks.checks import check_int
from ftml_bench.benchmarks.stacked import StackedDataset
from ftml_bench.benchmarks.transforms import TRANSFORMATIONS, Transformation
from ftml_bench.errors import UsageError, is_number
from ftml_bench.seeding import generator

IMAGE_SIZES = (14, 28)


def check_image_size(image_size: object) -> int:
    """`image_size`, if it is 14 or 28; otherwise a UsageError."""
    size = check_int("image_size", image_size)
    if size not in IMAGE_SIZES:
        raise UsageError(f"image_size {size}: expected {' or '.join(map(str, IMAGE_SIZES))}")
    return size


def task_order(seed: int, stream: str, rounds: int) -> list[Transformation]:
    """The transformations of the rounds: the first `rounds` of a random order of all 56."""
    order = permutation(len(TRANSFORMATIONS), seed, stream, "tasks")
    return [TRANSFORMATIONS[i] for i in order[:rounds].tolist()]


def smoothed_cross_entropy(label_smoothing: float) -> nn.CrossEntropyLoss:
    """The streams' loss; a UsageError if it cannot be smoothed so much."""
    if not is_number(label_smoothing) or not 0 <= label_smoothing < 1:
        raise UsageError(f"label_smoothing {label_smoothing!r}: expected a number from 0 to below 1")
    return nn.CrossEntropyLoss(label_smoothing=label_smoothing)


def permutation(n: int, seed: int, stream: str, what: str) -> Tensor:
    """A random order of n things, (n,) int64, from the generator that belongs to this stream and to `what`."""
    return torch.randperm(n, generator=generator(seed, "stream", stream, what))


def render(
    grey: Tensor, labels: Tensor, sources: Sequence[Tensor], transformations: Sequence[Callable[[Tensor], Tensor]]
) -> list[StackedDataset]:
    """The data of all rounds: each round's digits under its transformation, on one base of bytes.

    :param grey: (M, H, H) uint8, digits bright on 0.
    :param labels: (M,) int64.
    :param sources: for each round, (N,) int64: which of the digits are its images.
    :param transformations: one a round: (N, H, H) uint8 to (N, 3, H, H) uint8.
    :return: one dataset a round; their base is (sum of N, 3, H, H) uint8.
    """
    base = torch.empty((sum(map(len, sources)), 3, *grey.shape[1:]), dtype=torch.uint8)
    datasets = []
    start = 0
    for rows, transform in zip(sources, transformations, strict=True):
        place = torch.arange(start, start + len(rows))
        start += len(rows)
        base[place[0] : start] = transform(grey[rows])
        datasets.append(StackedDataset(base, labels[rows], place))
    return datasets
