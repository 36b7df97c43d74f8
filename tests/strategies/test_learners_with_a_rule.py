"""A learner whose inner steps follow a rule follows it everywhere: training, one evaluation, several in one pass."""

import pytest
import torch
from avalanche.training.plugins import EvaluationPlugin
from torch import nn
from torch.optim import SGD
from typing_extensions import Unpack

from ftml_bench.adaptation import InnerRule
from ftml_bench.benchmarks import Sinusoids
from ftml_bench.models import SinusoidMLP
from ftml_bench.strategies import FTML
from ftml_bench.strategies.meta_learner import MetaLearnerKeywords


class Rated(FTML):
    """FTML with half the inner rate, by a rule."""

    def __init__(self, *, second_order: bool = False, **learner: Unpack[MetaLearnerKeywords]) -> None:
        super().__init__(second_order=second_order, **learner)

    @property
    def rule(self) -> InnerRule:
        return InnerRule(torch.tensor(0.005))


def built(kind, **settings):
    torch.manual_seed(0)
    model = SinusoidMLP()
    return kind(
        model=model,
        optimizer=SGD(model.parameters(), lr=0.01),
        criterion=nn.MSELoss(),
        evaluator=EvaluationPlugin(),
        steps=2,
        eval_mb_size=50,
        second_order=False,
        **settings,
    )


def outputs(strategy, benchmark):
    found = []
    strategy._after_eval_forward = lambda **kwargs: found.append(strategy.mb_output.clone())
    strategy.eval(benchmark.test_stream)
    return torch.cat(found)


@pytest.mark.parametrize("in_one_pass", [False, True])
def test_a_rule_holds_in_training_and_in_every_evaluation(in_one_pass):
    benchmark = Sinusoids(seed=0, rounds=2, images_per_round=10, held_out_per_round=10)
    by_rule, by_rate = built(Rated, inner_lr=9.0), built(FTML, inner_lr=0.005)
    for strategy in (by_rule, by_rate):
        strategy._updates_in_one_pass = in_one_pass
        for experience in benchmark.train_stream:
            strategy.train(experience)
    assert not by_rule.takes_steps_together
    for a, b in zip(by_rule.model.parameters(), by_rate.model.parameters(), strict=True):
        assert torch.allclose(a, b, rtol=1e-5, atol=1e-7)
    assert torch.allclose(outputs(by_rule, benchmark), outputs(by_rate, benchmark), rtol=1e-4, atol=1e-5)
