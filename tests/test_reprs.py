"""Streams, experiences, learners and engines say in a line what they are."""

import pytest
import torch
from avalanche.training import Naive
from torch import nn

from ftml_bench.adaptation import make_engine
from ftml_bench.benchmarks import HiddenBoundaries, RainbowDigits, arrivals
from ftml_bench.strategies import FTML
from ftml_bench.strategies.avalanche.stock import on_arrivals


def learner(cls, benchmark, **settings):
    model = benchmark.model()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    return cls(model=model, optimizer=optimizer, criterion=benchmark.criterion, evaluator=None, **settings)


def test_a_stream_and_its_parts(tiny_sinusoids, tiny_digits):
    points = "inputs (1,), targets (1,)"
    assert repr(tiny_sinusoids) == f"<Sinusoids: 3 rounds of 10 points and 25 held out, {points}; threshold: loss 1.0>"
    assert repr(tiny_sinusoids.train_stream) == "<train stream of Sinusoids: 3 rounds of 10 points>"
    place = "round 3 (experience 2) of the train stream of Sinusoids"
    round = tiny_sinusoids.train_stream[2]
    assert repr(round) == f"<{place}: 10 points, {points}>"
    assert [repr(arrival) for arrival in arrivals(round, [4, 6])] == [
        f"<arrival 1 of 2 in {place}: 4 points, 4 so far>",
        f"<arrival 2 of 2 in {place}: 6 points, 10 so far>",
    ]
    assert repr(tiny_digits.test_stream[0].stacked) == "<50 points: inputs (3, 14, 14), classes>"


def test_a_part_of_a_stream_counts_its_own_rounds(tiny_sinusoids):
    part = tiny_sinusoids.train_stream[1:]
    assert repr(part) == "<train stream of Sinusoids: 2 rounds of 10 points>"
    assert repr(part[0]).startswith("<round 2 (experience 1) of the train stream")


def test_a_stream_without_a_threshold_names_none():
    hidden = HiddenBoundaries(rounds=3, of_settings={"rounds": 2, "images_per_round": 20, "held_out_per_round": 20})
    assert repr(hidden) == "<HiddenBoundaries: 3 rounds of 10 points and 20 held out, inputs (3, 14, 14), classes>"


def test_learners(tiny_sinusoids):
    strategy = learner(FTML, tiny_sinusoids, inner_lr=0.01, steps=1)
    kind = "FTML of SinusoidMLP (1,761 parameters) by SGD, 1 step an arrival"
    assert repr(strategy) == f"<{kind}; 0 rounds, 0 points in its buffer>"
    for round in tiny_sinusoids.train_stream[:2]:
        strategy.train(round, eval_streams=[])
    assert repr(strategy) == f"<{kind}; 2 rounds, 20 points in its buffer>"
    by_epochs = repr(learner(FTML, tiny_sinusoids, inner_lr=0.01))
    assert "an epoch an arrival" in by_epochs


def test_avalanches_own_on_arrivals():
    digits = RainbowDigits(rounds=1, images_per_round=20, held_out_per_round=20)
    assert repr(learner(on_arrivals(Naive), digits, steps=3)).startswith("<Naive of RainbowNet (")


@pytest.mark.parametrize(("name", "second_order"), [("loop", True), ("batched", False)])
def test_engines(name, second_order):
    model = nn.Linear(2, 1)
    engine = make_engine(name, model, nn.MSELoss(), inner_lr=0.1, inner_steps=5, second_order=second_order)
    order = "second" if second_order else "first"
    assert repr(engine) == f"<engine {name} for Linear: 5 inner steps of 0.1, {order} order, 3 parameters adapted>"
