"""Learned inner rates: their gradient by central differences, losses of every step by hand, where they are kept."""

import pytest
import torch
from avalanche.models import IncrementalClassifier
from avalanche.training.plugins import EvaluationPlugin
from torch import nn

from ftml_bench.benchmarks import LinearRegression
from ftml_bench.errors import UsageError
from ftml_bench.models.copies import copy_of
from ftml_bench.strategies import MAMLPlusPlus, MetaSGD
from tests.strategies.learners import small_net

RATE, STEPS, OUTER = 0.2, 3, 0.1
EXACT = {"meta_batch_size": None, "support_size": None, "query_size": None}
engines = pytest.mark.parametrize(
    ("engine", "memory"), [("auto", "unroll"), ("auto", "adjoint"), ("loop", "auto"), ("higher", "auto")]
)


def built(cls, **changes):
    benchmark = LinearRegression(rounds=1)
    torch.manual_seed(0)
    model = benchmark.model()
    optimizer = torch.optim.SGD(model.parameters(), lr=OUTER)
    settings = {**EXACT, "inner_lr": RATE, "inner_steps": STEPS, "steps": 1, "evaluator": EvaluationPlugin(), **changes}
    return benchmark, cls(model=model, optimizer=optimizer, criterion=benchmark.criterion, **settings)


def after_each_step(benchmark, w, rates):
    """f(θ_i) after each inner step on ½ θᵀAθ + θᵀb, with a rate for every weight in every step."""
    losses = []
    for rate in rates:
        w = w - rate * (benchmark.A[0] @ w + benchmark.b[0])
        losses.append(benchmark.losses(w)[0])
    return torch.stack(losses)


def rates_of(strategy):
    return [p.detach().clone() for name, p in strategy.model.named_parameters() if name.startswith("inner_rate_")]


def differences(function, at):
    """The gradient of `function` by central differences."""
    found = torch.zeros_like(at)
    for i in range(at.numel()):
        step = torch.zeros_like(at)
        step.view(-1)[i] = 1e-5
        found.view(-1)[i] = (function(at + step) - function(at - step)) / 2e-5
    return found


@engines
def test_the_gradient_of_meta_sgd(engine, memory):
    benchmark, strategy = built(MetaSGD, engine=engine, memory=memory)
    w, (rate,) = strategy.model.weight.detach().clone().flatten(), rates_of(strategy)
    assert rate.shape == strategy.model.weight.shape
    assert rate.unique().item() == pytest.approx(RATE)
    strategy.train(benchmark.train_stream[0], eval_streams=[])
    of_rate = differences(lambda r: after_each_step(benchmark, w, [r.flatten()] * STEPS)[-1], rate)
    of_w = differences(lambda at: after_each_step(benchmark, at, [rate.flatten()] * STEPS)[-1], w)
    assert torch.allclose(rates_of(strategy)[0], rate - OUTER * of_rate, atol=1e-9)
    assert torch.allclose(strategy.model.weight.flatten(), w - OUTER * of_w, atol=1e-9)


def shares(n, until):
    """Of the losses after each step, after n of `until` training steps (Antoniou et al., section 4)."""
    early = max(1 / STEPS - n / (until * STEPS), 0.03 / STEPS)
    return torch.tensor([early] * (STEPS - 1) + [1 - (STEPS - 1) * early], dtype=torch.float64)


@engines
def test_the_gradients_of_maml_plus_plus_in_every_training_step(engine, memory):
    benchmark, strategy = built(MAMLPlusPlus, multi_loss_steps=2, engine=engine, memory=memory)
    for n in range(4):
        w, rates = strategy.model.weight.detach().clone().flatten(), torch.stack(rates_of(strategy))
        assert rates.shape == (STEPS,)
        strategy.train(benchmark.train_stream[0], eval_streams=[])

        def of_rates(rates, w=w, n=n):
            return (shares(n, 2) * after_each_step(benchmark, w, rates)).sum()

        def of_w(at, rates=rates, n=n):
            return (shares(n, 2) * after_each_step(benchmark, at, rates)).sum()

        assert torch.allclose(torch.stack(rates_of(strategy)), rates - OUTER * differences(of_rates, rates), atol=1e-9)
        assert torch.allclose(strategy.model.weight.flatten(), w - OUTER * differences(of_w, w), atol=1e-9)
    points = len(benchmark.train_stream[0].dataset)
    assert strategy.cost.gradient_evaluations == 4 * points * (STEPS * 2 + STEPS)  # K inner twice, K query passes


