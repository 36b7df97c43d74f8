"""What Naive takes, every learner takes, or one line says why not before anything is trained."""

import numpy as np
import pytest
import torch
from avalanche.benchmarks import benchmark_from_datasets
from avalanche.benchmarks.utils import AvalancheDataset, DataAttribute, TaskLabels
from avalanche.core import SupervisedPlugin
from avalanche.training import Naive
from avalanche.training.plugins import (
    BiCPlugin,
    CoPEPlugin,
    EvaluationPlugin,
    GDumbPlugin,
    GSS_greedyPlugin,
    RARPlugin,
    ReplayPlugin,
)
from avalanche.training.supervised.strategy_wrappers_online import OnlineNaive
from torch import nn
from torch.utils.data import Dataset, TensorDataset

from ftml_bench.errors import UsageError
from ftml_bench.models import TaskBatchNorm
from ftml_bench.strategies import FTML, FollowTheLeader, FromScratch, TrainOnEverything, per_round
from ftml_bench.strategies.avalanche.stock import on_arrivals

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


# -- what a point is


@every_learner
def test_arrays_and_numbers_train_as_the_tensors_that_they_hold(cls):
    ends = []
    for kind in ("arrays", "tensors"):
        datasets = []
        for seed in (0, 1):
            x, y = tensors(seed=seed)
            pairs = zip(x, y, strict=True)
            made = [(a.numpy(), np.int64(b)) if kind == "arrays" else (a, int(b)) for a, b in pairs]
            datasets.append(Points(made))
        strategy = train(learner(cls), stream(*datasets))
        ends.append(strategy.model.weight.detach().clone())
        strategy.eval(stream(*datasets).test_stream)
    assert torch.equal(*ends)
    assert not torch.equal(ends[0], net().weight)


X, Y = tensors()
LABELLED = {"data_attributes": [TaskLabels([0] * 20)]}
ODD = {
    "a third tensor": (
        AvalancheDataset([TensorDataset(X, Y, torch.rand(20))]),
        r"\(Tensor, Tensor, Tensor\): expected",
    ),
    "a third tensor, and task labels": (AvalancheDataset([TensorDataset(X, Y, X)], **LABELLED), "expected"),
    "weights as an attribute": (
        AvalancheDataset([TensorDataset(X, Y)], data_attributes=[DataAttribute([1.0] * 20, "w", use_in_getitem=True)]),
        r"bring w along: expected \(x, y\)",
    ),
    "no target": (Points(X), "a point of the data is a Tensor: expected"),
    "two inputs": (Points([((a, a), int(b)) for a, b in zip(X, Y, strict=True)]), "the input of a point is a tuple"),
    "inputs by name": (
        Points([({"x": a}, int(b)) for a, b in zip(X, Y, strict=True)]),
        "the input of a point is a dict",
    ),
    "points by name": (
        Points([{"x": a, "y": int(b)} for a, b in zip(X, Y, strict=True)]),
        "a point of the data is a dict",
    ),
    "a picture": (
        Points([("a.png", 0)] * 20),
        "the input of a point is a str: expected a tensor, an array or a number",
    ),
    "a named target": (Points([(a, "cat") for a in X]), "the target of a point is a str"),
    "padding": (
        AvalancheDataset([TensorDataset(X, Y)], collate_fn=lambda points: {"x": torch.stack([p[0] for p in points])}),
        r"collate_fn gives a dict of 1 points: expected tensors of 1 rows, \(x, y\)",
    ),
}


@every_learner
@pytest.mark.parametrize("name", ODD)
def test_points_that_cannot_be_drawn_are_refused_before_anything_is_trained(name, cls):
    dataset, message = ODD[name]
    strategy = learner(cls)
    random = torch.get_rng_state()
    with pytest.raises(UsageError, match=message) as error:
        strategy.train(stream(dataset).train_stream[0], eval_streams=[])
    assert "\n" not in str(error.value)
    assert (len(strategy.buffer.rounds), strategy.cost.steps) == (0, 0)
    assert torch.equal(strategy.model.weight, net().weight)
    assert torch.equal(torch.get_rng_state(), random)


def test_inputs_of_several_shapes_are_refused_where_they_are_drawn():
    dataset = Points([(torch.ones(6), 0)] * 10 + [(torch.ones(5), 0)] * 10)
    with pytest.raises(UsageError, match=r"inputs of the data have the shapes \(5,\) and \(6,\): expected one"):
        train(learner(FTML, steps=20), stream(dataset))


@every_learner
def test_a_collate_fn_that_makes_tensors_is_used(cls):
    def doubled(points):
        return torch.stack([2 * p[0] for p in points]), torch.tensor([int(p[1]) for p in points])

    made = stream(*(AvalancheDataset([TensorDataset(*tensors(seed=s))], collate_fn=doubled) for s in (0, 1)))
    by_hand = stream(*(TensorDataset(2 * tensors(seed=s)[0], tensors(seed=s)[1]) for s in (0, 1)))
    ends = [train(learner(cls), data).model.weight for data in (made, by_hand)]
    assert torch.equal(*ends)


