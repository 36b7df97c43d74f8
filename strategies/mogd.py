"""Meta online gradient descent: FTML without a memory of tasks (a baseline of Acar, Zhu, Saligrama 2021)."""

from __future__ import annotations

from ftml_bench.buffer.rules import CURRENT_ROUND, Rule
from ftml_bench.strategies.ftml import FTML


class MOGD(FTML):
    """Takes its meta-steps on the current task alone: w ← w - β ∇f_t(U_t(w)), with the outer optimiser.

    :param buffer: what is kept of earlier rounds, from which nothing is drawn; an evaluation of one of them that is not
        kept is by the unadapted model.
    """

    def __init__(self, *, buffer: Rule | None = CURRENT_ROUND, **learner) -> None:
        super().__init__(buffer=buffer, **learner)

    def _rounds(self) -> list[int]:
        return [number for number in super()._rounds() if number == self.current_round]
