"""Closed forms: FTML arrives at the minimum of its objective, joint training at its own; a step by hand."""

import pytest
import torch
from avalanche.benchmarks import benchmark_from_datasets, with_task_labels
from avalanche.benchmarks.utils import AvalancheDataset
from avalanche.benchmarks.utils.data_attribute import TaskLabels
from avalanche.benchmarks.utils.flat_data import ConstantSequence
from avalanche.training.plugins import EvaluationPlugin
from torch import nn
from torch.utils.data import TensorDataset

from ftml_bench.strategies import FTML, TrainOnEverything


def quadratic_tasks(tasks=4, points=30, dimensions=3):
    """Linear regression tasks whose inputs differ in scale, so that curvature matters; as an Avalanche stream."""
    rng = torch.Generator().manual_seed(5)
    data = []
    for _ in range(tasks):
        scale = 0.3 + torch.rand(dimensions, generator=rng, dtype=torch.float64)
        x = torch.randn(points, dimensions, generator=rng, dtype=torch.float64) * scale
        y = x @ torch.randn(dimensions, 1, generator=rng, dtype=torch.float64)
        data.append((x, y + 0.1 * torch.randn(points, 1, generator=rng, dtype=torch.float64)))
    return data


def as_stream(data):
    datasets = [
        AvalancheDataset([TensorDataset(x, y)], data_attributes=[TaskLabels(ConstantSequence(t, len(x)))])
        for t, (x, y) in enumerate(data)
    ]
    return with_task_labels(benchmark_from_datasets(train=datasets, test=datasets))


class HalfSquare(nn.Module):
    """f = ½ E (wᵀx − y)²"""

    def forward(self, output, target):
        return 0.5 * (output - target).square().mean()


def moments(data):
    """A = E[x xᵀ], b = −E[x y]: f = ½ wᵀAw + wᵀb + const (appendix A, with the sign that its text lacks)."""
    return [(x.T @ x / len(x), -(x.T @ y) / len(x)) for x, y in data]


def w_joint(data):
    a, b = (sum(m) for m in zip(*moments(data), strict=True))
    return -torch.linalg.solve(a, b).flatten()


def w_maml(data, alpha):
    identity = torch.eye(data[0][0].shape[1], dtype=torch.float64)
    shrink = [(identity - alpha * a) @ (identity - alpha * a) for a, _ in moments(data)]
    a = sum(s @ a for s, (a, _) in zip(shrink, moments(data), strict=True))
    b = sum(s @ b for s, (_, b) in zip(shrink, moments(data), strict=True))
    return -torch.linalg.solve(a, b).flatten()


def linear():
    torch.manual_seed(0)
    return nn.Linear(3, 1, bias=False).double()


@pytest.mark.parametrize("engine", ["higher", "loop", "batched"])
def test_ftml_in_the_exact_setting_arrives_at_w_maml_and_joint_training_at_w_joint(engine):
    data = quadratic_tasks()
    alpha = 0.3
    model = linear()
    ftml = FTML(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=1.0),
        criterion=HalfSquare(),
        evaluator=EvaluationPlugin(),
        meta_batch_size=None,
        support_size=None,
        query_size=None,
        inner_steps=1,
        inner_lr=alpha,
        steps=100,
        engine=engine,
    )
    joint_model = linear()
    joint = TrainOnEverything(
        model=joint_model,
        optimizer=torch.optim.SGD(joint_model.parameters(), lr=1.0),
        criterion=HalfSquare(),
        evaluator=EvaluationPlugin(),
        train_mb_size=sum(len(x) for x, _ in data),
        draw="datapoints",
        steps=100,
    )
    for round in as_stream(data).train_stream:
        ftml.train(round, eval_streams=[])
        joint.train(round, eval_streams=[])
    assert torch.allclose(model.weight.flatten(), w_maml(data, alpha), atol=1e-4)
    assert torch.allclose(joint_model.weight.flatten(), w_joint(data), atol=1e-4)
    assert (w_maml(data, alpha) - w_joint(data)).norm() > 0.01


def test_a_training_step_uses_the_meta_gradient_written_by_hand():
    """One SGD step in the exact setting moves w by the closed-form gradient of Σ f_k(U_k(w)) / M."""
    data = quadratic_tasks()
    model = linear()
    w = model.weight.detach().clone().flatten()
    identity = torch.eye(3, dtype=torch.float64)
    gradient = torch.zeros(3, dtype=torch.float64)
    for a, b in moments(data):
        adapted = w - 0.3 * (a @ w + b.flatten())
        gradient += (identity - 0.3 * a) @ (a @ adapted + b.flatten()) / len(data)
    ftml = FTML(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.5),
        criterion=HalfSquare(),
        evaluator=EvaluationPlugin(),
        meta_batch_size=None,
        support_size=None,
        query_size=None,
        inner_steps=1,
        inner_lr=0.3,
        steps=1,
    )
    for round in as_stream(data).train_stream:
        ftml.buffer.add(round)  # all rounds known, none trained on yet
    ftml.train(as_stream(data).train_stream[0], eval_streams=[])
    assert torch.allclose(model.weight.flatten(), w - 0.5 * gradient, atol=1e-12)
