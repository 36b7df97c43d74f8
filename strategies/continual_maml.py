"""Continual-MAML (Caccia et al. 2020, "Online Fast Adaptation and Knowledge Accumulation", Algorithm 2)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ftml_bench.buffer.rules import CURRENT_ROUND, Rule
from ftml_bench.errors import at_least
from ftml_bench.strategies.fast_weights import FastWeights


class ContinualMAML(FastWeights):
    """Fast weights θ that adapt from arrival to arrival; where their loss jumps, a new task is taken to have begun.

    With the arrival D_t, the loss L and the slow weights φ: if L(θ_{t-1}; D_t) - L(θ_{t-1}; D_{t-1}) < γ, the task goes
    on; θ_t is θ_{t-1} after the inner steps on D_t, and D_t is kept. Else a boundary is taken to lie there: φ takes the
    training steps of the arrival, each along the meta-gradient of FTML on support and query sets of the data kept since
    the last boundary; these are let go of, and θ_t is φ after the inner steps on D_t. No other arrival has training
    steps. Both losses are read as those of the same fast weights; the loss modulates no rate.

    :param gamma: γ.
    :param meta_batch_size: pairs of support and query sets in a step.
    :param support_size: points of a support set; of fewer than both sizes each set has half, repeated in turn.
    :param query_size: points of a query set.
    :param buffer: what evaluations take norm statistics from; nothing is drawn from it.
    """

    def __init__(
        self,
        *,
        gamma: float = 0.5,
        meta_batch_size: int = 5,
        support_size: int = 10,
        query_size: int = 10,
        buffer: Rule | None = CURRENT_ROUND,
        **learner,
    ) -> None:
        at_least(1, meta_batch_size=meta_batch_size, support_size=support_size, query_size=query_size)
        super().__init__(buffer=buffer, **learner)
        self.gamma = gamma
        self.meta_batch_size = meta_batch_size
        self.support_size = support_size
        self.query_size = query_size
        self._loss: float | None = None  # of the fast weights on what arrived last
        self._kept: list[tuple[Tensor, Tensor]] = []  # the arrivals since the last boundary
        self._is_boundary = False

    def make_train_dataloader(self, **kwargs) -> None:
        """As `Learner.make_train_dataloader`, after it was looked whether the loss has jumped."""
        self._is_boundary = False
        if self._loss is not None and len(self.arrived[1]):
            self._is_boundary = self._fast_loss(*self.arrived) - self._loss >= self.gamma
        super().make_train_dataloader(**kwargs)

    def _steps(self) -> int:
        return super()._steps() if self._is_boundary and sum(len(y) for _, y in self._kept) > 1 else 0

    def _draw(self) -> list[Tensor]:
        x, y = (torch.cat(part) for part in zip(*self._kept, strict=True))
        rows = torch.stack([self._rows(len(y)) for _ in range(self.meta_batch_size)]).to(y.device)
        first, second = rows.split([self.support_size, self.query_size], dim=1)
        return self._minibatch((x[first], y[first]), (x[second], y[second]), torch.zeros_like(second))

    def _rows(self, n: int) -> Tensor:
        order, support, query = torch.randperm(n, generator=self.rng), self.support_size, self.query_size
        half = support if n >= support + query else n // 2
        return torch.cat([order[torch.arange(support) % half], order[half + torch.arange(query) % (n - half)]])

    def forward(self) -> Tensor:
        """In training: outputs on the query points after inner steps from the slow weights, (T * Q, *output)."""
        if not self.is_training:
            return super().forward()
        return self._adapted_outputs(self.rule)

    def _after_training_exp(self, **kwargs) -> None:
        if len(self.arrived[1]):
            slow = {name: p.detach() for name, p in self.model.named_parameters()}
            self._move_fast(slow if self._is_boundary else self.fast, *self.arrived, self.engine.inner_steps)
            self._loss = self._fast_loss(*self.arrived)
            self._kept = [*([] if self._is_boundary else self._kept), self.arrived]
        super()._after_training_exp(**kwargs)

    def _step_cost(self) -> tuple[int, int]:
        query, support = len(self.mb_y), self.meta_batch_size * self.support_size
        return support + query, query + support * self.engine.inner_steps * (2 if self.engine.second_order else 1)

    def state_dict(self) -> dict[str, Any]:
        """As `Learner.state_dict`, with what is kept since the last boundary."""
        return {**super().state_dict(), "loss": self._loss, "kept": self._kept}

    def load_state_dict(self, state, experiences) -> None:
        """As `Learner.load_state_dict`."""
        super().load_state_dict(state, experiences)
        self._loss, self._kept = state["loss"], state["kept"]
