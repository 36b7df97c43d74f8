"""Losses that compare every output with every target: refused. Those that take care of shapes themselves: taken."""

from copy import deepcopy
from itertools import product

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset

from ftml_bench.errors import UsageError
from ftml_bench.strategies import FTML, TrainOnEverything
from ftml_bench.strategies.avalanche.pairing import spreads
from tests.strategies.avalanche.scripts import learner, stream, tensors, train

pytestmark = pytest.mark.filterwarnings("ignore:Using a target size")  # PyTorch's, of four losses

N = 7
WEIGHTS = torch.rand(N, generator=torch.Generator().manual_seed(3))
SPREADING = {
    "mse_loss": F.mse_loss,
    "l1_loss": F.l1_loss,
    "smooth_l1_loss": F.smooth_l1_loss,
    "huber_loss": F.huber_loss,
    "PoissonNLLLoss": nn.PoissonNLLLoss(),
    "HingeEmbeddingLoss": nn.HingeEmbeddingLoss(),
    "a function": lambda o, t: ((o - t) ** 2).mean(),
    "a root": lambda o, t: ((o - t) ** 2).mean().sqrt(),
    "a quantile": lambda o, t: torch.max(0.1 * (t - o), 0.9 * (o - t)).mean(),
}
PAIRING = {
    "squeeze": lambda o, t: F.mse_loss(o.squeeze(), t),
    "flatten": lambda o, t: F.mse_loss(o.flatten(), t),
    "the first column": lambda o, t: F.mse_loss(o[:, 0], t),
    "a sum": lambda o, t: F.mse_loss(o[:, 0], t, reduction="sum"),
    "a column of targets": lambda o, t: F.mse_loss(o, t.view(-1, 1)),
    "view_as": lambda o, t: F.mse_loss(o.view_as(t), t),
    "a correlation": lambda o, t: -torch.corrcoef(torch.stack([o[:, 0], t]))[0, 1],
    "weights": lambda o, t: (WEIGHTS[: len(o)] * (o[:, 0] - t) ** 2).mean(),
}


def values():
    rng = torch.Generator().manual_seed(0)
    signs = 2.0 * (torch.arange(N) % 3 > 0) - 1  # as HingeEmbeddingLoss takes them
    return torch.randn(N, 1, generator=rng), signs


def by_hand(criterion, pairs):
    outputs, targets = values()
    first, second = (torch.stack(part) for part in zip(*((outputs[i, 0], targets[j]) for i, j in pairs), strict=True))
    return float(criterion(first, second))


@pytest.mark.parametrize("name", SPREADING)
def test_a_loss_of_all_pairs_is_found(name):
    criterion = SPREADING[name]
    every = by_hand(criterion, list(product(range(N), range(N))))
    assert float(criterion(*values())) == pytest.approx(every, rel=1e-5)
    assert every != pytest.approx(by_hand(criterion, [(i, i) for i in range(N)]), rel=1e-3)
    assert spreads(criterion, *values())


def test_a_loss_of_all_pairs_that_sums_over_columns_is_found():
    outputs, targets = values()

    def criterion(o, t):
        return ((o - t) ** 2).sum(1).mean()

    assert criterion(outputs, targets) == pytest.approx(float(((outputs - targets) ** 2).sum() / N))
    assert spreads(criterion, outputs, targets)


@pytest.mark.parametrize("name", PAIRING)
def test_a_loss_that_takes_care_of_shapes_is_none(name):
    assert spreads(PAIRING[name], *values()) is False


def test_values_that_are_all_one_cannot_tell():
    outputs, targets = values()
    assert spreads(F.mse_loss, torch.zeros_like(outputs), targets) is None
    assert spreads(lambda o, t: ((o[:, 0] - t) ** 2).sum(), torch.zeros_like(outputs), targets) is None
    assert spreads(F.mse_loss, outputs[:1], targets[:1]) is None


def test_classes_and_columns_of_ones_own_are_no_pairs():
    outputs = torch.randn(N, N, generator=torch.Generator().manual_seed(1))
    assert spreads(nn.CrossEntropyLoss(), outputs, torch.arange(N)) is False
    assert spreads(F.mse_loss, outputs[:, :1], outputs[:, :3]) is False


def numbers():
    return stream(*(TensorDataset(x, x[:, 0]) for x in (tensors(seed=seed)[0] for seed in (0, 1))))


@pytest.mark.parametrize("cls", [FTML, TrainOnEverything])
@pytest.mark.parametrize("name", ["mse_loss", "PoissonNLLLoss", "a function"])
def test_it_is_refused_before_anything_is_trained(name, cls):
    strategy = learner(cls, nn.Linear(6, 1), criterion=SPREADING[name])
    before = deepcopy(strategy.model.state_dict())
    with pytest.raises(
        UsageError, match=r"of outputs of shape \(\d+, 1\) and targets of shape .* would spread"
    ) as error:
        train(strategy, numbers())
    assert "\n" not in str(error.value)
    assert all(torch.equal(value, before[name]) for name, value in strategy.model.state_dict().items())


@pytest.mark.parametrize("cls", [FTML, TrainOnEverything])
def test_a_loss_that_takes_care_of_shapes_trains_as_one_of_equal_shapes(cls):
    columns = stream(*(TensorDataset(x, x[:, :1]) for x in (tensors(seed=seed)[0] for seed in (0, 1))))
    ends = []
    for criterion, data in ((PAIRING["the first column"], numbers()), (nn.MSELoss(), columns)):
        torch.manual_seed(0)
        strategy = train(learner(cls, nn.Linear(6, 1), criterion=criterion), data)
        ends.append(strategy.model.weight.detach())
    assert torch.allclose(*ends, rtol=1e-5)


def test_it_is_asked_once():
    calls = []

    def criterion(outputs, targets):
        calls.append(torch.is_grad_enabled())
        return F.mse_loss(outputs[:, 0], targets)

    train(learner(TrainOnEverything, nn.Linear(6, 1), criterion=criterion, steps=10), numbers())
    assert calls.count(True) == 20
    assert calls.count(False) <= 5
