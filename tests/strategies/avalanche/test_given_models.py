"""Models and criteria as scripts give and change them."""

import pytest
import torch
from avalanche.benchmarks.utils import AvalancheDataset, TaskLabels
from avalanche.core import SupervisedPlugin
from torch import nn
from torch.utils.data import TensorDataset

from ftml_bench.errors import UsageError
from ftml_bench.models import TaskBatchNorm
from ftml_bench.strategies import FollowTheLeader, FromScratch
from tests.strategies.avalanche.scripts import (
    JOINT,
    every_learner,
    learner,
    plain,
    stream,
    tensors,
    train,
)


class Two(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(6, 6)

    def forward(self, x):
        hidden = self.layer(x)
        return hidden, 2 * hidden


def first_of(outputs, y):
    return nn.functional.cross_entropy(outputs[0], y)


@pytest.mark.parametrize("cls", JOINT, ids=lambda cls: cls.__name__)
def test_models_with_several_outputs_train_as_with_one_and_are_evaluated(cls):
    seen = []

    class Look(SupervisedPlugin):
        def after_eval_iteration(self, strategy, **kwargs):
            seen.append(strategy.mb_output)

    datasets = []
    for seed in (0, 1):
        x, y = tensors(seed=seed)
        datasets.append(AvalancheDataset([TensorDataset(x, y)], data_attributes=[TaskLabels([3, 4] * 10)]))
    one = train(learner(cls), stream(*datasets))
    two = train(learner(cls, model=Two(), criterion=first_of, plugins=[Look()]), stream(*datasets))
    assert torch.allclose(one.model.weight, two.model.layer.weight)
    two.eval(stream(datasets[0]).test_stream)  # points of two tasks
    assert sum(len(output[0]) for output in seen) == 20
    assert all(torch.equal(output[1], 2 * output[0]) for output in seen)


class Lazy(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.LazyLinear(8), nn.LazyBatchNorm1d(), nn.ReLU(), nn.LazyLinear(6))

    def forward(self, x):
        return self.body(x)


@every_learner
def test_lazy_layers_are_refused_until_they_have_seen_a_batch(cls):
    model = Lazy()
    with pytest.raises(
        UsageError, match=r"body.0.weight of the model has no shape yet: .* call model\(x\) once"
    ) as error:
        learner(cls, model, torch.optim.SGD(model.parameters(), lr=0.05))
    assert "\n" not in str(error.value)
    model.eval()(torch.zeros(2, 6))
    strategy = learner(cls, model)
    assert type(model.body[1]) is TaskBatchNorm
    before = model.body[0].weight.detach().clone()
    train(strategy, plain()).eval(plain().test_stream)
    assert not torch.equal(model.body[0].weight, before)


class Grown(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Linear(6, 6)
        self.second = nn.Identity()

    def forward(self, x):
        return self.second(self.first(x))


def test_from_scratch_starts_a_model_that_was_given_layers_by_hand_anew_with_them():
    benchmark = plain(3)
    model = Grown()
    start = model.first.weight.detach().clone()
    strategy = learner(FromScratch, model)
    strategy.train(benchmark.train_stream[0], eval_streams=[])
    model.second = nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6))
    second = model.second[0].weight.detach().clone()
    starts = []

    class Look(SupervisedPlugin):
        def before_training_exp(self, s, **kwargs):
            starts.append((model.first.weight.detach().clone(), model.second[0].weight.detach().clone()))

    strategy.plugins.insert(0, Look())
    for experience in benchmark.train_stream[1:]:
        strategy.train(experience, eval_streams=[])
        assert not torch.equal(model.second[0].weight, second)
    for found in starts:
        assert torch.equal(found[0], start)
        assert torch.equal(found[1], second)
    assert type(model.second[1]) is TaskBatchNorm
    strategy.plugins.pop(0)
    model.second = nn.Identity()  # and taken away again
    strategy.train(plain(4).train_stream[3], eval_streams=[])


@pytest.mark.parametrize("cls", JOINT, ids=lambda cls: cls.__name__)
def test_layers_that_are_frozen_and_unfrozen_between_experiences_are_followed(cls):
    benchmark = plain(4)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 6))
    strategy = learner(cls, model)
    strategy.train(benchmark.train_stream[0], eval_streams=[])
    for trainable, experience in zip((False, True, False), benchmark.train_stream[1:], strict=True):
        model[0].requires_grad_(trainable)
        strategy.train(experience, eval_streams=[]) if cls is not FromScratch else None
        before = [layer.weight.detach().clone() for layer in (model[0], model[2])]
        strategy.train(experience, eval_streams=[])
        moved = [not torch.equal(old, layer.weight) for old, layer in zip(before, (model[0], model[2]), strict=True)]
        if cls is not FromScratch:  # which has begun anew
            assert moved == [trainable, True]
        model.eval()
        copy = strategy.model_for(experience)
        assert torch.equal(copy[0].weight, model[0].weight) == (not trainable or cls is not FollowTheLeader)
        model.train()


@pytest.mark.parametrize("cls", JOINT, ids=lambda cls: cls.__name__)
def test_a_criterion_that_is_exchanged_is_the_one_that_is_trained_and_adapted_with(cls):
    used = []

    class Noting(nn.CrossEntropyLoss):
        def forward(self, output, target):
            used.append(len(target))
            return super().forward(output, target)

    benchmark = plain()
    strategy = learner(cls)
    strategy.train(benchmark.train_stream[0], eval_streams=[])
    strategy._criterion = Noting()
    strategy.train(benchmark.train_stream[1], eval_streams=[])
    assert used
    used.clear()
    strategy.model.eval()
    strategy.model_for(benchmark.test_stream[1])
    # without task labels: on all rounds so far; on two points it is seen what it looks at
    assert [points for points in used if points > 2] == ([40, 40] if cls is FollowTheLeader else [])
