"""Evaluations in inference mode."""

import torch
from avalanche.core import SupervisedPlugin
from avalanche.training import Naive

from ftml_bench.strategies.avalanche.stock import on_arrivals
from tests.strategies.avalanche.scripts import every_learner, learner, net, plain, train


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
