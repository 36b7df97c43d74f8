"""Linear regression (Finn et al. 2019, appendix A), one a round: strongly convex, everything known in closed form."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ftml_bench.benchmarks.checks import check_int
from ftml_bench.benchmarks.stacked import StackedDataset
from ftml_bench.benchmarks.stream import TaskStream, carry
from ftml_bench.errors import UsageError, unknown
from ftml_bench.seeding import generator

OPTIMA = ("curvature", "independent")


class HalfSquaredError(nn.Module):
    """½ (output − target)², averaged over all numbers: the f of appendix A."""

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        """The mean of two tensors' half squared differences, a scalar; both (N, 1)."""
        return 0.5 * (output - target).square().mean()


class LinearRegression(TaskStream):
    """f_t(w) = ½ E(wᵀx − y)² = ½ wᵀA_t w + wᵀb_t + c_t, with A_t = E[xxᵀ], b_t = −E[xy] and c_t = ½ E[y²].

    (Appendix A has b without the minus, which its solutions need.) A round's datapoints are made so that their moments
    are A_t, b_t and c_t themselves, and so are its held-out points, other ones: the mean loss over either is f_t, to
    rounding. A gradient step on all datapoints of a round therefore is the paper's U_t(w) = w − α∇f_t(w).

    Tasks: A_t = QΛQᵀ with a random rotation Q and eigenvalues μ, β and others uniform between them, so every f_t is
    β-smooth and μ-strongly convex, and ρ = 0 (section 4.2). The optimum is w*_t = H v + s ξ_t, with v of length `pull`,
    the same for all rounds, ξ_t standard normal, and H the matrix with Q's axes that grows linearly from −1 where the
    curvature is μ to 1 where it is β. With `optima="independent"` H is that of another task of the same law: then joint
    and meta-learned solution have the same limit.

    Inputs are (N, d), targets (N, 1), both float64.

    - `.beta`, `.mu`: β and μ;
    - `.A` (T, d, d), `.b` (T, d), `.c` (T,) and `.optima` (T, d), float64: of all rounds. Each experience has its own
      `.A`, `.b` and `.optimum`.
    """

    version = 1

    def __init__(
        self,
        *,
        seed: int = 0,
        rounds: int = 64,
        images_per_round: int = 20,
        held_out_per_round: int = 20,
        dimensions: int = 5,
        mu: float = 0.1,
        beta: float = 1.0,
        optima: str = "curvature",
        pull: float = 3.0,
        spread: float = 0.5,
        noise: float = 0.1,
    ) -> None:
        """
        :param seed: decides every task and its points. With other sizes the tasks are the same.
        :param rounds: 1 or more.
        :param images_per_round: datapoints of each round, more than `dimensions` (named as on the streams of images).
        :param held_out_per_round: held-out points of each round, more than `dimensions`.
        :param dimensions: d, 2 or more.
        :param mu: μ, above 0.
        :param beta: β, at least μ.
        :param optima: "curvature": the optimum depends on A_t; "independent": it does not.
        :param pull: length of v.
        :param spread: s, standard deviation of each coordinate of an optimum about H v.
        :param noise: standard deviation of the targets about w*ᵀx; half its square is the least loss.
        :raises UsageError: for arguments outside these ranges.
        """
        seed = check_int("seed", seed)
        rounds = check_int("rounds", rounds, least=1)
        dimensions = check_int("dimensions", dimensions, least=2)
        # Inputs and noise are orthogonal columns: d + 1 of them.
        sizes = {
            "train": check_int("images_per_round", images_per_round, least=dimensions + 1),
            "test": check_int("held_out_per_round", held_out_per_round, least=dimensions + 1),
        }
        if not 0 < mu <= beta:
            raise UsageError(f"mu {mu:g}, beta {beta:g}: expected 0 < mu <= beta")
        if optima not in OPTIMA:
            raise unknown("value of optima", optima, OPTIMA)
        for name, value in (("pull", pull), ("spread", spread), ("noise", noise)):
            if not value >= 0:
                raise UsageError(f"{name} {value:g}: expected 0 or more")
        self.mu, self.beta = float(mu), float(beta)

        v = _normal(seed, "direction", dimensions)
        v *= pull / v.norm()
        # Round by round: products of whole batches depend in their last bits on the number of rounds.
        tasks = [_Curvature(seed, t, "task", dimensions) for t in range(rounds)]
        others = [_Curvature(seed, t, "other", dimensions) for t in range(rounds)]
        leaning = others if optima == "independent" else tasks
        self.A = torch.stack([task.matrix(self.mu, self.beta) for task in tasks])
        self.optima = torch.stack(
            [h.matrix(-1, 1) @ v + spread * _normal(seed, f"offset {t}", dimensions) for t, h in enumerate(leaning)]
        )
        self.b = torch.stack([-(a @ optimum) for a, optimum in zip(self.A, self.optima, strict=True)])
        self.c = 0.5 * (noise**2 - (self.b * self.optima).sum(1))

        data = {
            split: [_points(seed, t, split, n, self.A[t], self.optima[t], noise) for t in range(rounds)]
            for split, n in sizes.items()
        }
        super().__init__(
            title="Linear regression",
            train=data["train"],
            held_out=data["test"],
            threshold=None,  # judged by regret
            checkpoints=[images_per_round],
            arrivals=images_per_round,
            criterion=HalfSquaredError(),
            inner_lr=1 / (2 * self.beta),  # the largest α of Theorem 1 where ρ = 0
            update_steps=1,
            measures=("regret",),
        )
        for stream in self.streams.values():
            carry(stream, A=list(self.A), b=list(self.b), optimum=list(self.optima))

    def model(self) -> nn.Module:
        """wᵀx, in float64; its one parameter is w, (1, d)."""
        return nn.Linear(self.A.shape[1], 1, bias=False, dtype=torch.float64)

    def losses(self, w: Tensor) -> Tensor:
        """f_t(w_t) of the first rounds, (T,).

        :param w: (T, d), one a round; or (d,), the same in all rounds.
        """
        a, b, c = self._first(w)
        return 0.5 * torch.einsum("...i,...ij,...j->...", w, a, w) + (w * b).sum(-1) + c

    def updated(self, w: Tensor, alpha: float | None = None) -> Tensor:
        """U_t(w_t) = w_t − α∇f_t(w_t) of the first rounds, (T, d).

        :param w: (T, d), one a round; or (d,), the same in all rounds.
        :param alpha: α; None: `inner_lr`.
        """
        a, b, _ = self._first(w)
        return w - self._alpha(alpha) * (torch.einsum("...ij,...j->...i", a, w) + b)

    def w_joint(self, rounds: int | None = None) -> Tensor:
        """w*_joint, (d,): the minimiser of Σ f_t over the first `rounds` rounds (appendix A; None: all)."""
        n = self._rounds(rounds)
        return torch.linalg.solve(self.A[:n].sum(0), -self.b[:n].sum(0))

    def w_maml(self, rounds: int | None = None, alpha: float | None = None) -> Tensor:
        """w*_MAML, (d,): the minimiser of Σ f_t(U_t(w)) over the first `rounds` rounds, the best meta-learner in
        hindsight (appendix A; None: all).

        :param alpha: α; None: `inner_lr`.
        """
        n = self._rounds(rounds)
        a, b, _ = self._adapted(alpha)
        return torch.linalg.solve(a[:n].sum(0), -b[:n].sum(0))

    def least_losses(self, alpha: float | None = None) -> Tensor:
        """min_w Σ_{t ≤ T} f_t(U_t(w)) for T = 1, 2, ..., (rounds,): what equation 3 subtracts.

        :param alpha: α; None: `inner_lr`.
        """
        a, b, c = (sums.cumsum(0) for sums in self._adapted(alpha))
        return c - 0.5 * (b * torch.linalg.solve(a, b)).sum(1)

    def gradient_bound(self, points: Tensor) -> float:
        """G: no f_t has a longer gradient anywhere in the smallest ball around 0 that contains all of `points`.

        :param points: (n, d): every iterate, adapted point and comparator, if G is to be that of section 4.2.
        """
        radius = points.norm(dim=1).max()
        a, b = self.A, self.b.norm(dim=1)
        return float((torch.linalg.matrix_norm(a, ord=2) * radius + b).max())

    def _adapted(self, alpha: float | None) -> tuple[Tensor, Tensor, Tensor]:
        """f_t(U_t(w)) as quadratics in w, as `A`, `b` and `c` are f_t: A_† and b_† of appendix A before their mean."""
        shrink = torch.eye(self.A.shape[1], dtype=self.A.dtype) - self._alpha(alpha) * self.A
        weights = shrink @ shrink
        at_zero = self.losses(self.updated(torch.zeros_like(self.b[0]), alpha))
        return weights @ self.A, (weights @ self.b.unsqueeze(2)).squeeze(2), at_zero

    def _first(self, w: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        n = len(w) if w.dim() == 2 else len(self.A)
        return self.A[:n], self.b[:n], self.c[:n]

    def _rounds(self, rounds: int | None) -> int:
        return len(self.A) if rounds is None else check_int("rounds", rounds, least=1, most=len(self.A))

    def _alpha(self, alpha: float | None) -> float:
        return self.inner_lr if alpha is None else alpha


def _normal(seed: int, what: str, *shape: int) -> Tensor:
    rng = generator(seed, "stream", "linear-regression", what)
    return torch.randn(*shape, generator=rng, dtype=torch.float64)


class _Curvature:
    """The axes of a task, and where between least and most the eigenvalue of each is."""

    def __init__(self, seed: int, round_index: int, what: str, dimensions: int) -> None:
        # A uniform rotation or reflection: Q of a normal matrix, its signs by R's diagonal.
        q, r = torch.linalg.qr(_normal(seed, f"{what} {round_index} axes", dimensions, dimensions))
        self.axes = q * r.diagonal().sign()
        rng = generator(seed, "stream", "linear-regression", f"{what} {round_index} heights")
        between = torch.rand(dimensions - 2, generator=rng, dtype=torch.float64)
        self.heights = torch.cat([torch.tensor([0.0, 1.0], dtype=torch.float64), between])

    def matrix(self, least: float, most: float) -> Tensor:
        """The symmetric matrix of these axes with eigenvalues `least`, `most` and others between, (d, d)."""
        return (self.axes * (least + (most - least) * self.heights)) @ self.axes.T


def _points(
    seed: int, round_index: int, split: str, n: int, a: Tensor, optimum: Tensor, noise: float
) -> StackedDataset:
    """n points whose moments are exactly A = E[xxᵀ], −b = E[xy] = A w* and E[(y − w*ᵀx)²] = noise²."""
    dimensions = len(a)
    columns, _ = torch.linalg.qr(_normal(seed, f"{split} {round_index} points", n, dimensions + 1))
    columns *= n**0.5  # orthogonal, of mean square 1
    eigenvalues, axes = torch.linalg.eigh(a)
    x = columns[:, :dimensions] @ (axes * eigenvalues.sqrt()) @ axes.T
    y = x @ optimum + noise * columns[:, dimensions]
    return StackedDataset(x, y.unsqueeze(1), torch.arange(n))
