"""Small learners, data and streams, as other people's scripts have them."""

import pytest
import torch
from avalanche.benchmarks import benchmark_from_datasets
from avalanche.benchmarks.utils import AvalancheDataset
from avalanche.training.plugins import (
    EvaluationPlugin,
)
from torch import nn
from torch.utils.data import Dataset, TensorDataset

from ftml_bench.strategies import FTML, FollowTheLeader, FromScratch, TrainOnEverything

LEARNERS = {
    FTML: {"meta_batch_size": 2, "support_size": 3, "query_size": 3, "inner_steps": 2, "engine": "loop"},
    FollowTheLeader: {"group_size": 2, "update_steps": 2},
    TrainOnEverything: {"group_size": 2},
    FromScratch: {},
}
every_learner = pytest.mark.parametrize("cls", LEARNERS, ids=lambda cls: cls.__name__)
JOINT = [cls for cls in LEARNERS if cls is not FTML]


def net():
    torch.manual_seed(0)
    return nn.Linear(6, 6)


def learner(cls, model=None, optimizer=None, **changes):
    model = model or net()
    optimizer = optimizer or torch.optim.SGD(model.parameters(), lr=0.05)
    settings = {"train_mb_size": 8, "eval_mb_size": 7, "evaluator": EvaluationPlugin(), **LEARNERS[cls], **changes}
    return cls(model=model, optimizer=optimizer, **settings)


def tensors(n=20, seed=0):
    rng = torch.Generator().manual_seed(seed)
    return torch.randn(n, 6, generator=rng), torch.arange(n) % 6


def stream(*datasets):
    made = [d if isinstance(d, AvalancheDataset) else AvalancheDataset([d]) for d in datasets]
    return benchmark_from_datasets(train=made, test=made)


def plain(rounds=2):
    return stream(*(TensorDataset(*tensors(seed=seed)) for seed in range(rounds)))


def train(strategy, benchmark):
    for experience in benchmark.train_stream:
        strategy.train(experience, eval_streams=[])
    return strategy


class Points(Dataset):
    def __init__(self, points):
        self.points = list(points)

    def __len__(self):
        return len(self.points)

    def __getitem__(self, index):
        return self.points[index]
