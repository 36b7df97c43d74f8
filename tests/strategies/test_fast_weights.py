"""Continual-MAML and FOML: their updates against the formulas written out, and what predicts."""

import pytest
import torch
from avalanche.core import SupervisedPlugin
from avalanche.models import IncrementalClassifier
from avalanche.training.plugins import EvaluationPlugin
from torch import nn

from ftml_bench.benchmarks import HiddenBoundaries, LinearRegression, arrivals
from ftml_bench.errors import UsageError
from ftml_bench.metrics import online_metrics, regret_metrics
from ftml_bench.models import MultiHeadNet
from ftml_bench.protocol import evaluations, held_out
from ftml_bench.saving import load_state_dict, state_dict
from ftml_bench.strategies import FOML, ContinualMAML
from tests.strategies.learners import small_net

INNER, OUTER, K, PULL = 0.3, 0.2, 2, 0.5
SIZES = {"meta_batch_size": 2, "support_size": 4, "query_size": 3}


def built(cls, benchmark=None, **changes):
    benchmark = benchmark or LinearRegression(rounds=5)
    torch.manual_seed(0)
    model = benchmark.model()
    settings = {"inner_lr": INNER, "inner_steps": K, "steps": 2, "evaluator": EvaluationPlugin(), **SIZES, **changes}
    optimizer = torch.optim.SGD(model.parameters(), lr=OUTER)
    return benchmark, cls(model=model, optimizer=optimizer, criterion=benchmark.criterion, **settings)


def slow(strategy):
    return strategy.model.weight.detach().clone().flatten()


def fast(strategy):
    return strategy.fast["weight"].clone().flatten()


def descended(w, x, y, steps, pull=0.0, anchor=None):
    """Steps on ½ E (wᵀx - y)² + pull / 2 ‖w - anchor‖²."""
    for _ in range(steps):
        w = w - INNER * ((x @ w - y.flatten()) @ x / len(x) + (pull * (w - anchor) if pull else 0))
    return w


def loss(w, x, y):
    return float(0.5 * (x @ w - y.flatten()).square().mean())


def query_loss(start, minibatch, pull=0.0, anchor=None):
    query_x, query_y, support_x, support_y = minibatch
    parts = zip(support_x, support_y, query_x.chunk(len(support_x)), query_y.chunk(len(support_x)), strict=True)
    return sum(loss(descended(start, x, y, K, pull, anchor), qx, qy) for x, y, qx, qy in parts) / len(support_x)


def differences(function, at):
    steps = 1e-5 * torch.eye(len(at), dtype=at.dtype)
    return torch.tensor([(function(at + step) - function(at - step)) / 2e-5 for step in steps], dtype=at.dtype)


class Minibatches(SupervisedPlugin):
    def __init__(self):
        super().__init__()
        self.seen = []

    def before_forward(self, strategy, **kwargs):
        self.seen.append([part.clone() for part in strategy.mbatch[:4]])


def points(experience):
    return experience.stacked.take(torch.arange(len(experience.stacked)))


def test_continual_maml_is_its_formulas():
    minibatches = Minibatches()
    benchmark, strategy = built(ContinualMAML, gamma=0.1, plugins=[minibatches])
    phi = theta = slow(strategy)
    last, kept, jumps = None, [], []
    for round in benchmark.train_stream:
        for arrival in arrivals(round, [8, 12]):
            x, y = points(arrival)
            strategy.train(arrival, eval_streams=[])
            jumps.append(last is not None and loss(theta, x, y) - last >= 0.1)
            assert len(minibatches.seen) == (2 if jumps[-1] else 0)
            for minibatch in minibatches.seen:
                assert {*minibatch[0].flatten().tolist(), *minibatch[2].flatten().tolist()} <= {
                    *torch.cat(kept).flatten().tolist()
                }
                phi = phi - OUTER * differences(lambda w, m=minibatch: query_loss(w, m), phi)
            minibatches.seen.clear()
            theta = descended(phi if jumps[-1] else theta, x, y, K)
            kept = [x] if jumps[-1] else [*kept, x]
            last = loss(theta, x, y)
            assert torch.allclose(slow(strategy), phi, atol=1e-8)
            assert torch.allclose(fast(strategy), theta, atol=1e-8)
            assert sum(len(y) for _, y in strategy._kept) == sum(map(len, kept))
    assert 1 < sum(jumps) < len(jumps)
    assert strategy.cost.steps == 2 * sum(jumps)
    per_step = 2 * (3 + 4 * K * 2)
    assert strategy.cost.gradient_evaluations == strategy.cost.steps * per_step + K * 5 * 20


