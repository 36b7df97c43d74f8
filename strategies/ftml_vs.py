"""FTML-VS (Yu, Geng, Finn, Levine 2020, "Variable-Shot Adaptation for Online Meta-Learning", arXiv 2012.07769)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ftml_bench.adaptation import InnerRule
from ftml_bench.errors import above_zero, at_least
from ftml_bench.models.norm import has_norm
from ftml_bench.strategies.avalanche.unfit import refuse_complex
from ftml_bench.strategies.learned_rates import PREFIX, LearnedRates

LOG_ETA, LOG_BETA = f"{PREFIX}log_eta", f"{PREFIX}log_beta"


class FTMLVS(LearnedRates):
    """FTML whose inner rate depends on how many points a task has: α_s = (1 - 1 / (1 + η s)) β, η and β learned.

    Without points nothing is adapted, α_0 = 0; with many the rate is β. In each draw of a meta-batch the number of
    support points s is uniform from 0 to M, so that the initial weights are good at every number. It is one for all
    tasks of a meta-batch, which are drawn among those with s + query_size points; where there is none yet, s is at most
    half of what the largest has. An evaluation takes α_n for the n points of D_t that it adapts to. With norm layers
    s is at least 2 but under `transductive`: one point has no variance. While no round has four points it is one.

    η and β are learned as their logarithms, which keeps them above 0; how the source keeps their signs it does not say.
    β starts as `inner_lr`.

    :param support_size: M, the most support points.
    :param eta: η at first.
    """

    def __init__(self, *, support_size: int = 10, query_size: int = 10, eta: float = 1.0, **learner) -> None:
        above_zero(eta=eta)
        self.eta = eta
        super().__init__(support_size=support_size, query_size=query_size, **learner)
        refuse_complex(self)
        self._shots = 0  # s of the minibatch at hand
        self._least = 2 if self.batch_norm != "transductive" and has_norm(self.model) else 0
        at_least(self._least, support_size=support_size)

    def _first(self) -> dict[str, Tensor]:
        like = self._weight(self.engine.adapted[0])
        first = {LOG_ETA: self.eta, LOG_BETA: self.engine.inner_lr}
        return {place: like.new_tensor(math.log(value)) for place, value in first.items()}

    @property
    def rule(self) -> InnerRule:
        """That of M points."""
        assert self.support_size is not None
        return self.rule_for(self.support_size)

    def rule_for(self, points: int) -> InnerRule:
        """One rate for all weights, α_s of so many points."""
        eta, beta = (self.model.get_parameter(place).exp() for place in (LOG_ETA, LOG_BETA))
        return InnerRule((1 - 1 / (1 + eta * points)) * beta)

    def _draw(self) -> list[Tensor]:
        sizes = {number: len(self.buffer.rounds[number]) for number in self._rounds()}
        assert self.support_size is not None
        assert self.query_size is not None
        self._shots = int(torch.randint(self._least, self.support_size + 1, (), generator=self.rng))
        largest = max(sizes.values())
        if largest < self._shots + self.query_size:
            self._shots = min(self._shots, largest // 2)
        needed = min(largest, self._shots + self.query_size)
        tasks = self._sampled([number for number, size in sizes.items() if size >= needed])
        return self._split(tasks, max(1, self._shots))  # with no support point there is no loss, and α_0 = 0

    def forward(self) -> Tensor:
        """As FTML's; in a zero-shot meta-batch the unadapted model's outputs on the query points."""
        return self._adapted_outputs(self.rule_for(0)) if self.is_training and not self._shots else super().forward()
