"""Coloured digits: coloured MNIST in small, from data that come with scikit-learn; nothing has to be fetched."""

from __future__ import annotations

from torch import nn

from ftml_bench.benchmarks.arrivals import class_by_class
from ftml_bench.benchmarks.checks import check_int
from ftml_bench.benchmarks.colored import CLASSES, COLORS, check_classwise, palette, pick, rows_by_class
from ftml_bench.benchmarks.rainbow import check_image_size, permutation, render
from ftml_bench.benchmarks.rainbow_digits import read_digits
from ftml_bench.benchmarks.stream import TaskStream, carry, reachable
from ftml_bench.benchmarks.transforms import resize

HELD_OUT_EACH = 35
TRAIN_EACH = 139  # the rarest digit has 174 images


class ColoredDigits(TaskStream):
    """:class:`ColoredMNIST` on 1,797 small digits: a colour a round, the data class by class, all ten held out.

    Of every digit 35 images are held out, and rounds draw theirs from the others (139 at least) without replacement; a
    digit can come again in another colour. The held-out digits are the same in every round.

    Each experience has `.transformation`, its colour, and `.sources`, (N,) int64: which of the 1,797 digits its images
    are.
    """

    version = 1

    def __init__(
        self,
        *,
        seed: int = 0,
        rounds: int = 20,
        images_per_round: int = 100,
        held_out_per_round: int = CLASSES * HELD_OUT_EACH,
        image_size: int = 14,
    ) -> None:
        """
        :param seed: decides the split, the order of the colours and every round's draw. With another number of rounds
            the rounds that both have are the same.
        :param rounds: 1 to 56.
        :param images_per_round: datapoints of each round, a multiple of 10 up to 1,390.
        :param held_out_per_round: held-out images of each round, a multiple of 10 up to 350.
        :param image_size: side of the images in pixels, 14 or 28: the digits' 8 x 8 pixels enlarged (bilinear).
        :raises UsageError: for arguments outside these ranges.
        """
        seed = check_int("seed", seed)
        rounds = check_int("rounds", rounds, least=1, most=COLORS)
        count = check_classwise("images_per_round", images_per_round, CLASSES * TRAIN_EACH)
        held_out_count = check_classwise("held_out_per_round", held_out_per_round, CLASSES * HELD_OUT_EACH)
        self.image_size = check_image_size(image_size)

        grey, labels = read_digits()
        rows = rows_by_class(labels, permutation(len(grey), seed, "colored-digits", "split"))
        pools = [of_class[HELD_OUT_EACH:] for of_class in rows]
        colors = [palette()[i] for i in permutation(COLORS, seed, "colored-digits", "tasks")[:rounds].tolist()]
        held_out = pick(rows, 0, held_out_count, permutation(CLASSES * held_out_count, seed, "colored-digits", "test"))
        sources = {"train": [], "test": [held_out] * rounds}
        for t in range(rounds):
            drawn = [
                pool[permutation(len(pool), seed, "colored-digits", f"round {t} digit {digit}")]
                for digit, pool in enumerate(pools)
            ]
            shuffle = permutation(CLASSES * count, seed, "colored-digits", f"round {t}")
            sources["train"].append(pick(drawn, 0, count, shuffle))
        grey = resize(grey, self.image_size)
        super().__init__(
            title="Coloured digits",
            train=render(grey, labels, sources["train"], colors),
            held_out=render(grey, labels, sources["test"], colors),
            threshold=("accuracy", 0.8),
            checkpoints=reachable([count], images_per_round),
            arrivals=count,
            criterion=nn.CrossEntropyLoss(label_smoothing=0.1),
            inner_lr=0.1,
            update_steps=20,
            measures=("only_class",),
        )
        for split, stream in self.streams.items():
            carry(stream, transformation=colors, sources=sources[split])
        carry(self.train_stream, arrival_order=[class_by_class] * rounds)

    def model(self) -> nn.Module:
        """The paper's network made small: four convolutions of 16 filters."""
        from ftml_bench.models import RainbowNet

        return RainbowNet(image_size=self.image_size, filters=16, layers=4, classes=CLASSES)