def test_foml_is_its_formulas():
    minibatches = Minibatches()
    benchmark, strategy = built(FOML, pull=PULL, plugins=[minibatches])
    theta = phi = slow(strategy)
    seen = []
    for round in benchmark.train_stream[:3]:
        for arrival in arrivals(round, [8, 12]):
            x, y = points(arrival)
            seen += x.flatten().tolist()
            strategy.train(arrival, eval_streams=[])
            for minibatch in minibatches.seen:
                phi = descended(phi, x, y, 1, PULL, theta)
                assert {*minibatch[0].flatten().tolist(), *minibatch[2].flatten().tolist()} <= {*seen}
                gradient = differences(lambda anchor, m=minibatch, phi=phi: query_loss(phi, m, PULL, anchor), theta)
                theta = theta - OUTER * gradient
            assert len(minibatches.seen) == 2
            minibatches.seen.clear()
            assert torch.allclose(fast(strategy), phi, atol=1e-8)
            assert torch.allclose(slow(strategy), theta, atol=1e-8)
    assert not torch.allclose(phi, theta, atol=1e-3)
    assert strategy.cost.gradient_evaluations == 12 * 2 * (3 + 2 * 4 * K) + 3 * 2 * 20


@pytest.mark.parametrize("cls", [ContinualMAML, FOML])
def test_fast_weights_predict_every_task_whether_or_not_it_has_arrived(cls):
    benchmark, strategy = built(cls)
    strategy.train(benchmark.train_stream[0], eval_streams=[])
    for t in (0, 3):
        model = strategy.model_for(held_out(benchmark, t))
        assert torch.equal(model.weight.flatten(), fast(strategy))
    assert not torch.equal(slow(strategy), fast(strategy))


@pytest.mark.parametrize("cls", [ContinualMAML, FOML])
def test_the_loss_of_a_round_is_that_of_the_fast_weights_that_came_to_it(cls):
    metric = regret_metrics(benchmark=LinearRegression(rounds=5))
    benchmark, strategy = built(cls, evaluator=EvaluationPlugin(metric))
    for t, round in enumerate(benchmark.train_stream):
        came = fast(strategy)
        strategy.train(round, eval_streams=[])
        strategy.eval([held_out(benchmark, t)])
        assert metric[0].losses[t] == pytest.approx(float(benchmark.losses(came)[t]))


@pytest.mark.parametrize("cls", [ContinualMAML, FOML])
def test_saved_within_a_round_they_go_on_bit_for_bit(cls):
    benchmark, whole = built(cls)
    _, resumed = built(cls)
    stream = [arrival for round in benchmark.train_stream for arrival in arrivals(round, 5)]
    for arrival in stream[:7]:
        whole.train(arrival, eval_streams=[])
    done = load_state_dict(resumed, state_dict(whole), stream)
    for strategy in (whole, resumed):
        for arrival in stream[done:]:
            strategy.train(arrival, eval_streams=[])
    assert torch.equal(slow(whole), slow(resumed))
    assert torch.equal(fast(whole), fast(resumed))


def test_online_performance_is_the_mean_of_all_evaluations(recorder):
    benchmark = HiddenBoundaries(rounds=6, of="Sinusoids", of_settings={"rounds": 3})
    _, strategy = built(
        FOML, benchmark, inner_lr=0.01, evaluator=EvaluationPlugin(online_metrics(metric="loss"), loggers=[recorder])
    )
    losses = [e.loss for e in evaluations(strategy, benchmark, [4, 6])]
    curve = recorder.curves()["Online_Performance/eval_phase/test_stream"]
    assert curve == [(t + 1, pytest.approx(sum(losses[: 2 * t + 2]) / (2 * t + 2))) for t in range(6)]


def refused(cls, model, **settings):
    with pytest.raises(UsageError) as error:
        cls(model=model, optimizer=torch.optim.SGD(model.parameters(), lr=1.0), evaluator=None, **settings)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_what_cannot_be_is_refused_in_one_line():
    for cls in (ContinualMAML, FOML):
        assert refused(cls, small_net(), support_size=0) == "support_size=0: expected a number of at least 1"
        heads = MultiHeadNet(image_size=14, layers=3, filters=4, classes=10, heads=2)
        assert "takes task labels" in refused(cls, heads)
        assert "grows" in refused(cls, nn.Sequential(nn.Flatten(), IncrementalClassifier(588)))
    assert "pull=0.0: expected a number above 0" in refused(FOML, small_net(), pull=0.0)
    assert "second_order=False" in refused(FOML, small_net(), second_order=False)


@pytest.mark.parametrize(("name", "value"), [("second_order", False), ("inner_steps", 0)])
def test_a_setting_without_which_no_slow_weight_is_learned_is_refused_whenever_it_comes(name, value):
    benchmark, strategy = built(FOML, pull=PULL)
    strategy.train(benchmark.train_stream[0], eval_streams=[])
    setattr(strategy, name, value)
    before = slow(strategy), fast(strategy)
    with pytest.raises(UsageError, match="act on the pull alone"):
        strategy.train(benchmark.train_stream[1], eval_streams=[])
    assert torch.equal(slow(strategy), before[0])
    assert torch.equal(fast(strategy), before[1])