def test_the_order_is_first_until_its_steps_are_taken_and_after_a_resumption_too():
    benchmark, strategy = built(MAMLPlusPlus, first_order_steps=2)
    orders = []
    for _ in range(4):
        w, rates = strategy.model.weight.detach().clone().flatten(), torch.stack(rates_of(strategy))
        strategy.train(benchmark.train_stream[0], eval_streams=[])
        moved = (w - strategy.model.weight.detach().flatten()) / OUTER
        ends = w
        for rate in rates:
            ends = ends - rate * (benchmark.A[0] @ ends + benchmark.b[0])
        first = benchmark.A[0] @ ends + benchmark.b[0]
        orders.append(1 if torch.allclose(moved, first, atol=1e-10) else 2)
    assert orders == [1, 1, 2, 2]
    points = len(benchmark.train_stream[0].dataset)
    assert strategy.cost.gradient_evaluations == points * (2 * (STEPS + 1) + 2 * (2 * STEPS + 1))
    assert strategy.engine_settings["second_order"]
    _, late = built(MAMLPlusPlus, first_order_steps=2)
    late.clock.train_iterations = 2
    late.train(benchmark.train_stream[0], eval_streams=[])
    assert late.engine.second_order


def test_an_evaluation_takes_its_steps_with_the_learned_rates():
    benchmark, strategy = built(MetaSGD, update_steps=2)
    with torch.no_grad():
        strategy.model.inner_rate_0_0.copy_(torch.linspace(0.1, 0.5, 5))
    w, (rate,) = strategy.model.weight.detach().clone().flatten(), rates_of(strategy)
    strategy.buffer.add(benchmark.train_stream[0])
    adapted = strategy.model_for(benchmark.test_stream[0]).weight.detach().flatten()
    for _ in range(2):
        w = w - rate.flatten() * (benchmark.A[0] @ w + benchmark.b[0])
    assert torch.allclose(adapted, w, atol=1e-12)


@pytest.mark.parametrize("cls", [MetaSGD, MAMLPlusPlus])
def test_rates_are_parameters_of_the_model_which_no_inner_step_changes(cls):
    net = small_net()
    names = [name for name, _ in net.named_parameters()]
    optimizer = torch.optim.SGD(
        [{"params": list(net.parameters())[:2]}, {"params": list(net.parameters())[2:]}], lr=0.1
    )
    strategy = cls(model=net, optimizer=optimizer, evaluator=None, inner_steps=2)
    assert strategy.engine.adapted == names
    added = [p for name, p in net.named_parameters() if name not in names]
    assert len(added) == len(names) * (1 if cls is MetaSGD else 2)
    assert {id(p) for p in added} <= {id(p) for p in optimizer.param_groups[1]["params"]}
    assert [p.shape for _, p in copy_of(net).named_parameters()] == [p.shape for p in net.parameters()]
    again = cls(model=net, optimizer=torch.optim.SGD(net.parameters(), lr=0.1), evaluator=None, inner_steps=2)
    assert again.engine.adapted == names


def test_what_cannot_be_is_refused_in_one_line():
    net = small_net()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    for name in ("multi_loss_steps", "first_order_steps"):
        with pytest.raises(UsageError, match=f"{name}=0: expected None or a number of at least 1"):
            MAMLPlusPlus(model=net, optimizer=optimizer, evaluator=None, **{name: 0})
    growing = nn.Sequential(nn.Flatten(), IncrementalClassifier(588))
    with pytest.raises(UsageError, match="MetaSGD takes no model that can grow") as error:
        MetaSGD(model=growing, optimizer=torch.optim.SGD(growing.parameters(), lr=0.1), evaluator=None)
    assert "\n" not in str(error.value)
