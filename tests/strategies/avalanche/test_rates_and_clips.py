"""LearningRateAfter and GradientClip with our learners."""

import pytest
import torch
from avalanche.core import SupervisedPlugin
from avalanche.training.plugins import EvaluationPlugin

from ftml_bench.errors import UsageError
from ftml_bench.protocol import evaluations
from ftml_bench.strategies import FTML, FollowTheLeader, FromScratch, GradientClip, LearningRateAfter, TrainOnEverything
from tests.strategies.learners import small_net


@pytest.mark.parametrize("cls", [TrainOnEverything, FromScratch])
def test_the_learning_rate_changes_after_so_many_steps_of_the_whole_stream(cls, digits, recwarn):
    rates = []

    class Rates(SupervisedPlugin):
        def before_update(self, strategy, **kwargs):
            rates.append(strategy.optimizer.param_groups[0]["lr"])

    model = small_net()
    strategy = cls(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9),
        evaluator=EvaluationPlugin(),
        plugins=[LearningRateAfter(after_steps=5, lr=0.001), Rates()],
        train_mb_size=40,
        steps=2,
        eval_mb_size=50,
    )
    list(evaluations(strategy, digits, 20))
    assert rates == [0.01] * 5 + [0.001] * 7
    assert not [w for w in recwarn if "incompatible callbacks" in str(w.message)]


@pytest.mark.parametrize(("setting", "message"), [({"after_steps": 0}, "after_steps=0"), ({"lr": 0}, "lr=0")])
def test_bad_changes_of_the_learning_rate_are_refused(setting, message):
    with pytest.raises(UsageError, match=message):
        LearningRateAfter(**{"after_steps": 1, "lr": 0.1, **setting})


@pytest.mark.parametrize("cls", [FTML, TrainOnEverything])
def test_gradients_are_cut_element_by_element_before_the_update(cls, digits):
    cut = {}

    def trained(clip):
        class Gradients(SupervisedPlugin):
            def before_update(self, strategy, **kwargs):
                cut.setdefault(clip, torch.cat([p.grad.flatten().clone() for p in strategy.model.parameters()]))

        torch.manual_seed(0)
        model = small_net()
        plugins = [Gradients()] if clip is None else [GradientClip(clip), Gradients()]
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        strategy = cls(model=model, optimizer=optimizer, plugins=plugins, evaluator=EvaluationPlugin(), steps=1)
        strategy.train(digits.train_stream[0], eval_streams=[])

    trained(None)
    trained(0.01)
    assert float(cut[None].abs().max()) > 0.01
    assert torch.equal(cut[0.01], cut[None].clamp(-0.01, 0.01))


@pytest.mark.parametrize("value", [0, -1.0])
def test_a_clip_that_would_stop_all_is_refused(value):
    with pytest.raises(UsageError, match="clip"):
        GradientClip(value)
    model = small_net()
    with pytest.raises(UsageError, match="inner_clip="):
        FollowTheLeader(model=model, optimizer=torch.optim.SGD(model.parameters(), lr=0.1), inner_clip=value)
