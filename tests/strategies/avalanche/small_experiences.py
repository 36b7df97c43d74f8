"""A benchmark of three experiences, learners of a linear model, and their predictions by hand."""

import pytest
import torch
from avalanche.benchmarks import DatasetExperience, benchmark_with_validation_stream, nc_benchmark
from avalanche.training.plugins import EvaluationPlugin
from torch import nn
from torch.utils.data import TensorDataset

from ftml_bench.strategies import FTML, FollowTheLeader, FromScratch, TrainOnEverything

LEARNERS = {
    FTML: {"meta_batch_size": 2, "support_size": 3, "query_size": 3, "inner_steps": 2, "engine": "loop"},
    FollowTheLeader: {"group_size": 2, "update_steps": 2},
    TrainOnEverything: {"group_size": 2},
    FromScratch: {},
}
every_learner = pytest.mark.parametrize("cls", LEARNERS, ids=lambda cls: cls.__name__)


def points(n=60, classes=6, seed=0):
    """(x, y) with a direction a class."""
    rng = torch.Generator().manual_seed(seed)
    y = torch.arange(n) % classes
    dataset = TensorDataset(2 * torch.eye(6)[y] + torch.randn(n, 6, generator=rng) / 2, y)
    dataset.targets = y.tolist()
    return dataset


def benchmark(*, task_labels=True, seed=0):
    return nc_benchmark(points(seed=seed), points(30, seed=seed + 100), 3, task_labels=task_labels, shuffle=False)


def net():
    torch.manual_seed(0)
    return nn.Linear(6, 6)


def learner(cls=FTML, model=None, **changes):
    model = model or net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    settings = {"train_mb_size": 8, "eval_mb_size": 7, "evaluator": EvaluationPlugin(), **LEARNERS[cls], **changes}
    return cls(model=model, optimizer=optimizer, **settings)


def trained(stream, cls=FTML, **changes):
    strategy = learner(cls, **changes)
    for experience in stream:
        strategy.train(experience, eval_streams=[])
    return strategy


def data_of(experience):
    dataset = experience.dataset.eval()
    x, y = zip(*(dataset[i][:2] for i in range(len(dataset))), strict=True)
    return torch.stack(x), torch.tensor(y)


def adapted_by_hand(model, x, y, steps=2, lr=0.1):
    """Weight and bias of a linear model after gradient steps on all of (x, y)."""
    weight, bias = (p.detach().clone().requires_grad_() for p in (model.weight, model.bias))
    for _ in range(steps):
        loss = nn.functional.cross_entropy(x @ weight.T + bias, y)
        for p, gradient in zip((weight, bias), torch.autograd.grad(loss, (weight, bias)), strict=True):
            p.data -= lr * gradient
    return weight.detach(), bias.detach()


def predicted_by(strategy, experience):
    strategy.model.eval()
    model = strategy.model_for(experience)
    return model.weight.detach(), model.bias.detach()


def close(first, second):
    return all(torch.allclose(a, b, atol=1e-6) for a, b in zip(first, second, strict=True))


def validation(stream):
    return benchmark_with_validation_stream(stream, validation_size=0.5, seed=0).train_stream


def wrapped(stream):
    return [DatasetExperience(dataset=e.dataset, current_experience=i) for i, e in enumerate(stream.train_stream)]


def held(strategy):
    return {number: len(r) for number, r in strategy.buffer.rounds.items()}
