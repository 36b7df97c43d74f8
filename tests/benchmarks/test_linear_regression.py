"""Linear regression: the data are the quadratics, and the closed forms are the minima."""

from __future__ import annotations

import math

import pytest
import torch

from ftml_bench.benchmarks import LinearRegression
from ftml_bench.benchmarks.linear_regression import HalfSquaredError
from ftml_bench.errors import UsageError


@pytest.fixture(scope="module")
def benchmark():
    return LinearRegression(seed=3, rounds=6, images_per_round=9, held_out_per_round=7, dimensions=4, mu=0.2, beta=1.5)


def data(experience):
    return experience.stacked.take(torch.arange(len(experience.stacked)))


def random_w(n=4, seed=0):
    return torch.randn(n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_the_moments_of_both_sets_of_points_are_those_of_the_task(benchmark):
    for t in range(6):
        for stream, n in ((benchmark.train_stream, 9), (benchmark.test_stream, 7)):
            x, y = data(stream[t])
            assert x.shape == (n, 4)
            assert y.shape == (n, 1)
            assert x.dtype == y.dtype == torch.float64
            torch.testing.assert_close(x.T @ x / n, benchmark.A[t], atol=1e-12, rtol=0)
            torch.testing.assert_close(-(x.T @ y).flatten() / n, benchmark.b[t], atol=1e-12, rtol=0)
            assert float(y.square().mean() / 2) == pytest.approx(float(benchmark.c[t]), abs=1e-12)
            assert stream[t].A.equal(benchmark.A[t])
            assert stream[t].b.equal(benchmark.b[t])
            assert stream[t].optimum.equal(benchmark.optima[t])
    same_size = LinearRegression(rounds=2)
    for train, test in zip(same_size.train_stream, same_size.test_stream, strict=True):
        assert not torch.isin(data(train)[0], data(test)[0]).any()


def test_the_mean_loss_is_f_and_a_gradient_step_on_all_data_is_its_update(benchmark):
    w = random_w()
    for t, experience in enumerate(benchmark.train_stream):
        model = benchmark.model()
        model.weight.data.copy_(w)
        x, y = data(experience)
        loss = benchmark.criterion(model(x), y)
        assert loss.item() == pytest.approx(float(benchmark.losses(w)[t]), abs=1e-12)
        loss.backward()
        stepped = (model.weight - 0.3 * model.weight.grad).flatten()
        torch.testing.assert_close(benchmark.updated(w, 0.3)[t], stepped, atol=1e-12, rtol=0)
    each = torch.stack([random_w(seed=t) for t in range(3)])
    torch.testing.assert_close(benchmark.losses(each)[2], benchmark.losses(each[2])[2])
    torch.testing.assert_close(benchmark.updated(each)[2], benchmark.updated(each[2], benchmark.inner_lr)[2])


def test_curvature_is_from_mu_to_beta_and_optima_are_where_the_gradient_vanishes(benchmark):
    assert (benchmark.mu, benchmark.beta) == (0.2, 1.5)
    eigenvalues = torch.linalg.eigvalsh(benchmark.A)
    torch.testing.assert_close(eigenvalues[:, 0], torch.full((6,), 0.2, dtype=torch.float64))
    torch.testing.assert_close(eigenvalues[:, -1], torch.full((6,), 1.5, dtype=torch.float64))
    assert len({round(float(e), 6) for e in eigenvalues[:, 1:-1].flatten()}) == 12
    assert benchmark.inner_lr <= 1 / (2 * benchmark.beta)
    torch.testing.assert_close(benchmark.updated(benchmark.optima, 0.4), benchmark.optima)
    torch.testing.assert_close(benchmark.losses(benchmark.optima), torch.full((6,), 0.1**2 / 2, dtype=torch.float64))


def test_the_closed_forms_are_minima(benchmark):
    """The gradients of both sums, by automatic differentiation of the mean losses over the data, vanish there."""
    for rounds in (1, 4, 6):
        for best, steps in ((benchmark.w_joint(rounds), 0), (benchmark.w_maml(rounds), 1)):
            w = best.clone().requires_grad_()
            total = 0.0
            for experience in benchmark.train_stream[:rounds]:
                x, y = data(experience)
                adapted = w
                if steps:
                    inner = benchmark.criterion((x @ w).unsqueeze(1), y)
                    (gradient,) = torch.autograd.grad(inner, w, create_graph=True)
                    adapted = w - benchmark.inner_lr * gradient
                total = total + benchmark.criterion((x @ adapted).unsqueeze(1), y)
            (gradient,) = torch.autograd.grad(total, w)
            assert gradient.abs().max() < 1e-12
            if steps:
                assert float(total.detach()) == pytest.approx(float(benchmark.least_losses()[rounds - 1]), abs=1e-12)
    torch.testing.assert_close(benchmark.w_maml(1), benchmark.optima[0])
    assert (benchmark.w_maml() - benchmark.w_maml(alpha=0.1)).norm() > 0.01


def gap(optima, rounds):
    benchmark = LinearRegression(rounds=rounds, optima=optima, images_per_round=6, held_out_per_round=6)
    return float((benchmark.w_joint() - benchmark.w_maml()).norm())


def test_joint_and_meta_learned_solution_differ_in_the_limit_only_where_optima_depend_on_curvature():
    assert gap("curvature", 400) > 0.5
    assert gap("independent", 400) < 0.15 < 2 * gap("independent", 25)
    # Independent optima have the same law: as far from their mean, and from 0, as the others.
    spreads = []
    for optima in ("curvature", "independent"):
        w = LinearRegression(rounds=400, optima=optima, images_per_round=6, held_out_per_round=6).optima
        spreads.append([float(w.var(0).sum()), float(w.square().sum(1).mean())])
    assert spreads[0] == pytest.approx(spreads[1], rel=0.15)


def test_no_gradient_in_the_ball_is_longer_than_its_bound(benchmark):
    points = torch.stack([random_w(seed=s) for s in range(20)])
    bound = benchmark.gradient_bound(points)
    on_the_sphere = torch.stack([random_w(seed=100 + s) for s in range(500)])
    on_the_sphere *= points.norm(dim=1).max() / on_the_sphere.norm(dim=1, keepdim=True)
    longest = max(float((benchmark.A @ w + benchmark.b).norm(dim=1).max()) for w in on_the_sphere)
    assert 0.7 * bound < longest <= bound


def test_seeds():
    def of(**arguments):
        return LinearRegression(images_per_round=6, held_out_per_round=6, **arguments)

    assert torch.equal(of(seed=1, rounds=3).b, of(seed=1, rounds=5).b[:3])
    assert torch.equal(data(of(seed=1, rounds=3).train_stream[2])[0], data(of(seed=1, rounds=5).train_stream[2])[0])
    assert not torch.allclose(of(seed=1, rounds=3).b, of(seed=2, rounds=3).b)
    other = of(seed=1, rounds=3, optima="independent")
    assert torch.equal(of(seed=1, rounds=3).A, other.A)
    assert not torch.allclose(of(seed=1, rounds=3).optima, other.optima)


def test_defaults():
    benchmark = LinearRegression()
    assert len(benchmark.train_stream) == 64
    assert (benchmark.inner_lr, benchmark.update_steps, benchmark.arrivals) == (0.5, 1, 20)
    assert isinstance(benchmark.criterion, HalfSquaredError)
    assert float(benchmark.criterion(torch.tensor([[1.0], [4.0]]), torch.tensor([[0.0], [0.0]]))) == 17 / 4
    assert benchmark.model().weight.dtype == torch.float64
    assert math.isfinite(benchmark.gradient_bound(benchmark.optima))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"images_per_round": 5}, "images_per_round 5: expected 6 or more"),
        ({"held_out_per_round": 3}, "held_out_per_round 3: expected 6 or more"),
        ({"dimensions": 1}, "dimensions 1: expected 2 or more"),
        ({"rounds": 0}, "rounds 0: expected 1 or more"),
        ({"mu": 2.0}, "mu 2, beta 1: expected 0 < mu <= beta"),
        ({"mu": 0}, "mu 0, beta 1: expected 0 < mu <= beta"),
        ({"optima": "dependent"}, "unknown value of optima 'dependent'"),
        ({"noise": -0.1}, "noise -0.1: expected 0 or more"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(UsageError, match=f"^{message}"):
        LinearRegression(**arguments)


def test_bad_rounds_of_a_solution(benchmark):
    with pytest.raises(UsageError, match=r"^rounds 7: expected 1 or more, 6 at most$"):
        benchmark.w_maml(7)
