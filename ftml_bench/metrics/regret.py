"""Regret (paper, equation 3) as a plugin metric: what each round costs the learner that comes to it."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from itertools import accumulate

import torch
from avalanche.benchmarks import CLScenario
from avalanche.models.utils import avalanche_forward
from torch import nn

from ftml_bench.benchmarks.experiences import identity_of
from ftml_bench.metrics.performance import Performance, RoundMetric, predicted
from ftml_bench.models.copies import copy_of


def cumulative_regret(losses: Sequence[float], least: Sequence[float]) -> list[float]:
    """Regret_T for T = 1, 2, ... (equation 3).

    :param losses: f_t(U_t(w_t)) of each round.
    :param least: min_w Σ_{t ≤ T} f_t(U_t(w)) for each T.

    >>> cumulative_regret([3.0, 1.0], [0.5, 1.5])
    [2.5, 2.5]
    """
    return [total - best for total, best in zip(accumulate(losses), least, strict=True)]


class Regret(RoundMetric):
    """The loss of every round as equation 3 has it, f_t(U_t(w_t)), and the regret so far.

    w_t is the last model before any data of round t entered a training step: for most learners the one at the round's
    start; for one that trains on earlier rounds only (`FollowTheLeader`) the one at the round's end. After the round's
    last arrival w_t is adapted to all its data by the learner's own update procedure (U_t; a learner that has none is
    not adapted) and its mean criterion on the held-out data is f_t. Taken from the model as it is by then, after
    training on the round, the sum would be that of be-the-leader, which never regrets anything.

    `Loss_Of_Round` is emitted once a round, after its last arrival; `Regret` with it, where the least losses are known.
    The learner is left as it was, its cost included.
    """

    of_stream = ("losses",)
    saved_attributes = ("losses", "_leader", "_updated", "_of_updated")

    def __init__(self, least: Sequence[float] | None = None) -> None:
        """
        :param least: min_w Σ_{t ≤ T} f_t(U_t(w)) for T = 1, 2, ...
        """
        super().__init__("loss")
        self.least = least

    def reset(self) -> None:
        """Forget all rounds."""
        super().reset()
        self._leader: nn.Module | None = None  # w_t
        self._updated: nn.Module | None = None  # U_t(w_t), while it is evaluated
        self._of_updated = Performance()

    def _new_stream(self) -> None:
        super()._new_stream()
        self.losses: dict[int, float] = {}

    def before_training_exp(self, strategy):
        """Keep the model that comes to a new round."""
        if self._begins_a_round(identity_of(strategy.experience)):
            self._leader = copy_of(strategy.model)
        super().before_training_exp(strategy)

    def after_training_exp(self, strategy):
        """Keep the newer model, if it has not been trained on the round's data."""
        if self.round not in getattr(strategy, "trainable_rounds", [self.round]):
            self._leader = copy_of(strategy.model)

    def before_eval_exp(self, strategy):
        """Adapt w_t to the round's data, all of which have arrived."""
        super().before_eval_exp(strategy)
        if self.is_last and self._is_current(strategy.experience):
            self._updated = self._update(strategy)
            self._of_updated = Performance()

    def after_eval_iteration(self, strategy):
        """Add a minibatch."""
        super().after_eval_iteration(strategy)
        if self._updated is not None:
            # An Avalanche strategy takes task labels from the minibatch, where ours need none.
            labels = strategy._labels_of_points() if hasattr(strategy, "_labels_of_points") else strategy.mb_task_id
            with torch.no_grad():
                outputs = avalanche_forward(self._updated, strategy.mb_x, labels)
                self._of_updated.update(predicted(strategy, self._updated, outputs, strategy.mb_y))

    def after_eval_exp(self, strategy):
        """Note the loss; emit."""
        if self._updated is not None:
            self._updated = None
            self._of_updated.close(strategy)
            self.losses[self.round] = self._of_updated.loss
        return super().after_eval_exp(strategy)

    def _emit(self) -> list[tuple[str, float, int]]:
        if not self.is_last:
            return []
        found: list[tuple[str, float, int]] = [("Loss_Of_Round", self.losses[self.round], self.number)]
        # A sum over all rounds of one stream so far: not known where one of them was not evaluated.
        is_whole = self.round == self.place and len(self.losses) == self.number
        if self.least is not None and is_whole and self.number <= len(self.least):
            losses = [self.losses[t] for t in range(self.round + 1)]
            found.append(("Regret", cumulative_regret(losses, self.least[: len(losses)])[-1], self.number))
        return found

    def _update(self, strategy) -> nn.Module:
        """U_t(w_t), by the learner's own means."""
        assert self._leader is not None  # a round was trained on before it is evaluated
        self._leader.eval()
        if not hasattr(strategy, "model_for"):
            return self._leader
        model, cost = strategy.model, copy(strategy.cost)
        try:
            strategy.model = self._leader
            return strategy.model_for(strategy.experience)
        finally:
            strategy.model, strategy.cost = model, cost

    def __str__(self) -> str:
        return "Regret"


def regret_metrics(*, benchmark: CLScenario | None = None) -> list[RoundMetric]:
    """The loss of every round in equation 3, and on streams that know their best meta-learner the regret.

    :param benchmark: one that says the `least_losses()` of its rounds, as `LinearRegression` does: the regret is then
        exact for learners whose update procedure is the benchmark's, there one step of `benchmark.inner_lr` on all
        data. With any other, and with None, only the losses are emitted; the report sets those of a comparator (a row
        of the definition that is trained on all rounds) against them.
    """
    if benchmark is None or not hasattr(benchmark, "least_losses"):
        return [Regret()]
    return [Regret(benchmark.least_losses().tolist())]
