"""FTML-VS: its gradient by central differences, the rate of an evaluation, and how many points it draws."""

import pytest
import torch
from avalanche.core import SupervisedPlugin
from avalanche.training.plugins import EvaluationPlugin

from ftml_bench.benchmarks import LinearRegression, arrivals
from ftml_bench.errors import UsageError
from ftml_bench.strategies import FTMLVS
from tests.strategies.learners import small_net

BETA, ETA, STEPS, OUTER = 0.3, 0.5, 2, 0.05


def built(**changes):
    benchmark = LinearRegression(rounds=3)
    torch.manual_seed(0)
    model = benchmark.model()
    settings = {"inner_lr": BETA, "eta": ETA, "inner_steps": STEPS, "steps": 1, "meta_batch_size": 3, "support_size": 4}
    strategy = FTMLVS(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=OUTER),
        criterion=benchmark.criterion,
        evaluator=EvaluationPlugin(),
        **{**settings, "query_size": 6, **changes},
    )
    return benchmark, strategy


def learned(strategy):
    """w, log η and log β, side by side."""
    model = strategy.model
    parts = [model.weight.flatten(), model.inner_rate_log_eta.view(1), model.inner_rate_log_beta.view(1)]
    return torch.cat(parts).detach().clone()


def loss_of(values, minibatch, shots):
    """½ E (wᵀx - y)² on the query points, the mean over tasks, after steps with α_s = (1 - 1 / (1 + η s)) β."""
    w, eta, beta = values[:5], values[5].exp(), values[6].exp()
    alpha = (1 - 1 / (1 + eta * shots)) * beta
    query_x, query_y, support_x, support_y = minibatch
    losses = []
    for x, y, qx, qy in zip(
        support_x, support_y, query_x.chunk(len(support_x)), query_y.chunk(len(support_x)), strict=True
    ):
        adapted = w
        for _ in range(STEPS):
            adapted = adapted - alpha * (x @ adapted - y.flatten()) @ x / len(x)
        losses.append(0.5 * (qx @ adapted - qy.flatten()).square().mean())
    return torch.stack(losses).mean()


@pytest.mark.parametrize("engine", ["auto", "loop", "higher"])
def test_every_gradient_is_that_of_differences_at_each_number_of_shots(engine):
    benchmark, strategy = built(engine=engine)
    seen, minibatches = {}, []

    class Minibatch(SupervisedPlugin):
        def before_forward(self, strategy, **kwargs):
            minibatches.append((strategy._shots, [part.clone() for part in strategy.mbatch[:4]], learned(strategy)))

        def after_update(self, strategy, **kwargs):
            shots, minibatch, before = minibatches.pop()
            found = torch.zeros(7, dtype=torch.float64)
            for i, step in enumerate(1e-5 * torch.eye(7, dtype=torch.float64)):
                above, below = (loss_of(before + sign * step, minibatch, shots) for sign in (1, -1))
                found[i] = (above - below) / 2e-5
            seen[shots] = torch.allclose(learned(strategy), before - OUTER * found, atol=1e-9)
            assert minibatch[2].shape[1] == max(1, shots)

    strategy.plugins.insert(0, Minibatch())
    for _ in range(30):
        strategy.train(benchmark.train_stream[0], eval_streams=[])
    assert seen == dict.fromkeys(range(5), True)


def test_an_evaluation_takes_the_rate_of_the_points_that_there_are():
    benchmark, strategy = built(update_steps=1)
    w = strategy.model.weight.detach().clone().flatten()
    for arrival in arrivals(benchmark.train_stream[0], [3, 17]):
        strategy.buffer.add(arrival)
        (x, y), _ = strategy.buffer.everything([0])
        n = len(y)
        rate = (1 - 1 / (1 + ETA * n)) * BETA
        expected = w - rate * (x @ w - y.flatten()) @ x / n
        adapted = strategy.model_for(benchmark.test_stream[0]).weight.detach().flatten()
        assert torch.allclose(adapted, expected, atol=1e-12), n


def test_shots_are_uniform_from_none_to_the_most_and_tasks_have_as_many_points():
    benchmark, strategy = built()
    strategy.buffer.add(benchmark.train_stream[0])
    strategy.buffer.add(next(arrivals(benchmark.train_stream[1], [8, 12])))  # enough for two shots and the query
    counts, draws = torch.zeros(5), 2000
    for _ in range(draws):
        labels = strategy._draw()[-1]
        counts[strategy._shots] += 1
        assert strategy._shots <= 2 or set(labels.tolist()) == {0}
    assert float(((counts - draws / 5) ** 2 / (draws / 5)).sum()) < 20  # four degrees of freedom


def test_shots_are_at_most_half_of_what_there_is():
    benchmark, strategy = built()
    strategy.buffer.add(next(arrivals(benchmark.train_stream[0], [5, 15])))
    shots = set()
    for _ in range(100):
        strategy._draw()
        shots.add(strategy._shots)
    assert shots == {0, 1, 2}


def test_with_norms_by_the_support_set_it_has_two_points_at_least(digits):
    for batch_norm, least in [("support", 2), ("transductive", 0)]:
        model = small_net()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        settings = {"batch_norm": batch_norm, "support_size": 4, "meta_batch_size": 1, "evaluator": EvaluationPlugin()}
        strategy = FTMLVS(model=model, optimizer=optimizer, **settings)
        strategy.buffer.add(digits.train_stream[0])
        shots = set()
        for _ in range(60):
            strategy._draw()
            shots.add(strategy._shots)
        assert shots == set(range(least, 5))


def test_bad_settings_are_refused_in_one_line():
    model = small_net()
    for setting, message in [
        ({"eta": 0.0}, "eta=0.0: expected a number above 0"),
        ({"support_size": 1}, "support_size=1: expected a number of at least 2"),
    ]:
        with pytest.raises(UsageError, match=message):
            FTMLVS(model=model, optimizer=torch.optim.SGD(model.parameters(), lr=1.0), evaluator=None, **setting)
