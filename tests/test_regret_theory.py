"""Section 4 of the paper on problems where everything is known: Theorem 1 and the regret of Corollary 2."""

from __future__ import annotations

import math
from functools import lru_cache

import pytest
import torch
from torch.func import hessian, vmap

from ftml_bench.benchmarks import LinearRegression
from ftml_bench.metrics.regret import cumulative_regret

D = 3
SEEDS = range(6)
ROUNDS = 512
ENDS = [64, 128, 256, 512]  # T, doubled each time


class Logistic:
    """f_t(w) = E log(1 + exp(−y wᵀx)) + μ/2 |w|², with known β, ρ, and G on the ball of a radius."""

    def __init__(self, tasks, *, points=20, mu=0.2, radius=2.0, seed=0):
        rng = torch.Generator().manual_seed(seed)
        self.mu, self.radius = mu, radius
        x = 0.8 * torch.randn(tasks, points, D, generator=rng, dtype=torch.float64)
        teacher = torch.tensor([1.5, -1.0, 0.5], dtype=torch.float64)
        teachers = teacher + torch.randn(tasks, 1, D, generator=rng, dtype=torch.float64)
        y = torch.where((x * teachers).sum(2) > 0, 1.0, -1.0).to(torch.float64)
        self.z = -y.unsqueeze(2) * x  # f = E log(1 + exp(wᵀz))
        lengths = self.z.norm(dim=2)
        # The logistic function has slope 1/4 at most, and its slope has slope 1/(6√3) at most.
        second_moments = torch.einsum("tni,tnj->tij", self.z, self.z) / points
        self.beta = float(torch.linalg.matrix_norm(second_moments, ord=2).max()) / 4 + mu
        self.rho = float(lengths.pow(3).mean(1).max()) / (6 * math.sqrt(3))
        self.G = float(lengths.mean(1).max()) + mu * radius
        self.alpha = min(1 / (2 * self.beta), mu / (8 * self.rho * self.G))

    def gradient(self, w, z):
        return (torch.sigmoid(z @ w).unsqueeze(1) * z).mean(0) + self.mu * w

    def loss(self, w, z):
        return torch.nn.functional.softplus(z @ w).mean() + self.mu / 2 * w @ w

    def adapted(self, w, z, alpha=None):
        return self.loss(w - (self.alpha if alpha is None else alpha) * self.gradient(w, z), z)


def ball(n, radius, seed=0):
    """n points of a ball, (n, D)."""
    rng = torch.Generator().manual_seed(seed)
    w = torch.randn(n, D, generator=rng, dtype=torch.float64)
    return w / w.norm(dim=1, keepdim=True) * radius * torch.rand(n, 1, generator=rng, dtype=torch.float64) ** (1 / D)


# -- Theorem 1


def test_the_adapted_quadratic_is_smooth_and_strongly_convex():
    for alpha_beta in (0.05, 0.25, 0.5):
        benchmark = LinearRegression(rounds=8, dimensions=D, mu=0.1, beta=2.0)
        alpha = alpha_beta / benchmark.beta

        def adapted(w, t, benchmark=benchmark, alpha=alpha):
            return benchmark.losses(benchmark.updated(w, alpha))[t]

        for w in ball(3, 5.0):
            for t in range(8):
                eigenvalues = torch.linalg.eigvalsh(hessian(lambda w, t=t: adapted(w, t))(w))
                assert benchmark.mu / 8 <= eigenvalues.min()
                assert eigenvalues.max() <= 9 * benchmark.beta / 8


def test_beyond_the_step_size_of_the_theorem_strong_convexity_is_lost():
    benchmark = LinearRegression(rounds=8, dimensions=D)
    flat = hessian(lambda w: benchmark.losses(benchmark.updated(w, 1 / benchmark.beta))[0])(torch.zeros(D).double())
    assert torch.linalg.eigvalsh(flat).min() < benchmark.mu / 8


def test_the_adapted_logistic_regression_is_smooth_and_strongly_convex():
    problem = Logistic(10)
    assert problem.rho > 0
    assert problem.alpha < 1 / (2 * problem.beta)  # here the Hessian's Lipschitz constant decides
    for w in ball(40, problem.radius):
        own = torch.linalg.eigvalsh(vmap(hessian(problem.loss), (None, 0))(w, problem.z))
        assert problem.mu <= own.min()
        assert own.max() <= problem.beta
        gradients = vmap(problem.gradient, (None, 0))(w, problem.z)
        assert gradients.norm(dim=1).max() <= problem.G
        eigenvalues = torch.linalg.eigvalsh(vmap(hessian(problem.adapted), (None, 0))(w, problem.z))
        assert problem.mu / 8 <= eigenvalues.min()
        assert eigenvalues.max() <= 9 * problem.beta / 8


def test_with_a_large_step_the_adapted_logistic_regression_is_not_even_convex():
    problem = Logistic(10)
    least = min(
        torch.linalg.eigvalsh(vmap(hessian(lambda w, z: problem.adapted(w, z, 3.0)), (None, 0))(w, problem.z)).min()
        for w in ball(40, problem.radius)
    )
    assert least < 0


# -- Corollary 2 on quadratics


@lru_cache
def quadratic(optima, seed):
    """The benchmark, its leaders and its least losses; leaders begin at 0."""
    benchmark = LinearRegression(
        seed=seed, rounds=ROUNDS, dimensions=D, optima=optima, images_per_round=4, held_out_per_round=4
    )
    first = torch.zeros(1, D, dtype=torch.float64)
    meta = torch.cat([first, torch.stack([benchmark.w_maml(n) for n in range(1, ROUNDS + 1)])])
    joint = torch.cat([first, torch.stack([benchmark.w_joint(n) for n in range(1, ROUNDS + 1)])])
    return benchmark, meta, joint, benchmark.least_losses()