# -- models


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
    # without task labels: on all rounds so far
    assert used == ([40, 40] if cls is FollowTheLeader else [])


# -- evaluation in inference mode


@every_learner
def test_an_evaluation_in_inference_mode_is_the_ordinary_one(cls):
    found = []

    class Look(SupervisedPlugin):
        def after_eval_iteration(self, strategy, **kwargs):
            found.append(strategy.mb_output.clone())

    strategy = train(learner(cls, plugins=[Look()]), plain())
    strategy.eval(plain().test_stream)
    ordinary = found.copy()
    found.clear()
    with torch.inference_mode():
        strategy.eval(plain().test_stream)
    assert torch.equal(torch.cat(ordinary), torch.cat(found))
    train(strategy, plain(3))  # and it trains on


def test_avalanches_strategies_on_arrivals_are_evaluated_in_inference_mode_too():
    model = net()
    strategy = on_arrivals(Naive)(
        model=model, optimizer=torch.optim.SGD(model.parameters(), lr=0.1), steps=2, train_mb_size=4, evaluator=None
    )
    train(strategy, plain(1))
    with torch.inference_mode():
        strategy.eval(plain(1).test_stream)
    train(strategy, plain(1))


# -- settings


@every_learner
def test_a_misspelt_keyword_is_refused_however_the_others_are_given(cls):
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for given in ((), (model,), (model, optimizer), (model, optimizer, nn.CrossEntropyLoss())):
        rest = (
            {"model": model, "optimizer": optimizer}
            if not given
            else {"optimizer": optimizer}
            if len(given) == 1
            else {}
        )
        with pytest.raises(
            UsageError, match=f"unknown setting of {cls.__name__} 'train_mbsize': did you mean 'train_mb_size'"
        ):
            cls(*given, **rest, train_mbsize=8)
    with pytest.raises(TypeError, match="train_mbsize"):  # as Python's own
        cls(model, optimizer, train_mbsize=8)
    strategy = cls(model, optimizer, nn.CrossEntropyLoss(), train_mb_size=8, evaluator=None)
    assert strategy.train_mb_size == 8


def test_a_class_of_ones_own_may_take_more():
    class Mine(FTML):
        def __init__(self, *, mine, **settings):
            super().__init__(**settings)
            self.mine = mine

    model = net()
    strategy = Mine(mine=3, model=model, optimizer=torch.optim.SGD(model.parameters(), lr=0.1), evaluator=None)
    assert strategy.mine == 3
    with pytest.raises(TypeError, match="inner_stepz"):  # as Avalanche says it
        Mine(mine=3, model=net(), optimizer=None, inner_stepz=1)


@every_learner
def test_train_passes_are_train_epochs(cls):
    assert learner(cls, train_passes=3).train_epochs == 3
    with pytest.raises(UsageError, match="train_epochs and train_passes are one setting: give one"):
        learner(cls, train_passes=3, train_epochs=3)


def test_online_naive_runs_on_arrivals():
    model = net()
    strategy = on_arrivals(OnlineNaive)(
        model=model, optimizer=torch.optim.SGD(model.parameters(), lr=0.1), steps=7, train_mb_size=4, evaluator=None
    )
    train(strategy, plain(1))
    assert strategy.cost.steps == 7
    with pytest.raises(TypeError, match="train_passes"):
        on_arrivals(OnlineNaive)(model=model, optimizer=strategy.optimizer, steps=7, train_passes=2)


# -- plugins that bring their own data


REPLAY = {
    "ReplayPlugin": lambda: ReplayPlugin(mem_size=20),
    "CoPEPlugin": lambda: CoPEPlugin(mem_size=20, n_classes=6, p_size=6),
    "GDumbPlugin": lambda: GDumbPlugin(20),
    "GSS_greedyPlugin": lambda: GSS_greedyPlugin(mem_size=20, input_size=[6]),
    "RARPlugin": lambda: RARPlugin(batch_size_mem=4),
    "BiCPlugin": lambda: BiCPlugin(mem_size=20),
    "ReplayPlugin, by rounds": lambda: per_round(ReplayPlugin(mem_size=20)),
}


@every_learner
@pytest.mark.parametrize("name", REPLAY)
def test_plugins_that_bring_their_own_data_are_refused_before_anything_is_trained(name, cls):
    strategy = learner(cls, plugins=[REPLAY[name]()])
    criterion = strategy._criterion
    with pytest.raises(
        UsageError, match=f"{name.split(',')[0]} replaced the .* of {cls.__name__}, .* leave that plugin out"
    ):
        strategy.train(plain().train_stream[0], eval_streams=[])
    assert torch.equal(strategy.model.weight, net().weight)
    assert (len(strategy.buffer.rounds), strategy.cost.steps) == (0, 0)
    assert strategy._criterion is criterion
