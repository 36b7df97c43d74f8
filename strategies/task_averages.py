"""The average of what tasks were adapted to (after ARUBA: Khodak, Balcan, Talwalkar 2019, Algorithm 1)."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ftml_bench.buffer.rules import CURRENT_ROUND, Rule
from ftml_bench.strategies.displaced import Displaced


class TaskAverages(Displaced):
    """Starts every task from the average of what the tasks before were adapted to; keeps no data of theirs.

    φ_{t+1} = φ_t + (θ_t - φ_t) / t, the mean of θ_1, ..., θ_t, where θ_t is φ_t after the inner steps on all of D_t.
    That is the leader of the losses ½‖θ_t - φ‖² which bound the regret over tasks ("Adaptive Gradient-Based
    Meta-Learning Methods", section 2, where θ_t may also be the task's optimum). Of ARUBA's learned rates there are
    none here: the inner rate is `inner_lr`. SGD with the rate 1 takes φ_t to φ_{t+1} in the first step of an arrival,
    and further steps change nothing; other optimisers follow the average from afar.

    :param buffer: what is kept of earlier rounds, from which nothing is drawn.
    """

    def __init__(self, *, buffer: Rule | None = CURRENT_ROUND, **learner) -> None:
        super().__init__(buffer=buffer, **learner)
        self._start: dict[str, Tensor] = {}  # φ_t
        self._tasks = 0  # t

    def _rounds(self) -> list[int]:
        return [self.current_round]

    def _before_training_exp(self, **kwargs) -> None:
        begins = self.buffer.find(self.experience) != self.current_round
        super()._before_training_exp(**kwargs)
        if begins:
            self._start = {name: p.detach().clone() for name, p in self.model.named_parameters()}
            self._tasks += 1

    def _draw(self) -> list[Tensor]:
        return self._support(self._rounds(), None)

    def _target(self, x: Tensor, y: Tensor, labels: Tensor) -> dict[str, Tensor]:
        adapted = self._mean_adapted(self._start, x, y, labels)
        return {name: self._start[name] + (end - self._start[name]) / self._tasks for name, end in adapted.items()}

    def state_dict(self) -> dict[str, Any]:
        """As `Learner.state_dict`, with φ_t and t."""
        return {**super().state_dict(), "start": self._start, "tasks": self._tasks}

    def load_state_dict(self, state, experiences) -> None:
        """As `Learner.load_state_dict`."""
        super().load_state_dict(state, experiences)
        self._start, self._tasks = state["start"], state["tasks"]
