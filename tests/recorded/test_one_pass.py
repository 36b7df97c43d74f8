"""Update procedures of several tasks in one pass: engines, and evaluations of several experiences."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch
from avalanche.core import SupervisedPlugin
from avalanche.training.plugins import EvaluationPlugin
from torch import nn

from ftml_bench import metrics
from ftml_bench.adaptation import make_engine
from ftml_bench.benchmarks import arrivals
from ftml_bench.errors import UsageError
from ftml_bench.models import PoseNet, RainbowNet, SinusoidMLP
from ftml_bench.strategies import meta_learner
from tests.recorded.together import SMOOTHED, learner

pytestmark = pytest.mark.usefixtures("double_precision")


NETWORKS = {
    "convolutions": (lambda: RainbowNet(filters=3, layers=3, image_size=8), SMOOTHED, (3, 8, 8)),
    "sinusoid": (lambda: SinusoidMLP(hidden=6), nn.MSELoss(), (1,)),
    "pose": (lambda: PoseNet(filters=2, layers=2, hidden=5, image_size=9), nn.MSELoss(), (3, 9, 9)),
}


def problem(name, tasks=4, points=7):
    torch.manual_seed(0)
    build, criterion, shape = NETWORKS[name]
    model = build()
    x = torch.rand(tasks, 2 * points, *shape)
    outputs = model(x[0]).shape[1]
    if isinstance(criterion, nn.CrossEntropyLoss):
        return model, criterion, x, torch.randint(outputs, (tasks, 2 * points))
    return model, criterion, x, torch.rand(tasks, 2 * points, outputs)


# -- engines


@pytest.mark.parametrize("batch_norm", ["support", "transductive"])
@pytest.mark.parametrize("memory", ["unroll", "adjoint"])
@pytest.mark.parametrize("name", NETWORKS)
def test_tasks_from_parameters_of_their_own_are_those_of_engines_of_their_own(name, memory, batch_norm):
    model, criterion, x, y = problem(name)
    settings = {"inner_lr": 0.05, "inner_steps": 2, "memory": memory, "batch_norm": batch_norm}
    engine = make_engine("batched", model, criterion, **settings)
    each = {
        n: (p.detach() * torch.linspace(0.5, 1.5, 4).view(4, *[1] * p.dim())).requires_grad_()
        for n, p in model.named_parameters()
    }
    outputs = engine.predict_each(each, (x[:, :7], y[:, :7]), x[:, 7:], memory)
    gradients = torch.autograd.grad(outputs.square().sum(), list(each.values()))
    for task in range(4):
        own = {n: p[task].detach().requires_grad_() for n, p in each.items()}
        one = slice(task, task + 1)
        expected = engine.predict(own, (x[one, :7], y[one, :7]), x[one, 7:])
        assert torch.allclose(outputs[one], expected, rtol=1e-9)
        found = torch.cat([g[task].flatten() for g in gradients])
        wanted = torch.cat([g.flatten() for g in torch.autograd.grad(expected.square().sum(), list(own.values()))])
        assert float((found - wanted).norm() / wanted.norm()) < 1e-9


@pytest.mark.parametrize("engine", ["loop", "vmap", "higher", "batched"])
def test_engines_that_start_all_tasks_alike_say_so(engine):
    model, criterion, x, y = problem("sinusoid")
    made = make_engine(engine, model, criterion, inner_lr=0.1, inner_steps=1, adapted="last_layer")
    assert not made.takes_each
    with pytest.raises(UsageError, match=f"{engine}.*starts all tasks from the same parameters"):
        made.predict_each(dict(model.named_parameters()), (x, y), x, "unroll")
    with pytest.raises(UsageError, match=f"{engine}.*starts all tasks from the same parameters"):
        made.choose_memory(dict(model.named_parameters()), (x, y))


@pytest.mark.parametrize("passes", ["one", "many"])
@pytest.mark.parametrize("adapted", ["all", "last_layer"])
@pytest.mark.parametrize("engine", ["batched", "loop"])
@pytest.mark.parametrize("name", NETWORKS)
def test_update_procedures_in_one_pass_are_those_of_one_task_after_the_other(name, engine, adapted, passes):
    model, criterion, x, y = problem(name)
    budget = {"memory_budget": 1} if passes == "many" else {}
    made = make_engine(engine, model, criterion, inner_lr=0.2, inner_steps=1, adapted=adapted, **budget)
    parameters = dict(model.named_parameters())
    before = deepcopy(model.state_dict())
    found = made.adapt_each(parameters, x, y, 3)
    assert len(found) == 4
    for task, weights in enumerate(found):
        expected = made.adapt(parameters, x[task], y[task], 3)
        assert list(weights) == list(expected)
        for n, value in weights.items():
            assert not value.requires_grad
            assert torch.allclose(value, expected[n], rtol=1e-9, atol=1e-12)
    assert not torch.equal(found[0][list(before)[-1]], before[list(before)[-1]])
    assert all(torch.equal(value, before[n]) for n, value in model.state_dict().items())


# -- evaluations of several tasks


class Losses(SupervisedPlugin):
    """The loss of every experience that is evaluated."""

    def __init__(self):
        super().__init__()
        self.found = []

    def after_eval_exp(self, strategy, *args, **kwargs):
        self.found.append((strategy.experience.current_experience, float(strategy.loss)))


def evaluated(stream, experiences, *, in_one_pass, sizes=(40, 40), **settings):
    losses = Losses()
    strategy = learner(plugins=[losses], **settings)
    strategy._updates_in_one_pass = in_one_pass
    for round, size in zip(stream.train_stream, sizes, strict=False):
        strategy.train(next(iter(arrivals(round, [size, 40] if size < 40 else 40))), eval_streams=[])
    passes = []
    adapt_each = strategy.engine.adapt_each
    strategy.engine.adapt_each = lambda p, x, y, steps, **rule: (
        passes.append(len(x)),
        adapt_each(p, x, y, steps, **rule),
    )[1]
    before, cost = deepcopy(strategy.model.state_dict()), strategy.cost.gradient_evaluations
    strategy.eval(experiences(stream.test_stream))
    assert all(torch.equal(value, before[n]) for n, value in strategy.model.state_dict().items())
    assert strategy._ahead == {}
    return losses.found, strategy.cost.gradient_evaluations - cost, passes


@pytest.mark.parametrize(
    ("experiences", "sizes", "passes"),
    [
        (lambda s: s, (40, 40), [2]),  # the last round is not seen yet
        (lambda s: s, (40, 40, 40), [3]),
        (lambda s: s, (40, 30, 40), [2, 1]),
        (lambda s: [s[1], s[0], s[1]], (40, 40), [2]),
        (lambda s: s[0], (40, 40), []),
        (lambda s: [s[0]], (40, 40), []),
        (lambda s: iter([s[0], s[1]]), (40, 40), []),
    ],
)
def test_tasks_that_are_evaluated_are_adapted_in_one_pass(streams, experiences, sizes, passes):
    expected, cost, _ = evaluated(streams[0], experiences, in_one_pass=False, sizes=sizes)
    found, cost_2, made = evaluated(streams[0], experiences, in_one_pass=True, sizes=sizes)
    assert [round for round, _ in found] == [round for round, _ in expected]
    assert [loss for _, loss in found] == pytest.approx([loss for _, loss in expected], rel=1e-8)
    assert cost == cost_2 > 0
    assert made == passes


def test_a_pass_holds_so_many_tasks_at_most(streams, monkeypatch):
    monkeypatch.setattr(meta_learner, "UPDATES_AT_ONCE", 2)
    found, _, passes = evaluated(streams[0], lambda s: s, in_one_pass=True, sizes=(40, 40, 40))
    expected, _, _ = evaluated(streams[0], lambda s: s, in_one_pass=False, sizes=(40, 40, 40))
    assert passes == [2, 1]
    assert [loss for _, loss in found] == pytest.approx([loss for _, loss in expected], rel=1e-8)


def test_regret_adapts_its_own_model_beside_those_of_an_evaluation(streams):
    found = []
    for in_one_pass in (True, False):
        (regret,) = metrics.regret_metrics()
        strategy = learner(evaluator=EvaluationPlugin(regret))
        strategy._updates_in_one_pass = in_one_pass
        for round in streams[0].train_stream:
            strategy.train(next(iter(arrivals(round, 40))), eval_streams=[])
            strategy.eval(streams[0].test_stream)
        found.append(list(regret.losses.values()))
    assert found[0] == pytest.approx(found[1], rel=1e-8)
