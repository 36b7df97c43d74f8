"""Rainbow MNIST (Finn et al. 2019, section 6.1): MNIST under 56 colours, sizes and rotations, one a round."""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import nn

from ftml_bench.benchmarks.checks import check_int, check_total
from ftml_bench.benchmarks.data.mnist import TEST_IMAGES, TRAIN_IMAGES, read_mnist
from ftml_bench.benchmarks.data.rainbow_images import read_groups
from ftml_bench.benchmarks.rainbow import (
    check_image_size,
    permutation,
    render,
    smoothed_cross_entropy,
    task_order,
)
from ftml_bench.benchmarks.stacked import StackedDataset
from ftml_bench.benchmarks.stream import TaskStream, carry, reachable
from ftml_bench.benchmarks.transforms import TRANSFORMATIONS, resize
from ftml_bench.errors import UsageError


class RainbowMNIST(TaskStream):
    """56 tasks of ten classes: a background colour (7), a size (2) and a rotation (4), in random order.

    No image of MNIST is in two tasks: the rounds' data are cut from one random order of MNIST's training set, their
    held-out data from one of its test set, under the same transformation. The authors did not publish their images:
    colours and placement are ours (:mod:`~ftml_bench.benchmarks.transforms`).

    With `images`, the images of others: experiences have `.group`, its name, in the place of `.transformation`, and the
    stream has `.image_set`, the set's name and a hash, which records name.

    Each experience has `.transformation`, and `.sources`, (N,) int64: which images of MNIST's training set (held-out
    data: test set) its images are.
    """

    version = 1

    def __init__(
        self,
        *,
        seed: int = 0,
        rounds: int = len(TRANSFORMATIONS),
        images_per_round: int = 900,
        held_out_per_round: int = 178,
        image_size: int = 28,
        order: int | None = None,
        label_smoothing: float = 0.1,
        images: str | os.PathLike[str] | None = None,
        root: str | os.PathLike[str] | None = None,
    ) -> None:
        """
        :param seed: decides the order of the tasks and who gets which images. With another number of rounds the rounds
            that both have are the same.
        :param rounds: 1 to 56.
        :param images_per_round: datapoints of each round; rounds x images_per_round is 60,000 at most.
        :param held_out_per_round: held-out images of each round; rounds x held_out_per_round is 10,000 at most.
        :param image_size: side of the images in pixels: 28, or 14 (the mean of each 2 x 2 pixels).
        :param order: decides which tasks come, and in which order, alone; None: `seed` does.
        :param label_smoothing: of the cross entropy that is trained and reported, from 0 to below 1.
        :param images: a public image set by this name, a folder or a pickle, instead of ours (two forms:
            docs/streams.md). A round is one of its groups: images_per_round + held_out_per_round of its images.
        :param root: the data folder, see :func:`~ftml_bench.benchmarks.data.data_root`.
        :raises UsageError: for arguments outside these ranges, or if MNIST is missing or damaged.
        """
        seed = check_int("seed", seed)
        rounds = check_int("rounds", rounds, least=1, most=len(TRANSFORMATIONS))
        sizes = {
            "train": check_int("images_per_round", images_per_round, least=1),
            "test": check_int("held_out_per_round", held_out_per_round, least=1),
        }
        self.image_size = check_image_size(image_size)
        order = seed if order is None else check_int("order", order)
        criterion = smoothed_cross_entropy(label_smoothing)
        if images is None:
            datasets, known = _of_mnist(seed, order, rounds, sizes, self.image_size, root)
        else:
            self.image_set, datasets, known = _of_images(images, seed, order, rounds, sizes, self.image_size)
        super().__init__(
            title="Rainbow MNIST" if images is None else f"Rainbow MNIST ({self.image_set})",
            train=datasets["train"],
            held_out=datasets["test"],
            threshold=("accuracy", 0.9),
            checkpoints=reachable([100, 900], sizes["train"]),
            arrivals=20,
            criterion=criterion,
            inner_lr=0.1,
            update_steps=5,
        )
        for split, stream in self.streams.items():
            carry(stream, **known[split])

    def model(self) -> nn.Module:
        """The paper's network: five convolutions of 32 filters."""
        from ftml_bench.models import RainbowNet

        return RainbowNet(image_size=self.image_size, filters=32, layers=5, classes=10)


Datasets = dict[str, list[StackedDataset]]  # by split, one a round
Known = dict[str, dict[str, list[Any]]]  # by split, what its experiences carry


def _of_mnist(
    seed: int, order: int, rounds: int, sizes: dict[str, int], image_size: int, root: str | os.PathLike[str] | None
) -> tuple[Datasets, Known]:
    check_total(rounds, "images_per_round", sizes["train"], TRAIN_IMAGES, "MNIST's training set")
    check_total(rounds, "held_out_per_round", sizes["test"], TEST_IMAGES, "MNIST's test set")
    transformations = task_order(order, "rainbow-mnist", rounds)
    datasets: Datasets = {}
    known: Known = {}
    for split, size in sizes.items():
        grey, labels = read_mnist(split, root)
        images = permutation(len(grey), seed, "rainbow-mnist", split)
        sources = list(images[: rounds * size].split(size))
        datasets[split] = render(resize(grey, image_size), labels, sources, transformations)
        known[split] = {"transformation": transformations, "sources": sources}
    return datasets, known


def _of_images(
    images: str | os.PathLike[str], seed: int, order: int, rounds: int, sizes: dict[str, int], image_size: int
) -> tuple[str, Datasets, Known]:
    """A group a round: `sizes` of its images, in random order, for training, then for the held-out data."""
    name, groups = read_groups(images)
    if rounds > len(groups):
        raise UsageError(f"rounds {rounds}: {images} has {len(groups)} groups")
    places = permutation(len(groups), order, "rainbow-mnist", "groups")[:rounds].tolist()
    chosen = [groups[place] for place in places]
    for group in chosen:
        if sum(sizes.values()) > len(group.y):
            raise UsageError(
                f"images_per_round {sizes['train']} + held_out_per_round {sizes['test']} = {sum(sizes.values())}, but "
                f"group {group.name} of {images} has {len(group.y)} images"
            )
    base = torch.cat([resize(group.x.flatten(0, 1), image_size).unflatten(0, (-1, 3)) for group in chosen])
    datasets: Datasets = {split: [] for split in sizes}
    known: Known = {split: {"group": [group.name for group in chosen], "sources": []} for split in sizes}
    start = 0
    for place, group in zip(places, chosen, strict=True):
        own = permutation(len(group.y), seed, "rainbow-mnist", f"group {place}")
        parts = own[: sum(sizes.values())].split(list(sizes.values()))
        for split, part in zip(sizes, parts, strict=True):
            datasets[split].append(StackedDataset(base, group.y[part], start + part))
            known[split]["sources"].append(part)
        start += len(group.y)
    return name, datasets, known
