"""Sinusoids (Finn, Abbeel, Levine 2017, section 5.1), one a round: regression that takes seconds."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ftml_bench.benchmarks.checks import check_int
from ftml_bench.benchmarks.stacked import StackedDataset
from ftml_bench.benchmarks.stream import TaskStream, carry, reachable
from ftml_bench.seeding import generator

X_RANGE = (-5.0, 5.0)
AMPLITUDES = (0.1, 5.0)
PHASES = (0.0, math.pi)


class Sinusoids(TaskStream):
    """y = amplitude * sin(x - phase), without noise: a new amplitude and phase each round.

    Amplitudes are uniform in [0.1, 5], phases in [0, π], inputs in [-5, 5]. Inputs and targets are (N, 1) float32.

    Each experience has `.amplitude` and `.phase` (float).
    """

    version = 1

    def __init__(
        self, *, seed: int = 0, rounds: int = 25, images_per_round: int = 40, held_out_per_round: int = 100
    ) -> None:
        """
        :param seed: decides every task and its points. With other sizes the tasks are the same.
        :param rounds: 1 or more.
        :param images_per_round: datapoints of each round, 1 or more (named as on the streams of images).
        :param held_out_per_round: held-out points of each round, 1 or more.
        :raises UsageError: for arguments outside these ranges.
        """
        seed = check_int("seed", seed)
        rounds = check_int("rounds", rounds, least=1)
        images_per_round = check_int("images_per_round", images_per_round, least=1)
        held_out_per_round = check_int("held_out_per_round", held_out_per_round, least=1)

        amplitudes = [_uniform(1, AMPLITUDES, seed, t, "amplitude").item() for t in range(rounds)]
        phases = [_uniform(1, PHASES, seed, t, "phase").item() for t in range(rounds)]
        data = [_points(images_per_round, seed, t, "train", amplitudes[t], phases[t]) for t in range(rounds)]
        held_out = [_points(held_out_per_round, seed, t, "test", amplitudes[t], phases[t]) for t in range(rounds)]
        super().__init__(
            title="Sinusoids",
            train=data,
            held_out=held_out,
            threshold=("loss", 1.0),
            checkpoints=reachable([4, 8, 40], images_per_round),
            arrivals=4,
            criterion=nn.MSELoss(),
            inner_lr=0.01,
            update_steps=20,
        )
        for stream in self.streams.values():
            carry(stream, amplitude=amplitudes, phase=phases)

    def model(self) -> nn.Module:
        """The network of the paper's source: two hidden layers of 40 units."""
        from ftml_bench.models import SinusoidMLP

        return SinusoidMLP()


def _uniform(n: int, between: tuple[float, float], seed: int, round_index: int, what: str) -> Tensor:
    least, most = between
    draws = torch.rand((n, 1), generator=generator(seed, "stream", "sinusoids", round_index, what))
    return least + (most - least) * draws


def _points(n: int, seed: int, round_index: int, split: str, amplitude: float, phase: float) -> StackedDataset:
    x = _uniform(n, X_RANGE, seed, round_index, split)
    return StackedDataset(x, amplitude * torch.sin(x - phase), torch.arange(n))
