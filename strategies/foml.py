"""FOML (Rajasegaran, Finn, Levine 2022, "Fully Online Meta-Learning Without Task Boundaries")."""

from __future__ import annotations

import torch
from torch import Tensor

from ftml_bench.adaptation import InnerRule
from ftml_bench.errors import UsageError, at_least
from ftml_bench.strategies.avalanche.unfit import refuse_complex
from ftml_bench.strategies.fast_weights import FastWeights


class FOML(FastWeights):
    """Fast weights that are never reset, pulled towards slow weights that are meta-learned on a buffer of all data.

    In each training step, with the fast weights φ, the slow ones θ and the points D that have arrived,

        φ ← φ - α ∇(L(φ; D) + β/2 ‖φ - θ‖²),
        θ ← θ - η ∇_θ L(φ_K; D^query), where φ_K comes of K such steps from φ on D^support,

    both sets drawn from all data so far, whatever their task, and η the outer optimiser's rate. θ acts on φ_K through
    the pull alone. The K steps are read as steps on one support set, and the pull as a squared distance; the source's
    second regulariser, of the slow weights towards the fast ones, is not there.

    :param pull: β.
    :param meta_batch_size: pairs of support and query sets in a step.
    :param support_size: points of a support set.
    :param query_size: points of a query set.
    """

    def __init__(
        self,
        *,
        pull: float = 0.1,
        meta_batch_size: int = 1,
        support_size: int = 10,
        query_size: int = 10,
        **learner,
    ) -> None:
        at_least(1, meta_batch_size=meta_batch_size, support_size=support_size, query_size=query_size)
        if not 0 < pull < float("inf"):
            raise UsageError(f"pull={pull}: expected a number above 0, without which no slow weight is learned")
        super().__init__(**learner)
        refuse_complex(self)
        self._refuse_a_loop_without_pull()
        self.pull = pull
        self.meta_batch_size = meta_batch_size
        self.support_size = support_size
        self.query_size = query_size

    @property
    def rule(self) -> InnerRule:
        """The pull towards the slow weights."""
        return InnerRule(penalty=self.pull, anchor=dict(self.model.named_parameters()))

    def _refuse_a_loop_without_pull(self) -> None:
        """Such settings may also come later."""
        if not self.engine.second_order or not self.engine.inner_steps:
            raise UsageError("second_order=False or inner_steps=0: the slow weights of FOML act on the pull alone")

    def _draw(self) -> list[Tensor]:
        each = self.support_size + self.query_size
        size = self.meta_batch_size * each
        (x, y), labels = self.buffer.mixed(self._rounds(), size, self.rng, equal_tasks=False)
        order = torch.randperm(size, generator=self.rng)  # they come round by round
        x, y, labels = (part[order.to(part.device)].unflatten(0, (-1, each)) for part in (x, y, labels))
        n = self.support_size
        return self._minibatch((x[:, :n], y[:, :n]), (x[:, n:], y[:, n:]), labels[:, n:])

    def _before_training_iteration(self, **kwargs) -> None:
        self._refuse_a_loop_without_pull()
        if len(self.arrived[1]):
            self._move_fast(self.fast, *self.arrived, 1, self.rule)
        super()._before_training_iteration(**kwargs)

    def forward(self) -> Tensor:
        """In training: outputs on the query points after K steps from the fast weights, (T * Q, *output)."""
        if not self.is_training:
            return super().forward()
        return self._adapted_outputs(self.rule, parameters=self.fast)

    def _step_cost(self) -> tuple[int, int]:
        query, support = len(self.mb_y), self.meta_batch_size * self.support_size
        return support + query, query + 2 * support * self.engine.inner_steps
