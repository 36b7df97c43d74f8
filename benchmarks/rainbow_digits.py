"""Rainbow digits: Rainbow MNIST in small, from data that come with scikit-learn; nothing has to be fetched."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ftml_bench.benchmarks.checks import check_int
from ftml_bench.benchmarks.rainbow import (
    check_image_size,
    permutation,
    render,
    smoothed_cross_entropy,
    task_order,
)
from ftml_bench.benchmarks.stream import TaskStream, carry, reachable
from ftml_bench.benchmarks.transforms import TRANSFORMATIONS, resize

TRAIN_POOL = 1_440
HELD_OUT_POOL = 357


def read_digits() -> tuple[Tensor, Tensor]:
    """scikit-learn's digits: 1,797 real handwritten ones (UCI, E. Alpaydin and C. Kaynak 1998, its test part).

    :return: (1797, 8, 8) uint8 grey values (the original 0 to 16, times 255 / 16) and (1797,) int64 labels.
    """
    from sklearn.datasets import load_digits

    digits = load_digits()
    return torch.from_numpy(digits.images * (255 / 16)).round().to(torch.uint8), torch.from_numpy(digits.target).long()


class RainbowDigits(TaskStream):
    """The 56 tasks of Rainbow MNIST on 1,797 small digits; 20 of them by default.

    The digits are split once into 1,440 for training and 357 held out. Every round draws its images from the 1,440
    without replacement, so a digit can come again in another round under another transformation; the held-out digits
    are the same in every round. For the paper's setting, where tasks share no digits, take RainbowMNIST.

    Each experience has `.transformation`, and `.sources`, (N,) int64: which of the 1,797 digits its images are.
    """

    version = 1

    def __init__(
        self,
        *,
        seed: int = 0,
        rounds: int = 20,
        images_per_round: int = 100,
        held_out_per_round: int = HELD_OUT_POOL,
        image_size: int = 14,
        order: int | None = None,
        label_smoothing: float = 0.1,
    ) -> None:
        """
        :param seed: decides the split, the order of the tasks and every round's draw. With another number of rounds the
            rounds that both have are the same.
        :param rounds: 1 to 56.
        :param images_per_round: datapoints of each round, 1 to 1,440.
        :param held_out_per_round: held-out images of each round, 1 to 357.
        :param image_size: side of the images in pixels, 14 or 28: the digits' 8 x 8 pixels enlarged (bilinear).
        :param order: decides which tasks come, and in which order, alone; None: `seed` does.
        :param label_smoothing: of the cross entropy that is trained and reported, from 0 to below 1.
        :raises UsageError: for arguments outside these ranges.
        """
        seed = check_int("seed", seed)
        rounds = check_int("rounds", rounds, least=1, most=len(TRANSFORMATIONS))
        images_per_round = check_int("images_per_round", images_per_round, least=1, most=TRAIN_POOL)
        held_out_per_round = check_int("held_out_per_round", held_out_per_round, least=1, most=HELD_OUT_POOL)
        self.image_size = check_image_size(image_size)
        order = seed if order is None else check_int("order", order)
        criterion = smoothed_cross_entropy(label_smoothing)

        grey, labels = read_digits()
        grey = resize(grey, self.image_size)
        pool, held_out_pool = permutation(len(grey), seed, "rainbow-digits", "split").split([TRAIN_POOL, HELD_OUT_POOL])
        transformations = task_order(order, "rainbow-digits", rounds)
        sources = {
            "train": [
                pool[permutation(TRAIN_POOL, seed, "rainbow-digits", f"round {t}")[:images_per_round]]
                for t in range(rounds)
            ],
            "test": [held_out_pool[:held_out_per_round]] * rounds,
        }
        super().__init__(
            title="Rainbow digits",
            train=render(grey, labels, sources["train"], transformations),
            held_out=render(grey, labels, sources["test"], transformations),
            threshold=("accuracy", 0.8),
            checkpoints=reachable([20, 40, 100], images_per_round),
            arrivals=20,
            criterion=criterion,
            inner_lr=0.1,
            update_steps=20,
        )
        for split, stream in self.streams.items():
            carry(stream, transformation=transformations, sources=sources[split])

    def model(self) -> nn.Module:
        """The paper's network made small: four convolutions of 16 filters."""
        from ftml_bench.models import RainbowNet

        return RainbowNet(image_size=self.image_size, filters=16, layers=4)