def regret(losses, least):
    return torch.tensor(cumulative_regret(losses.tolist(), least.tolist()), dtype=torch.float64)


def regrets(optima, seed):
    """{learner: Regret_T at `ENDS`} and the bound of Corollary 2 there."""
    benchmark, meta, joint, least = quadratic(optima, seed)
    w_ftml, w_joint = meta[:-1], joint[:-1]
    losses = {
        "FTML": benchmark.losses(benchmark.updated(w_ftml)),
        "joint": benchmark.losses(w_joint),
        "joint, updated": benchmark.losses(benchmark.updated(w_joint)),
    }
    at = torch.tensor(ENDS) - 1
    return {name: regret(loss, least)[at] for name, loss in losses.items()}


def mean_growth(optima, name):
    """R(2T) − R(T) for T = 64, 128, 256, averaged over seeds."""
    return torch.stack([regrets(optima, seed)[name].diff() for seed in SEEDS]).mean(0)


def doublings(growth):
    """By what factor R(2T) − R(T) grows from one T to the next."""
    return (growth[1:] / growth[:-1]).tolist()


@pytest.mark.parametrize("optima", ["curvature", "independent"])
def test_exact_ftml_stays_under_the_bound(optima):
    for seed in SEEDS:
        benchmark, meta, _, least = quadratic(optima, seed)
        points = torch.cat([meta, benchmark.updated(meta[:-1]), benchmark.updated(meta[-1])])
        g = benchmark.gradient_bound(points)  # every iterate, adapted point and comparator
        for w in points[:: len(points) // 50]:
            assert (benchmark.A @ w + benchmark.b).norm(dim=1).max() <= g
        found = regret(benchmark.losses(benchmark.updated(meta[:-1])), least)
        bound = 32 * g**2 / benchmark.mu * (1 + torch.arange(1, ROUNDS + 1).log())
        assert (found <= bound).all()
        assert (found > 0).all()


@pytest.mark.parametrize("optima", ["curvature", "independent"])
def test_the_regret_of_exact_ftml_grows_by_a_constant_when_rounds_double(optima):
    assert doublings(mean_growth(optima, "FTML")) == pytest.approx([1, 1], abs=0.15)


@pytest.mark.parametrize("optima", ["curvature", "independent"])
def test_the_regret_of_joint_training_doubles_unless_it_is_updated(optima):
    assert doublings(mean_growth(optima, "joint")) == pytest.approx([2, 2], abs=0.3)


def test_the_regret_of_joint_training_followed_by_the_update_doubles_where_optima_depend_on_curvature():
    assert doublings(mean_growth("curvature", "joint, updated")) == pytest.approx([2, 2], abs=0.4)


def test_with_independent_optima_joint_training_followed_by_the_update_is_logarithmic_too():
    growth = mean_growth("independent", "joint, updated")
    assert doublings(growth) == pytest.approx([1, 1], abs=0.35)
    assert growth[-1] < 0.02 * mean_growth("independent", "joint")[-1]


def test_be_the_leader_never_regrets_and_the_leader_does():
    """f_t(U_t(·)) of w_{t+1}, which has seen round t, against that of w_t."""
    for seed in SEEDS:
        benchmark, meta, _, least = quadratic("curvature", seed)
        after = regret(benchmark.losses(benchmark.updated(meta[1:])), least)
        before = regret(benchmark.losses(benchmark.updated(meta[:-1])), least)
        assert after.max() < 1e-9
        assert before.min() > 0


# -- Corollary 2 on logistic regression


def test_exact_ftml_has_logarithmic_regret_on_logistic_regression_too():
    rounds = 128
    problem = Logistic(rounds, seed=1)
    losses = vmap(problem.adapted, (None, 0))
    gradients, hessians = (vmap(d(problem.adapted), (None, 0)) for d in (torch.func.grad, lambda f: hessian(f)))

    def minimise(w, n):
        for _ in range(20):
            gradient = gradients(w, problem.z[:n]).mean(0)
            if gradient.norm() < 1e-10:
                break
            w = w - torch.linalg.solve(hessians(w, problem.z[:n]).mean(0), gradient)
        assert gradient.norm() < 1e-10
        return w

    leaders = [torch.zeros(D, dtype=torch.float64)]
    for n in range(1, rounds + 1):
        leaders.append(minimise(leaders[-1], n))
    least = [float(losses(w, problem.z[:n]).sum()) for n, w in enumerate(leaders[1:], 1)]
    before = [float(problem.adapted(w, z)) for w, z in zip(leaders[:-1], problem.z, strict=True)]
    after = [float(problem.adapted(w, z)) for w, z in zip(leaders[1:], problem.z, strict=True)]

    updated = torch.stack(
        [w - problem.alpha * problem.gradient(w, z) for w, z in zip(leaders, problem.z, strict=False)]
    )
    assert torch.stack(leaders).norm(dim=1).max() <= problem.radius
    assert updated.norm(dim=1).max() <= problem.radius
    found = torch.tensor(cumulative_regret(before, least))
    assert (found <= 32 * problem.G**2 / problem.mu * (1 + torch.arange(1, rounds + 1).log())).all()
    growth = found[[15, 31, 63, 127]].diff()
    assert doublings(growth)[-1] < 1.5
    assert max(cumulative_regret(after, least)) < 1e-8
