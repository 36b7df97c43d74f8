"""Rounds of one point, which cannot be a support and a query set: left out of training, which is said once."""

import warnings

import pytest
import torch
from torch.utils.data import TensorDataset

from ftml_bench.benchmarks import arrivals
from ftml_bench.errors import UsageError
from ftml_bench.strategies import FTML, TrainOnEverything
from tests.strategies.avalanche.scripts import learner, net, plain, stream, tensors

SMALL = "leaves it out"


def of_sizes(*sizes):
    return stream(*(TensorDataset(*tensors(n, seed=seed)) for seed, n in enumerate(sizes))).train_stream


def said(strategy, experiences):
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        for experience in experiences:
            strategy.train(experience, eval_streams=[])
    return [str(w.message) for w in found if SMALL in str(w.message)]


def test_a_stream_of_such_rounds_takes_no_step_and_says_why_once():
    strategy = learner(FTML, steps=2)
    (message,) = said(strategy, of_sizes(1, 1, 1))
    assert message.startswith("round 1 has 1 point: FTML trains on rounds of at least two, one for the support")
    assert "\n" not in message
    assert strategy.cost.steps == 0
    assert torch.equal(strategy.model.weight, net().weight)


def test_one_among_others_is_named():
    strategy = learner(FTML, steps=2)
    (message,) = said(strategy, of_sizes(6, 1, 6, 1))
    assert message.startswith("round 2 has 1 point")
    assert strategy.cost.steps == 8


@pytest.mark.parametrize("settings", [{}, {"support_size": None, "query_size": None, "meta_batch_size": 1}])
def test_the_first_point_of_a_larger_round_is_no_small_round(settings):
    strategy = learner(FTML, **settings)
    assert said(strategy, arrivals(plain(1).train_stream[0], [1, 19])) == []


@pytest.mark.parametrize(
    ("strategy", "settings", "said"),
    [
        (FTML, {"support_size": None, "query_size": None, "meta_batch_size": None}, "support_size=None"),
        (TrainOnEverything, {"draw": "all", "batch_norm": "support"}, "draw='all' in groups"),
    ],
)
def test_rounds_of_other_sizes_are_not_cut_into_tasks_of_their_mean(strategy, settings, said):
    strategy = learner(strategy, **settings)
    first, second, third = of_sizes(10, 10, 5)
    strategy.train(first, eval_streams=[])
    strategy.train(second, eval_streams=[])
    with pytest.raises(UsageError, match=rf"{said}: expected rounds of one size in a minibatch, got sizes \[5, 10\]"):
        strategy.train(third, eval_streams=[])


def test_who_trains_on_one_point_says_nothing():
    exact = learner(FTML, support_size=None, query_size=None)
    for strategy in (exact, learner(TrainOnEverything)):
        assert said(strategy, of_sizes(1, 1)) == []
        assert strategy.cost.steps == 2
