"""Learners that keep no data of earlier rounds, on linear regression: their formulas written out, step by step."""

import pytest
import torch
from avalanche.training.plugins import EvaluationPlugin

from ftml_bench.benchmarks import LinearRegression, arrivals
from ftml_bench.buffer import LastRounds
from ftml_bench.errors import UsageError
from ftml_bench.metrics import regret_metrics
from ftml_bench.protocol import evaluations
from ftml_bench.saving import load_state_dict, state_dict
from ftml_bench.strategies import MOGD, MOML, TaskAverages
from tests.strategies.learners import small_net

INNER, OUTER, STEPS, ALPHA = 0.3, 0.2, 3, 0.4
EXACT = {"meta_batch_size": None, "support_size": None, "query_size": None}


def built(cls, rounds=4, lr=OUTER, **changes):
    benchmark = LinearRegression(rounds=rounds)
    torch.manual_seed(0)
    model = benchmark.model()
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    settings = {"inner_lr": INNER, "inner_steps": 1, "steps": STEPS, "evaluator": EvaluationPlugin(), **changes}
    return benchmark, cls(model=model, optimizer=optimizer, criterion=benchmark.criterion, **settings)


def weights(strategy):
    return strategy.model.weight.detach().clone().flatten()


def meta_gradient(benchmark, w, t):
    """(I - αA)(A U + b) of round t, with U one inner step (paper, appendix A)."""
    a, b = benchmark.A[t], benchmark.b[t]
    return (torch.eye(len(w), dtype=w.dtype) - INNER * a) @ (a @ (w - INNER * (a @ w + b)) + b)


def test_mogd_takes_gradients_of_the_current_round_alone_and_keeps_nothing():
    benchmark, strategy = built(MOGD, **EXACT)
    w = weights(strategy)
    for t, round in enumerate(benchmark.train_stream):
        strategy.train(round, eval_streams=[])
        for _ in range(STEPS):
            w = w - OUTER * meta_gradient(benchmark, w, t)
        assert torch.allclose(weights(strategy), w, atol=1e-12)
        assert list(strategy.buffer.rounds) == strategy.trainable_rounds == [t]


@pytest.mark.parametrize("window", [1, 2, 3])
def test_moml_is_its_formulas(window):
    """Of Acar et al.: the data of a few rounds, ω and λ stand for everything before."""
    benchmark, strategy = built(MOML, window=window, alpha=ALPHA, **EXACT)
    theta = weights(strategy)
    omega, lam = theta, torch.zeros_like(theta)
    for t, round in enumerate(benchmark.train_stream):
        strategy.train(round, eval_streams=[])
        for _ in range(STEPS):
            tasks = range(max(0, t - window + 1), t + 1)
            gradient = torch.stack([meta_gradient(benchmark, theta, k) for k in tasks]).mean(0)
            theta = theta - OUTER * (gradient - lam - ALPHA * omega + ALPHA * theta)
        assert torch.allclose(weights(strategy), theta, atol=1e-12)
        assert list(strategy.buffer.rounds) == list(tasks)
        lam = lam - ALPHA * (theta - omega)
        omega = (theta + omega) / 2 - lam / (2 * ALPHA)


def test_momls_buffer_is_of_its_window_or_of_another_rule_or_of_everything():
    for given, kept in (({}, [2, 3]), ({"buffer": LastRounds(2)}, [1, 2, 3]), ({"buffer": None}, [0, 1, 2, 3])):
        benchmark, strategy = built(MOML, window=2, **given, **EXACT)
        for round in benchmark.train_stream:
            strategy.train(round, eval_streams=[])
        assert list(strategy.buffer.rounds) == kept
    with pytest.raises(UsageError, match="unknown value of buffer 'windows': did you mean 'window'"):
        built(MOML, buffer="windows")


def test_the_state_of_moml_is_the_gradient_where_a_round_has_come_to_its_minimum():
    benchmark, strategy = built(MOML, rounds=2, alpha=ALPHA, **{**EXACT, "steps": 500})
    strategy.train(benchmark.train_stream[0], eval_streams=[])
    theta = weights(strategy)
    strategy.train(benchmark.train_stream[1], eval_streams=[])
    assert torch.allclose(strategy._lambda["weight"].flatten(), meta_gradient(benchmark, theta, 0), atol=1e-8)


