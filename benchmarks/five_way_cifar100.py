"""Five-way CIFAR-100 (Finn et al. 2019, section 6.2): each task brings a class that no earlier task had."""

from __future__ import annotations

import os
from typing import Literal

import torch
from torch import Tensor, nn

from ftml_bench.benchmarks.arrivals import balanced_order
from ftml_bench.benchmarks.checks import check_int
from ftml_bench.benchmarks.data.cifar100 import CLASSES, IMAGES, SIZE, SUBSET_IMAGES, read_cifar100
from ftml_bench.benchmarks.stacked import StackedDataset
from ftml_bench.benchmarks.stream import TaskStream, carry, reachable
from ftml_bench.errors import UsageError, unknown
from ftml_bench.seeding import generator

WAYS = 5
COMPANIONS = ("earlier", "all")
_PAPER_IMAGES = 400  # training images of each class


class FiveWayCIFAR100(TaskStream):
    """A sequence of five-way tasks on photographs: one new class a round, with four companions.

    The classes come in a random order. The first `warmup_classes` of them are there from the beginning as companions;
    each round brings the next one. The five classes of a round have the labels 0 to 4 in random order, so a class has
    another label in another task; within a task labels are fixed. Data are training images of CIFAR-100, held-out data
    test images. A class brings the same images to every task that it is in; they are stored once.

    A round's data arrive in a random order that is balanced over its classes, whatever the size of the arrivals. As
    the paper counts, one more image of each class is five datapoints.

    Each experience has `.original_classes`, the five fine labels of CIFAR-100 (0 to 99; label k is the k-th of them),
    `.new_class`, that of them which is new, and `.task_name`. There is no threshold: the paper finds none that is
    clear, and compares accuracies after 50, 250 and 2,000 datapoints.
    """

    version = 1

    def __init__(
        self,
        *,
        seed: int = 0,
        rounds: int | None = None,
        images_per_class: int | None = None,
        held_out_per_class: int | None = None,
        warmup_classes: int = WAYS - 1,
        companions: Literal["earlier", "all"] = "earlier",
        subset: bool = False,
        root: str | os.PathLike[str] | None = None,
    ) -> None:
        """
        :param seed: decides the order of the classes, the companions and the labels. With another number of rounds or
            images the tasks that both have are the same.
        :param rounds: 1 to 100 - warmup_classes; None: that many (96).
        :param images_per_class: training images of each class, 1 to 500 (the first in file order); None: 400, as in the
            paper. Subset: 1 to 120, None: 120. A round has five times as many datapoints.
        :param held_out_per_class: test images of each class, 1 to 100; None: 100. Subset: 1 to 40, None: 40.
        :param warmup_classes: classes that are companions from the first round on, 4 to 99 (the authors' code: 20).
        :param companions: "earlier": drawn from the classes that earlier rounds or the warm-up brought; "all":
            uniformly from the 99 others, so that a class may be a companion before it is the new one.
        :param subset: only the first 120 training and 40 test images of each class (27 MB of strips will do).
        :param root: the data folder, see :func:`~ftml_bench.benchmarks.data.data_root`.
        :raises UsageError: for arguments outside these ranges, or if CIFAR-100 is missing or damaged.
        """
        seed = check_int("seed", seed)
        warmup_classes = check_int("warmup_classes", warmup_classes, least=WAYS - 1, most=len(CLASSES) - 1)
        rounds = _check_rounds(rounds, warmup_classes)
        available = SUBSET_IMAGES if subset else IMAGES
        images = _check_images("images_per_class", images_per_class, available["train"], subset)
        held_out = _check_images("held_out_per_class", held_out_per_class, available["test"], subset)
        if companions not in COMPANIONS:
            raise unknown("value of companions", companions, COMPANIONS)

        order = torch.randperm(len(CLASSES), generator=generator(seed, "stream", "five-way-cifar100", "classes"))
        new_classes = order[warmup_classes:][:rounds].tolist()
        tasks = [
            _task(seed, t, new, order[: warmup_classes + t] if companions == "earlier" else order[order != new])
            for t, new in enumerate(new_classes)
        ]
        used = sorted({label for task in tasks for label in task})
        super().__init__(
            title="Five-way CIFAR-100",
            train=_datasets(_base("train", images, used, subset, root), images, used, tasks),
            held_out=_datasets(_base("test", held_out, used, subset, root), held_out, used, tasks),
            threshold=None,
            checkpoints=reachable([50, 250], WAYS * images),
            arrivals=10 * WAYS,
            criterion=nn.CrossEntropyLoss(label_smoothing=0.1),
            inner_lr=0.1,
            update_steps=5,
        )
        names = [_name(new, task) for new, task in zip(new_classes, tasks, strict=True)]
        for stream in self.streams.values():
            carry(stream, original_classes=tasks, new_class=new_classes, task_name=names)
        carry(self.train_stream, arrival_order=[balanced_order] * rounds)

    def model(self) -> nn.Module:
        """The paper's network with five outputs: five convolutions of 32 filters."""
        from ftml_bench.models import RainbowNet

        return RainbowNet(image_size=SIZE, filters=32, layers=5, classes=WAYS)


def _check_rounds(rounds: int | None, warmup_classes: int) -> int:
    most = len(CLASSES) - warmup_classes
    if rounds is None:
        return most
    rounds = check_int("rounds", rounds, least=1)
    if rounds > most:
        raise UsageError(
            f"{rounds} rounds, each with a new class, after {warmup_classes} warmup_classes: CIFAR-100 has "
            f"{len(CLASSES)} classes, so rounds can be {most} at most"
        )
    return rounds


def _check_images(name: str, value: int | None, available: int, subset: bool) -> int:
    if value is None:
        return min(_PAPER_IMAGES, available)
    value = check_int(name, value, least=1)
    if value > available:
        where = "the subset of CIFAR-100" if subset else "CIFAR-100"
        raise UsageError(f"{name} {value}: a class has {available} such images in {where}")
    return value


def _task(seed: int, round_index: int, new: int, others: Tensor) -> list[int]:
    """The original classes of a round, label by label: the new one and four of `others`."""
    rng = generator(seed, "stream", "five-way-cifar100", "round", round_index)
    companions = others[torch.randperm(len(others), generator=rng)[: WAYS - 1]].tolist()
    classes = [new, *companions]
    return [classes[i] for i in torch.randperm(WAYS, generator=rng).tolist()]


def _name(new: int, task: list[int]) -> str:
    labels = [f"{label} {CLASSES[original]}" for label, original in enumerate(task)]
    return f"{CLASSES[new]} is new\n{', '.join(labels[:3])},\n{', '.join(labels[3:])}"


def _base(split: str, count: int, used: list[int], subset: bool, root: str | os.PathLike[str] | None) -> Tensor:
    """The first `count` images of the classes that are used, (U * count, 3, 32, 32) uint8."""
    images = read_cifar100(split, subset=subset, root=root)
    if len(used) == len(images) and count == images.shape[1]:
        return images.flatten(0, 1)
    return images[used, :count].flatten(0, 1)


def _datasets(base: Tensor, count: int, used: list[int], tasks: list[list[int]]) -> list[StackedDataset]:
    """A round's data: the images of its five classes, one of each in turn, as rows of the common base."""
    labels = torch.arange(WAYS).repeat(count)
    place = torch.zeros(len(CLASSES), dtype=torch.int64)
    place[used] = torch.arange(len(used)) * count
    return [StackedDataset(base, labels, (place[task] + torch.arange(count)[:, None]).flatten()) for task in tasks]
