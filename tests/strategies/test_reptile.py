"""Reptile on quadratics, in closed form; what it shows plugins; ANIL by central differences."""

import pytest
import torch
from avalanche.core import SupervisedPlugin
from avalanche.training.plugins import EvaluationPlugin
from torch import nn

from ftml_bench.benchmarks import LinearRegression, arrivals
from ftml_bench.errors import UsageError
from ftml_bench.strategies import ANIL, FTML, Reptile
from tests.strategies.learners import small_net

RATE, STEPS, EPSILON = 0.3, 4, 0.25


def on_quadratics(**changes):
    """Reptile and two rounds that are both known, on which its next step is taken."""
    benchmark = LinearRegression(rounds=2)
    torch.manual_seed(0)
    model = benchmark.model()
    settings = {
        "meta_batch_size": 6,
        "support_size": None,
        "inner_lr": RATE,
        "inner_steps": STEPS,
        "steps": 1,
        "seed": 1,
    }
    strategy = Reptile(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=EPSILON),
        criterion=benchmark.criterion,
        evaluator=EvaluationPlugin(),
        **{**settings, **changes},
    )
    strategy.buffer.add(benchmark.train_stream[0])
    return benchmark, strategy


def ends(benchmark, w, of):
    """Where K steps of gradient descent on ½ wᵀAw + wᵀb lead: w* + (I - αA)^K (w - w*)."""
    found = []
    for t in of:
        shrink = torch.linalg.matrix_power(torch.eye(len(w), dtype=w.dtype) - RATE * benchmark.A[t], STEPS)
        found.append(benchmark.optima[t] + shrink @ (w - benchmark.optima[t]))
    return torch.stack(found)


def test_a_step_is_epsilon_of_the_way_to_the_adapted_weights():
    benchmark, strategy = on_quadratics()
    drawn, start = [], strategy.model.weight.detach().clone().flatten()

    class Drawn(SupervisedPlugin):
        def before_forward(self, strategy, **kwargs):
            drawn.extend(strategy.mb_task_id.unflatten(0, (6, -1))[:, 0].tolist())

    strategy.plugins.insert(0, Drawn())
    strategy.train(benchmark.train_stream[1], eval_streams=[])
    assert set(drawn) == {0, 1}
    expected = start + EPSILON * (ends(benchmark, start, drawn).mean(0) - start)
    assert torch.allclose(strategy.model.weight.flatten(), expected, atol=1e-12)
    points = len(benchmark.train_stream[0].dataset)
    assert (strategy.cost.images, strategy.cost.gradient_evaluations) == (6 * points, 6 * points * STEPS)


def test_it_shows_the_loss_of_the_unadapted_model_and_takes_the_gradients_of_others():
    benchmark, strategy = on_quadratics(meta_batch_size=1)
    seen = {}

    class Outputs(SupervisedPlugin):
        def before_backward(self, strategy, **kwargs):
            w = strategy.model.weight.detach().flatten()
            seen["task"] = int(strategy.mb_task_id[0])
            seen["loss"], seen["w"] = float(strategy.loss.detach()), w.clone()
            strategy.loss += 3 * strategy.mb_output.sum()

    strategy.plugins.insert(0, Outputs())
    strategy.train(benchmark.train_stream[1], eval_streams=[])
    t, w = seen["task"], seen["w"]
    assert seen["loss"] == pytest.approx(float(benchmark.losses(w)[t]))
    x = benchmark.train_stream[t].stacked.x
    rows = benchmark.train_stream[t].stacked.rows
    expected = w - EPSILON * (w - ends(benchmark, w, [t])[0] + 3 * x[rows].sum(0))
    assert torch.allclose(strategy.model.weight.flatten(), expected, atol=1e-10)


def test_sizes_are_refused_in_one_line():
    model = small_net()
    for setting in ({"meta_batch_size": 0}, {"support_size": 0}):
        with pytest.raises(UsageError, match="=0: expected a number of at least 1"):
            Reptile(model=model, optimizer=torch.optim.SGD(model.parameters(), lr=1.0), evaluator=None, **setting)


def test_rounds_of_two_sizes_are_not_cut_into_tasks_of_their_mean():
    """20 points and 10, six times in all, may be as many as six tasks of 15."""
    benchmark, strategy = on_quadratics(steps=8)
    first = next(arrivals(benchmark.train_stream[1], 10))
    with pytest.raises(UsageError, match=r"support_size=None: expected rounds of one size in a minibatch, got .*20"):
        strategy.train(first, eval_streams=[])


def two_layers():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 1)).double()


@pytest.mark.parametrize("engine", ["auto", "loop", "higher"])
def test_the_gradient_of_anil_by_central_differences(engine):
    """Of a copy of the last layer that takes plain steps, by hand."""
    benchmark, model = LinearRegression(rounds=1), two_layers()
    start = [p.detach().clone() for p in model.parameters()]
    strategy = ANIL(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=1.0),
        criterion=nn.MSELoss(),
        evaluator=EvaluationPlugin(),
        meta_batch_size=None,
        support_size=None,
        query_size=None,
        inner_lr=RATE,
        inner_steps=2,
        steps=1,
        engine=engine,
    )
    round = benchmark.train_stream[0]
    x, y = round.stacked.take(torch.arange(len(round.stacked)))

    def loss(weights):
        w1, b1, w2, b2 = weights
        h = torch.tanh(x @ w1.T + b1)
        for _ in range(2):
            error = 2 * (h @ w2.T + b2 - y) / len(y)
            w2, b2 = w2 - RATE * error.T @ h, b2 - RATE * error.sum(0)
        return float((h @ w2.T + b2 - y).square().mean())

    strategy.train(round, eval_streams=[])
    for i, (before, after) in enumerate(zip(start, model.parameters(), strict=True)):
        direction = torch.randn(before.shape, dtype=before.dtype, generator=torch.Generator().manual_seed(i))
        above, below = ([*start[:i], before + step * direction, *start[i + 1 :]] for step in (1e-5, -1e-5))
        difference = (loss(above) - loss(below)) / 2e-5
        assert float(((before - after.detach()) * direction).sum()) == pytest.approx(difference, rel=1e-6, abs=1e-9)


def test_anil_is_ftml_with_the_last_layer():
    model = small_net()
    strategy = ANIL(model=model, optimizer=torch.optim.SGD(model.parameters(), lr=1.0), evaluator=None)
    assert isinstance(strategy, FTML)
    assert strategy.adapted == "last_layer"
    assert strategy.engine.adapted == [name for name, _ in model.named_parameters()][-2:]
