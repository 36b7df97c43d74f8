"""The meta-loss is the mean of the tasks' losses, also where that is not the loss of all their points together."""

from copy import deepcopy

import pytest
import torch
import torch.nn.functional as F
from avalanche.benchmarks import benchmark_from_datasets
from avalanche.benchmarks.utils import AvalancheDataset
from avalanche.benchmarks.utils.data_attribute import DataAttribute
from torch import nn
from torch.utils.data import TensorDataset

from ftml_bench.strategies import FTML
from ftml_bench.strategies.task_losses import mean_over_tasks

WEIGHTS = torch.tensor([1.0, 0.1, 5.0, 0.5])
POINTS = 6


def pairs(outputs, targets):
    """Of pairs of points, as contrastive losses."""
    same = (targets[:, None] == targets[None]).float()
    return ((outputs @ outputs.T).tanh() - same).square().mean()


CRITERIA = [
    nn.CrossEntropyLoss(),
    nn.CrossEntropyLoss(label_smoothing=0.1),
    nn.CrossEntropyLoss(weight=WEIGHTS),
    nn.CrossEntropyLoss(ignore_index=1),
    nn.CrossEntropyLoss(reduction="sum"),
    F.cross_entropy,
    pairs,
]


def name_of(criterion):
    return getattr(criterion, "__name__", str(criterion))


def rounds():
    draws = torch.Generator().manual_seed(0)
    x = torch.randn(3, POINTS, 3, generator=draws)
    y = torch.randint(4, (3, POINTS), generator=draws)
    y[0, 1], y[2] = 1, torch.tensor([1, 1, 1, 1, 0, 2])  # of class 1, which one criterion ignores, in unequal numbers
    return x, y


@pytest.mark.parametrize("criterion", CRITERIA, ids=name_of)
def test_a_meta_step_is_that_of_the_mean_of_the_tasks_losses(criterion):
    torch.manual_seed(0)
    x, y = rounds()
    model = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 4))
    copies = [deepcopy(model) for _ in x]
    data = [
        AvalancheDataset(
            TensorDataset(*task),
            data_attributes=[DataAttribute([t] * POINTS, "targets_task_labels", use_in_getitem=True)],
        )
        for t, task in enumerate(zip(x, y, strict=True))
    ]
    stream = benchmark_from_datasets(train=data, test=data)
    learner = FTML(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=1.0),
        criterion=criterion,
        inner_lr=0.1,
        inner_steps=1,
        second_order=False,
        meta_batch_size=None,
        support_size=None,
        query_size=None,
        steps=1,
        evaluator=None,
    )
    before = [p.detach().clone() for p in model.parameters()]
    for number, experience in enumerate(stream.train_stream):
        learner.train(experience) if number == 2 else learner.buffer.add(experience)
    steps = [b - p.detach() for b, p in zip(before, model.parameters(), strict=True)]

    of_tasks = []  # in first order: the gradient of a task is that at its adapted copy
    for copy, a, b in zip(copies, x, y, strict=True):
        for _ in range(2):
            copy.zero_grad()
            criterion(copy(a), b).backward()
            gradients = [p.grad.clone() for p in copy.parameters()]
            with torch.no_grad():
                for p, g in zip(copy.parameters(), gradients, strict=True):
                    p -= 0.1 * g
        of_tasks.append(gradients)
    for step, *found in zip(steps, *of_tasks, strict=True):
        assert torch.allclose(step, torch.stack(found).mean(0), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("criterion", [CRITERIA[0], CRITERIA[3], F.cross_entropy], ids=name_of)
def test_where_targets_cannot_be_looked_at_it_is_said_whether_any_may_be_ignored(criterion):
    x, y = rounds()
    outputs, targets = torch.cat([x, x[..., :1]], dim=2).flatten(0, 1), y.flatten()
    parts = zip(outputs.split(POINTS), targets.split(POINTS), strict=True)
    expected = torch.stack([criterion(*part) for part in parts]).mean()
    assert torch.allclose(mean_over_tasks(criterion, outputs, targets, 3), expected)
    assert torch.allclose(mean_over_tasks(criterion, outputs, targets, 3, ignores=True), expected)
    at_once = mean_over_tasks(criterion, outputs, targets, 3, ignores=False)
    assert torch.equal(at_once, criterion(outputs, targets))
