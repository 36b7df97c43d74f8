"""The second form of Avalanche's LaMAML, which has a memory of its own: what is mended, and that nothing else is."""

import pytest
import torch
from avalanche.models import avalanche_forward
from avalanche.training.supervised.lamaml_v2 import LaMAML
from avalanche.training.templates import SupervisedMetaLearningTemplate
from torch import nn

from ftml_bench.benchmarks import Sinusoids, arrivals
from ftml_bench.errors import UsageError
from ftml_bench.strategies.avalanche.stock import on_arrivals
from tests.strategies.avalanche.stock import Net, build, parameters, stock

NAME = "avalanche.training.supervised.lamaml_v2:LaMAML"


class Labelled(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x, task_labels=None):
        return avalanche_forward(self.model, x, task_labels)


@pytest.mark.parametrize("n", [4, 5])  # slices of 2 points, and one of none
def test_with_a_model_that_takes_labels_it_is_avalanches_own_training(n, few_digits):
    torch.manual_seed(0)
    ours = build(NAME, steps=5, seed=5, n_inner_updates=n)
    theirs = stock(NAME, steps=5, seed=5, n_inner_updates=n, model=Labelled(Net()))
    theirs.model.load_state_dict(ours.model.state_dict())
    for round in few_digits.train_stream:
        ours.train(round, eval_streams=[])
        theirs.train(round, eval_streams=[])
    assert torch.equal(parameters(ours), parameters(theirs))


def test_the_bug_that_is_worked_round(few_digits):
    """When this fails, `_WithLabels` may go."""
    with pytest.raises(TypeError, match="positional argument"):
        stock(NAME, steps=1, seed=0).train(few_digits.train_stream[0], eval_streams=[])


def test_its_memory_is_of_the_rounds_before(few_digits):
    strategy = build(NAME, max_buffer_size=1000)
    seen = []
    for round in few_digits.train_stream:
        for arrival in arrivals(round, 8):
            strategy.train(arrival, eval_streams=[])
            seen.append(len(strategy.buffer))
    assert seen == [0, 0, 24, 24, 24, 48, 48, 48, 72]


def test_it_needs_classes():
    assert issubclass(LaMAML, SupervisedMetaLearningTemplate)
    benchmark = Sinusoids(rounds=1)
    model = benchmark.model()
    strategy = on_arrivals(LaMAML)(
        model=model, optimizer=torch.optim.SGD(model.parameters(), lr=0.1), criterion=benchmark.criterion, steps=1
    )
    with pytest.raises(UsageError, match="LaMAML needs classes"):
        strategy.train(benchmark.train_stream[0], eval_streams=[])
