"""What has come after FTML in plain scripts: Avalanche's streams, plugins and models, without anything of ours."""

import pytest
import torch
from avalanche.evaluation.metrics import accuracy_metrics, loss_metrics
from avalanche.training.plugins import EvaluationPlugin, EWCPlugin

from ftml_bench import registry
from ftml_bench.benchmarks import RainbowDigits
from ftml_bench.models import MultiHeadNet
from ftml_bench.protocol import evaluations
from ftml_bench.strategies import GradientClip, per_round
from tests.strategies.avalanche.scripts import net, plain

SIZES = {"meta_batch_size": 2, "support_size": 3, "query_size": 3}
DESCENDANTS = {
    "Reptile": {"meta_batch_size": 2, "support_size": 3},
    **dict.fromkeys(["ANIL", "MetaSGD", "MAMLPlusPlus", "FTMLVS", "MOGD", "MOML", "IMAML", "FOML"], SIZES),
    "ContinualMAML": {**SIZES, "gamma": -9.0},
    "TaskAverages": {},
}
every_descendant = pytest.mark.parametrize("name", DESCENDANTS)


def test_none_is_left_out():
    old = {"FTML", "TrainOnEverything", "FromScratch", "FollowTheLeader"}
    assert set(registry.STRATEGIES) == {*old, *DESCENDANTS}


def built(name, model, **more):
    return registry.load("strategy", name)(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.01),
        train_mb_size=8,
        eval_mb_size=7,
        **{"inner_steps": 2, "steps": 2, **DESCENDANTS[name], **more},
    )


@every_descendant
def test_a_stock_stream_with_stock_metrics_and_plugins(name):
    metrics = EvaluationPlugin(
        accuracy_metrics(minibatch=True, experience=True, stream=True), loss_metrics(epoch=True, stream=True)
    )
    plugins = [per_round(EWCPlugin(ewc_lambda=1.0)), GradientClip(1.0)]
    strategy, benchmark = built(name, net(), evaluator=metrics, plugins=plugins), plain(3)
    before = [p.detach().clone() for p in strategy.model.parameters()]
    for experience in benchmark.train_stream:
        strategy.train(experience)
        found = strategy.eval(benchmark.test_stream)
    assert all(torch.isfinite(torch.tensor(value)) for value in found.values() if isinstance(value, float))
    assert any(not torch.equal(a, b) for a, b in zip(before, strategy.model.parameters(), strict=True))
    assert strategy.cost.steps == strategy.clock.train_iterations > 0


@every_descendant
def test_a_penalty_of_a_plugin_acts_on_the_step(name):
    """A term that a plugin adds to the loss moves the slow weights by its own gradient, the rate times."""

    class Towards(GradientClip):
        def __init__(self):
            super().__init__(1e9)

        def before_backward(self, strategy, **kwargs):
            strategy.loss += 3 * strategy.model.bias.sum()

    ends = []
    for plugins in ([], [Towards()]):
        strategy = built(name, net(), evaluator=EvaluationPlugin(), plugins=plugins, steps=1)
        stream = plain(2).train_stream
        for experience in stream[:2] if name == "ContinualMAML" else stream[:1]:
            strategy.train(experience, eval_streams=[])
        ends.append(strategy.model.bias.detach().clone())
    assert strategy.cost.steps == 1
    assert torch.allclose(ends[1], ends[0] - 0.01 * 3, atol=1e-6)


@pytest.mark.parametrize("name", ["Reptile", "TaskAverages", "MOGD", "MOML", "IMAML"])
def test_a_model_with_a_head_a_task(name):
    benchmark = RainbowDigits(rounds=2, images_per_round=12, held_out_per_round=10)
    torch.manual_seed(0)
    model = MultiHeadNet(image_size=14, layers=3, filters=4, classes=10, heads=2)
    strategy = built(name, model, evaluator=EvaluationPlugin())
    found = list(evaluations(strategy, benchmark, 6))
    assert strategy.engine.chosen["engine"] == "loop"
    assert all(torch.isfinite(torch.tensor(e.loss)) for e in found)
