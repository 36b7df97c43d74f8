"""Coloured MNIST (Finn et al. 2019, Figure 1, right): a background colour a round, the digits one after the other."""

from __future__ import annotations

import os

from torch import nn

from ftml_bench.benchmarks.arrivals import class_by_class
from ftml_bench.benchmarks.checks import check_int
from ftml_bench.benchmarks.colored import CLASSES, COLORS, check_classwise, palette, pick, rows_by_class
from ftml_bench.benchmarks.data.mnist import read_mnist
from ftml_bench.benchmarks.rainbow import check_image_size, permutation, render
from ftml_bench.benchmarks.stream import TaskStream, carry, reachable
from ftml_bench.benchmarks.transforms import resize
from ftml_bench.errors import UsageError


class ColoredMNIST(TaskStream):
    """Each task has a background colour that no other has, and its data arrive class by class.

    When a round begins, all that is known of its colour is one digit. Who takes the colour for the label says that
    digit to every image of the colour; the held-out data have all ten digits, equally often, so that it shows. Which
    digit comes first is random (see :func:`~ftml_bench.benchmarks.arrivals`).

    No image of MNIST is in two tasks. A round has as many images of every digit: with arrivals of `images_per_round` /
    10 each is one digit.

    Each experience has `.transformation`, its colour, and `.sources`, (N,) int64: which images of MNIST's training set
    (held-out data: test set) its images are.
    """

    version = 1

    def __init__(
        self,
        *,
        seed: int = 0,
        rounds: int = COLORS,
        images_per_round: int = 900,
        held_out_per_round: int = 150,
        image_size: int = 28,
        root: str | os.PathLike[str] | None = None,
    ) -> None:
        """
        :param seed: decides the order of the colours and who gets which images. With another number of rounds the
            rounds that both have are the same.
        :param rounds: 1 to 56.
        :param images_per_round: datapoints of each round, a multiple of 10; the rarest digit has 5,421 images.
        :param held_out_per_round: held-out images of each round, a multiple of 10; the rarest digit has 892.
        :param image_size: side of the images in pixels: 28, or 14 (the mean of each 2 x 2 pixels).
        :param root: the data folder, see :func:`~ftml_bench.benchmarks.data.data_root`.
        :raises UsageError: for arguments outside these ranges, or if MNIST is missing or damaged.
        """
        seed = check_int("seed", seed)
        rounds = check_int("rounds", rounds, least=1, most=COLORS)
        names = {"train": "images_per_round", "test": "held_out_per_round"}
        each = {
            "train": check_classwise("images_per_round", images_per_round),
            "test": check_classwise("held_out_per_round", held_out_per_round),
        }
        self.image_size = check_image_size(image_size)

        colors = [palette()[i] for i in permutation(COLORS, seed, "colored-mnist", "tasks")[:rounds].tolist()]
        datasets, sources = {}, {}
        for split, count in each.items():
            grey, labels = read_mnist(split, root)
            rows = rows_by_class(labels, permutation(len(grey), seed, "colored-mnist", split))
            available = min(map(len, rows))
            if rounds * count > available:
                raise UsageError(
                    f"{rounds} rounds x {names[split]} {CLASSES * count} need {rounds * count:,} images of every "
                    f"digit, but one has {available:,}: {names[split]} can be {CLASSES * (available // rounds)} at most"
                )
            shuffles = [
                permutation(CLASSES * count, seed, "colored-mnist", f"{split} round {t}") for t in range(rounds)
            ]
            sources[split] = [pick(rows, t * count, count, shuffle) for t, shuffle in enumerate(shuffles)]
            datasets[split] = render(resize(grey, self.image_size), labels, sources[split], colors)
        super().__init__(
            title="Coloured MNIST",
            train=datasets["train"],
            held_out=datasets["test"],
            threshold=("accuracy", 0.9),
            checkpoints=reachable([each["train"]], images_per_round),
            arrivals=each["train"],
            criterion=nn.CrossEntropyLoss(label_smoothing=0.1),
            inner_lr=0.1,
            update_steps=5,
            measures=("only_class",),
        )
        for split, stream in self.streams.items():
            carry(stream, transformation=colors, sources=sources[split])
        carry(self.train_stream, arrival_order=[class_by_class] * rounds)

    def model(self) -> nn.Module:
        """The paper's network: five convolutions of 32 filters."""
        from ftml_bench.models import RainbowNet

        return RainbowNet(image_size=self.image_size, filters=32, layers=5, classes=CLASSES)
