"""Three tasks of random points as an Avalanche stream, and a network for them."""

import torch
from avalanche.benchmarks import benchmark_from_datasets, task_incremental_benchmark
from avalanche.benchmarks.utils import as_classification_dataset
from torch import nn
from torch.utils.data import TensorDataset


def points():
    """(x, y) of each task: 30 points of four numbers, three classes."""
    g = torch.Generator().manual_seed(0)
    return [(torch.randn(30, 4, generator=g), torch.randint(3, (30,), generator=g)) for _ in range(3)]


def stream(data):
    """A stream of such tasks, each with a label of its own."""
    sets = []
    for x, y in data:
        one = TensorDataset(x, y)
        one.targets = y.tolist()
        sets.append(as_classification_dataset(one))
    return task_incremental_benchmark(benchmark_from_datasets(train=sets, test=sets))


def mlp():
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))
