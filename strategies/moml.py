"""MOML and B-MOML (Acar, Zhu, Saligrama 2021, "Memory Efficient Online Meta Learning", ICML)."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from ftml_bench.buffer import LastRounds
from ftml_bench.buffer.rules import Rule
from ftml_bench.errors import above_zero, at_least, unknown
from ftml_bench.strategies.avalanche.unfit import refuse_complex
from ftml_bench.strategies.ftml import FTML


class MOML(FTML):
    """FTML whose memory of earlier tasks is two vectors of the model's size, ω and λ, in the place of their data.

    A meta-step minimises f_t(U_t(θ)) - ⟨λ, θ⟩ - α⟨ω, θ⟩ + (α/2)‖θ‖². After round t

        λ ← λ - α (θ - ω),    ω ← (θ + ω) / 2 - λ / (2α),

    the new λ in the second; λ is then the gradient that f_t(U_t) has at θ if the round came to its minimum. They start
    as λ = 0 and ω = θ. With `window` B > 1, B-MOML, f is the mean over the B latest rounds, whose data are kept; that
    this window slides by a round at a time is how the source is read here.

    :param window: B, the rounds that training draws from, the current one included.
    :param alpha: α of the formulas above; not the inner rate.
    :param buffer: what is kept of earlier rounds: "window" what is drawn from, another rule, or with None everything.
    """

    def __init__(
        self, *, window: int = 1, alpha: float = 0.1, buffer: Rule | Literal["window"] | None = "window", **learner
    ) -> None:
        at_least(1, window=window)
        above_zero(alpha=alpha)
        if isinstance(buffer, str):
            if buffer != "window":
                raise unknown("value of buffer", buffer, ["window"])
            buffer = LastRounds(window - 1)
        super().__init__(buffer=buffer, **learner)
        refuse_complex(self)
        self.window = window
        self.alpha = alpha
        self._omega: dict[str, Tensor] = {}
        self._lambda: dict[str, Tensor] = {}

    def _rounds(self) -> list[int]:
        latest = list(self.buffer.rounds)[-self.window :]
        return [number for number in super()._rounds() if number in latest]

    def _before_training_exp(self, **kwargs) -> None:
        if self._omega and self.buffer.find(self.experience) != self.current_round:
            self._end_round()
        super()._before_training_exp(**kwargs)
        for name, p in self.model.named_parameters():
            if name not in self._omega or self._omega[name].shape != p.shape:  # the first time, and where it has grown
                self._omega[name], self._lambda[name] = p.detach().clone(), torch.zeros_like(p)

    @torch.no_grad()
    def _end_round(self) -> None:
        for name, omega in self._omega.items():
            theta = self.model.get_parameter(name)
            self._lambda[name] = self._lambda[name] - self.alpha * (theta - omega)
            self._omega[name] = (theta + omega) / 2 - self._lambda[name] / (2 * self.alpha)

    def criterion(self) -> Tensor:
        """The loss; in training with what the state stands for."""
        loss = super().criterion()
        return loss + self._of_state() if self.is_training else loss

    def _of_state(self) -> Tensor:
        """-⟨λ, θ⟩ - α⟨ω, θ⟩ + (α/2)‖θ‖²"""
        terms = []
        for name, theta in self.model.named_parameters():
            linear = self._lambda[name] + self.alpha * self._omega[name]
            terms.append((self.alpha / 2 * theta.square() - linear * theta).sum())
        return torch.stack(terms).sum()

    def state_dict(self) -> dict[str, Any]:
        """As `Learner.state_dict`, with ω and λ."""
        return {**super().state_dict(), "omega": self._omega, "lambda": self._lambda}

    def load_state_dict(self, state, experiences) -> None:
        """As `Learner.load_state_dict`."""
        super().load_state_dict(state, experiences)
        self._omega, self._lambda = state["omega"], state["lambda"]
