"""A stream that has to be fetched from nowhere."""

from __future__ import annotations

import torch
from torch import nn

from ftml_bench.benchmarks.stacked import StackedDataset
from ftml_bench.benchmarks.stream import TaskStream
from ftml_bench.models import RainbowNet
from ftml_bench.seeding import generator


class MadeUp(TaskStream):
    """Rounds of random images and classes of the size of Rainbow MNIST's."""

    def __init__(
        self, *, rounds: int, images_per_round: int = 900, held_out_per_round: int = 178, arrival: int = 20
    ) -> None:
        rng = generator(0, "stream", "made")

        def datasets(n: int) -> list[StackedDataset]:
            base = torch.randint(256, (rounds * n, 3, 28, 28), dtype=torch.uint8, generator=rng)
            classes = torch.randint(10, (rounds * n,), generator=rng)
            return [StackedDataset(base, classes[rows], rows) for rows in torch.arange(rounds * n).split(n)]

        super().__init__(
            title="made up",
            train=datasets(images_per_round),
            held_out=datasets(held_out_per_round),
            threshold=("accuracy", 0.9),
            checkpoints=[images_per_round],
            arrivals=arrival,
            criterion=nn.CrossEntropyLoss(label_smoothing=0.1),
            inner_lr=0.1,
            update_steps=5,
        )

    def model(self) -> nn.Module:
        """The paper's network."""
        return RainbowNet()
