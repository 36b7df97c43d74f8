"""Streams and buffers of points that are recognisable: the input of each is its number."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import nn
from torch.utils.data import Dataset

from ftml_bench.benchmarks.stacked import StackedDataset
from ftml_bench.benchmarks.stream import TaskStream
from ftml_bench.buffer import TaskBuffer


def stream(*sizes):
    """A stream of rounds of these sizes: round t's points are 1000 t, 1000 t + 1, ...; y is x + 0.5."""
    base = torch.cat([torch.arange(n) + 1000.0 * t for t, n in enumerate(sizes)] + [torch.tensor([-1.0])])[:, None]
    ends = torch.tensor([0, *sizes]).cumsum(0).tolist()
    train = [StackedDataset(base, base[a:b] + 0.5, torch.arange(a, b)) for a, b in pairwise(ends)]
    test = [StackedDataset(base, base[-1:], torch.tensor([len(base) - 1]))] * len(sizes)
    return TaskStream(
        title="numbers", train=train, held_out=test, threshold=("loss", 1.0), checkpoints=[1], arrivals=1,
        criterion=nn.MSELoss(), inner_lr=0.1, update_steps=1,
    )  # fmt: skip


def filled(*sizes):
    buffer = TaskBuffer()
    for experience in stream(*sizes).train_stream:
        buffer.add(experience)
    return buffer


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def numbers(batch):
    """The points of a batch, after a check that every label is its own point's."""
    x, y = batch
    assert torch.equal(y, x + 0.5)
    return x[..., 0].long().tolist()


def expected_of(round, n):
    return [1000 * round + i for i in range(n)]


def classes(*sizes, seed=0):
    """A buffer with one round: so many points of each of the classes 2, 5, 7, ...; x tells the point and its class."""
    names = [2, 5, 7][: len(sizes)]
    y = torch.cat([torch.full((n,), name) for name, n in zip(names, sizes, strict=True)])
    y = y[torch.randperm(len(y), generator=rng(seed))]
    x = torch.stack([torch.arange(len(y)), y], dim=1).float()
    data = StackedDataset(x, y, torch.arange(len(y)))
    held_out = StackedDataset(x[:1].clone(), y[:1], torch.tensor([0]))
    benchmark = TaskStream(
        title="classes", train=[data], held_out=[held_out], threshold=None, checkpoints=[1], arrivals=1,
        criterion=nn.CrossEntropyLoss(), inner_lr=0.1, update_steps=1,
    )  # fmt: skip
    buffer = TaskBuffer()
    buffer.add(benchmark.train_stream[0])
    return buffer


class Numbers(Dataset):
    """Point i is the number i + start; its class is its last digit."""

    def __init__(self, start, n):
        self.start = start
        self.targets = [(start + i) % 10 for i in range(n)]

    def __len__(self):
        return len(self.targets)

    def __getitem__(self, index):
        return torch.tensor([float(self.start + index)]), self.targets[index]