def test_arrivals_of_one_round_are_one_round():
    """The state moves when another round begins; a round trained on twice is one round."""
    benchmark, strategy = built(MOML, rounds=2, **EXACT)
    first, second = benchmark.train_stream
    start = weights(strategy)
    for arrival in arrivals(first, [8, 12]):
        strategy.train(arrival, eval_streams=[])
        assert torch.equal(strategy._omega["weight"].flatten(), start)
    strategy.train(second, eval_streams=[])
    state = strategy._lambda["weight"].clone()
    assert not torch.equal(state, torch.zeros_like(state))
    strategy.train(second, eval_streams=[])
    assert torch.equal(strategy._lambda["weight"], state)


def adapted(benchmark, w, t, steps):
    shrink = torch.linalg.matrix_power(torch.eye(len(w), dtype=w.dtype) - INNER * benchmark.A[t], steps)
    return benchmark.optima[t] + shrink @ (w - benchmark.optima[t])


def test_averages_of_tasks_and_their_regret_are_exact():
    settings = {"inner_steps": 5, "evaluator": EvaluationPlugin(metric := regret_metrics(benchmark=LinearRegression()))}
    benchmark, strategy = built(TaskAverages, rounds=6, lr=1.0, **settings)
    metric[0].least = benchmark.least_losses(INNER).tolist()
    ends, starts = [], [weights(strategy)]
    for t, _ in enumerate(evaluations(strategy, benchmark, benchmark.arrivals)):
        ends.append(adapted(benchmark, starts[t], t, 5))
        starts.append(torch.stack(ends).mean(0))
        assert torch.allclose(weights(strategy), starts[-1], atol=1e-12)
    paid = [benchmark.losses(adapted(benchmark, w, t, 5))[t] for t, w in enumerate(starts[:-1])]
    assert [metric[0].losses[t] for t in range(6)] == pytest.approx([float(loss) for loss in paid])
    points = len(benchmark.train_stream[0].dataset)
    assert strategy.cost.images == 6 * STEPS * points
    assert strategy.cost.gradient_evaluations == 6 * STEPS * points * 5 + 6 * points * 5


def test_averages_while_a_round_arrives_are_of_what_is_there():
    """Each arrival starts again from the average of the rounds before."""
    benchmark, strategy = built(TaskAverages, rounds=2, lr=1.0, inner_steps=2)
    strategy.train(benchmark.train_stream[0], eval_streams=[])
    start = weights(strategy)
    for arrival in arrivals(benchmark.train_stream[1], [8, 12]):
        strategy.train(arrival, eval_streams=[])
        (x, y), _ = strategy.buffer.everything([1])
        w = start
        for _ in range(2):
            w = w - INNER * (x @ w - y.flatten()) @ x / len(y)
        assert torch.allclose(weights(strategy), (start + w) / 2, atol=1e-12)


@pytest.mark.parametrize(("cls", "settings"), [(MOGD, EXACT), (MOML, {**EXACT, "window": 2}), (TaskAverages, {})])
def test_saved_between_two_rounds_they_go_on_bit_for_bit(cls, settings):
    benchmark, whole = built(cls, **settings)
    _, resumed = built(cls, **settings)
    for round in benchmark.train_stream[:2]:
        whole.train(round, eval_streams=[])
    done = load_state_dict(resumed, state_dict(whole), benchmark.train_stream)
    for strategy in (whole, resumed):
        for round in benchmark.train_stream[done:]:
            strategy.train(round, eval_streams=[])
    assert torch.equal(weights(whole), weights(resumed))


def test_bad_settings_are_refused_in_one_line():
    model = small_net()
    for setting, message in [({"window": 0}, "window=0"), ({"alpha": 0.0}, "alpha=0.0: expected a number above 0")]:
        with pytest.raises(UsageError, match=message):
            MOML(model=model, optimizer=torch.optim.SGD(model.parameters(), lr=1.0), evaluator=None, **setting)
