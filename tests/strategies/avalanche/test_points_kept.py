"""How much a strategy says that it keeps: counted by hand on three rounds of 24 points."""

import pytest
import torch
from avalanche.training.plugins import EvaluationPlugin
from torch import nn

from ftml_bench.buffer.rules import LastRounds, Reservoir
from ftml_bench.protocol import run
from ftml_bench.strategies import FTML, MOGD, FollowTheLeader, FromScratch, TrainOnEverything
from tests.strategies.avalanche.stock import build


@pytest.mark.parametrize(
    ("cls", "settings", "expected"),
    [
        (FTML, {}, 72),
        (FTML, {"buffer": Reservoir(points=10)}, 34),  # and the round at hand
        (FTML, {"buffer": LastRounds(rounds=1)}, 48),
        (MOGD, {}, 24),
        (FollowTheLeader, {}, 48),  # the rounds before
        (TrainOnEverything, {}, 72),
        (FromScratch, {}, 24),
    ],
)
def test_a_learner_keeps_what_its_training_draws_from(cls, settings, expected, few_digits):
    model = nn.Sequential(nn.Flatten(), nn.Linear(588, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    strategy = cls(
        model=model,
        optimizer=optimizer,
        criterion=nn.CrossEntropyLoss(),
        steps=1,
        evaluator=EvaluationPlugin(),
        **settings,
    )
    run(strategy, few_digits, arrivals=8, progress=False)
    assert strategy.cost.points_kept == expected


@pytest.mark.parametrize(
    ("name", "expected"),
    [("Replay", 44), ("MER", 44), ("supervised.lamaml_v2:LaMAML", 24 + 48), ("Naive", None), ("EWC", None)],
)
def test_of_avalanches_strategies_those_with_a_memory_say_how_much(name, expected, few_digits):
    strategy = build(f"avalanche.training{'.' if '.' in name else ':'}{name}")
    run(strategy, few_digits, arrivals=8, progress=False)
    assert strategy.cost.points_kept == expected
