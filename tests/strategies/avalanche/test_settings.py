"""Settings by position and by other names, misspelt and more than ours."""

import pytest
import torch
from avalanche.training.supervised.strategy_wrappers_online import OnlineNaive
from torch import nn

from ftml_bench.errors import UsageError
from ftml_bench.strategies import FTML
from ftml_bench.strategies.avalanche.stock import on_arrivals
from tests.strategies.avalanche.scripts import every_learner, learner, net, plain, train


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
    with pytest.raises(TypeError, match="inner_stepz"):
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
