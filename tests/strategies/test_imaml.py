"""iMAML on quadratics, whose inner problem and its derivative have closed forms."""

import pytest
import torch
from avalanche.training.plugins import EvaluationPlugin

from ftml_bench.benchmarks import LinearRegression
from ftml_bench.errors import UsageError
from ftml_bench.strategies import IMAML
from tests.strategies.learners import small_net

PENALTY, OUTER = 0.7, 0.4


def built(**changes):
    benchmark = LinearRegression(rounds=2)
    torch.manual_seed(0)
    model = benchmark.model()
    settings = {"meta_batch_size": None, "support_size": None, "query_size": None, "inner_lr": 1.0, "inner_steps": 60}
    strategy = IMAML(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=OUTER),
        criterion=benchmark.criterion,
        evaluator=EvaluationPlugin(),
        **{**settings, "steps": 1, "penalty": PENALTY, "cg_steps": 5, **changes},
    )
    return benchmark, strategy


def minimum(benchmark, w, t):
    """Of ½ θᵀAθ + θᵀb + λ/2 ‖θ - w‖², and (I + A/λ)⁻¹."""
    inverse = torch.linalg.inv(benchmark.A[t] + PENALTY * torch.eye(len(w), dtype=w.dtype))
    return inverse @ (PENALTY * w - benchmark.b[t]), PENALTY * inverse


@pytest.mark.parametrize("engine", ["auto", "loop", "vmap"])
def test_a_step_follows_the_implicit_gradient_in_closed_form(engine):
    benchmark, strategy = built(engine=engine)
    w = strategy.model.weight.detach().clone().flatten()
    strategy.buffer.add(benchmark.train_stream[0])
    strategy.train(benchmark.train_stream[1], eval_streams=[])
    gradient = torch.zeros_like(w)
    for t in (0, 1):
        theta, inverse = minimum(benchmark, w, t)
        gradient += inverse @ (benchmark.A[t] @ theta + benchmark.b[t]) / 2
    assert torch.allclose(strategy.model.weight.flatten(), w - OUTER * gradient, atol=1e-10)
    points = 2 * len(benchmark.train_stream[0].dataset)
    assert strategy.cost.gradient_evaluations == points + points * (60 + 5 + 1)


def test_an_evaluation_descends_the_proximal_problem():
    benchmark, strategy = built(update_steps=60)
    strategy.buffer.add(benchmark.train_stream[0])
    w = strategy.model.weight.detach().flatten()
    adapted = strategy.model_for(benchmark.test_stream[0]).weight.detach().flatten()
    assert torch.allclose(adapted, minimum(benchmark, w, 0)[0], atol=1e-10)


def test_bad_settings_are_refused_in_one_line():
    model = small_net()
    for setting, message in [
        ({"penalty": 0.0}, "penalty=0.0: expected a number above 0"),
        ({"cg_steps": 0}, "cg_steps=0"),
        ({"second_order": False}, "second_order=False"),
    ]:
        with pytest.raises(UsageError, match=message):
            IMAML(model=model, optimizer=torch.optim.SGD(model.parameters(), lr=1.0), evaluator=None, **setting)
