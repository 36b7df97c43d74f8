"""Points of every kind that Naive takes: taken, or refused in one line before anything is trained."""

import numpy as np
import pytest
import torch
from avalanche.benchmarks.utils import AvalancheDataset, DataAttribute, TaskLabels
from avalanche.training import Naive
from torch import nn
from torch.utils.data import TensorDataset

from ftml_bench.errors import UsageError
from ftml_bench.strategies import FTML
from tests.strategies.avalanche.scripts import (
    Points,
    every_learner,
    learner,
    net,
    stream,
    tensors,
    train,
)


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


SEEN = []  # by `Scaling` and its copies: the type of the inputs, and the points


class Scaling(nn.Module):
    """Takes bytes."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.linear = nn.Linear(6, 6)

    def forward(self, x):
        SEEN.append((x.dtype, {tuple(point.tolist()) for point in x.detach().float()}))
        return self.linear((x.float() / 255).to(self.linear.weight.dtype))


def seen_by(run):
    SEEN.clear()
    run()
    return {kind for kind, _ in SEEN}, set().union(*(points for _, points in SEEN))


def of_bytes(seed):
    return (40 * tensors(seed=seed)[0] + 120).clamp(0, 255).to(torch.uint8)


@every_learner
def test_bytes_of_other_peoples_data_reach_the_model_as_naive_gives_them(cls):
    data = stream(*(TensorDataset(of_bytes(seed), tensors(seed=seed)[1]) for seed in (0, 1)))
    model = Scaling()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    naive = Naive(model=model, optimizer=optimizer, train_mb_size=8, eval_mb_size=7, evaluator=None)
    expected = seen_by(lambda: naive.train(data.train_stream, eval_streams=[]))
    assert expected[0] == {torch.uint8}
    strategy = learner(cls, Scaling(), steps=20)
    kinds, points = seen_by(lambda: train(strategy, data))
    assert kinds == expected[0]
    assert points <= expected[1]  # here as there numbers from 0 to 255
    assert seen_by(lambda: strategy.eval(data.test_stream)) == expected
    assert strategy.buffer.for_label(None, limit=40, seed=0)[0].dtype == torch.uint8


@pytest.mark.parametrize(
    ("inputs", "targets", "message"),
    [
        (tensors()[0].double(), tensors()[1], r"inputs of round \d have the shape \(6,\) of type torch.float"),
        (of_bytes(1), tensors()[1], r"inputs of round \d have the shape \(6,\) of type torch.\w+, of round \d"),
        (torch.ones(20, 5), tensors()[1], r"inputs of round \d have the shape \(\d,\)"),
        (tensors()[0], torch.randn(20, 6), r"targets of round \d have the shape .*: expected one shape and type"),
    ],
)
def test_rounds_of_several_types_and_shapes_are_refused_where_they_are_drawn_together(inputs, targets, message):
    data = stream(TensorDataset(*tensors()), TensorDataset(inputs, targets))
    strategy = train(learner(FTML), stream(TensorDataset(*tensors())))
    strategy.buffer.add(data.train_stream[1])
    with pytest.raises(UsageError, match=message) as error:
        strategy.buffer.everything([0, 1])
    assert "\n" not in str(error.value)


def test_targets_of_several_precisions_keep_their_values():
    strategy = train(learner(FTML), stream(TensorDataset(X, Y)))
    strategy.buffer.add(stream(TensorDataset(-X, Y.to(torch.int32))).train_stream[0])
    assert torch.equal(strategy.buffer.everything([0, 1])[0][1], torch.cat([Y, Y]))
