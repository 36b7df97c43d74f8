"""Layers of one's own in which points act upon one another: joint learners keep the groups of a minibatch apart."""

import pytest
import torch
from avalanche.core import SupervisedPlugin
from avalanche.training.plugins import EvaluationPlugin
from torch import nn

from ftml_bench.benchmarks import Sinusoids
from ftml_bench.errors import UsageError
from ftml_bench.strategies import FollowTheLeader, TrainOnEverything
from ftml_bench.strategies.joint import _group_by_group

LR = 0.1


class Centred(nn.Module):
    def forward(self, x):
        return x - x.mean(0)


class Attention(nn.Module):
    def forward(self, x):
        return torch.softmax(x @ x.T, 1) @ x


class Sorted(nn.Module):
    """Every feature by its rank."""

    def forward(self, x):
        return x * x.argsort(0).argsort(0) / len(x)


class Several(nn.Sequential):
    def forward(self, x):
        return super().forward(x), x


class Counted:
    calls = 0

    def __call__(self, *args):
        self.calls += 1
        return _group_by_group(*args)


class Minibatches(SupervisedPlugin):
    def __init__(self):
        super().__init__()
        self.kept = []

    def before_forward(self, strategy, *args, **kwargs):
        self.kept.append([part.clone() for part in strategy.mbatch[:2]])


def network(layer):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(1, 6), layer, nn.Dropout(0.0), nn.Linear(6, 1))


def built(cls, model, criterion=None, **settings):
    seen = Minibatches()
    strategy = cls(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=LR),
        criterion=criterion or nn.MSELoss(),
        steps=3,
        train_mb_size=12,
        group_size=4,
        plugins=[seen],
        evaluator=EvaluationPlugin(),
        **{"batch_norm": "support", **settings},
    )
    return strategy, seen


def rounds():
    return Sinusoids(rounds=2, images_per_round=8, held_out_per_round=4).train_stream


def trained(*args, **settings):
    strategy, seen = built(*args, **settings)
    for round in rounds():
        strategy.train(round, eval_streams=[])
    return [p.detach() for p in strategy.model.parameters()], seen.kept


def by_hand(model, minibatches, groups):
    for x, y in minibatches:
        outputs = torch.cat([model(part) for part in x.chunk(groups)])
        gradients = torch.autograd.grad(((outputs - y) ** 2).mean(), list(model.parameters()))
        with torch.no_grad():
            for p, g in zip(model.parameters(), gradients, strict=True):
                p -= LR * g
    return [p.detach() for p in model.parameters()]


def same(one, other):
    return all(torch.allclose(a, b, rtol=1e-9) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("layer", [Centred, Attention, Sorted])
@pytest.mark.parametrize("cls", [TrainOnEverything, FollowTheLeader])
def test_in_groups_points_act_upon_those_of_their_own_group_alone(cls, layer, double_precision):
    found, minibatches = trained(cls, network(layer()))
    assert same(found, by_hand(network(layer()), minibatches, 3))
    assert not same(found, by_hand(network(layer()), minibatches, 1))


def test_a_mixed_minibatch_stays_one(double_precision):
    found, minibatches = trained(TrainOnEverything, network(Centred()), batch_norm="running")
    assert same(found, by_hand(network(Centred()), minibatches, 1))


def test_a_layer_that_is_exchanged_between_arrivals_is_noticed(double_precision):
    strategy, seen = built(TrainOnEverything, network(nn.Tanh()))
    first, second = rounds()
    strategy.train(first, eval_streams=[])
    strategy.model[1] = expected = Centred()
    strategy.train(second, eval_streams=[])
    model = network(nn.Tanh())
    by_hand(model, seen.kept[:3], 3)
    model[1] = expected
    assert same(strategy.model.parameters(), by_hand(model, seen.kept[3:], 3))


def test_models_with_several_outputs_are_kept_apart_too(double_precision):
    def first(outputs, y):
        return nn.functional.mse_loss(outputs[0], y)

    found, minibatches = trained(TrainOnEverything, Several(*network(Centred())), first)
    assert same(found, by_hand(network(Centred()), minibatches, 3))


class Masked(nn.Sequential):
    """Two outputs, of which the second is a class that is not there: its logit is `mask`, or `mask` more."""

    def __init__(self, *layers, mask, added=False):
        super().__init__(*layers)
        self.mask, self.added = mask, added

    def forward(self, x):
        outputs = super().forward(x)
        return torch.cat([outputs, outputs * self.added + self.mask], 1)


@pytest.mark.parametrize("added", [False, True])
@pytest.mark.parametrize("mask", [-1e3, -1e9, -float("inf"), float("nan")])
def test_masks_do_not_hide_that_groups_are_mixed(mask, added, double_precision):
    def first(outputs, y):
        return nn.functional.mse_loss(outputs[:, :1], y)

    found, minibatches = trained(TrainOnEverything, Masked(*network(Centred()), mask=mask, added=added), first)
    assert same(found, by_hand(network(Centred()), minibatches, 3))


def test_groups_that_are_not_mixed_are_passed_together(monkeypatch, double_precision):
    monkeypatch.setattr("ftml_bench.strategies.joint._group_by_group", counted := Counted())
    model = Masked(*network(nn.Tanh()), mask=-1e9, added=True)
    trained(TrainOnEverything, model, lambda outputs, y: nn.functional.mse_loss(outputs[:, :1], y))
    assert counted.calls == 4  # of the two arrivals, to find it out


def test_outputs_that_cannot_be_joined_are_refused():
    class Counting(nn.Sequential):
        def forward(self, x):
            return super().forward(x), len(x)

    with pytest.raises(UsageError, match=r"^a model's output of type int: groups of a task each need tensors with"):
        trained(TrainOnEverything, Counting(*network(nn.Tanh())))
