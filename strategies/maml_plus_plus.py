"""MAML++ (Antoniou, Edwards, Storkey 2019, "How to Train Your MAML", section 4) on the stream of tasks so far."""

from __future__ import annotations

import torch
from torch import Tensor

from ftml_bench.errors import UsageError
from ftml_bench.strategies.learned_rates import LearnedRates

LEAST = 0.03  # of the even share, which the loss of an earlier step keeps, as in the authors' code


class MAMLPlusPlus(LearnedRates):
    """FTML with a learned inner rate for each weight tensor and step, a loss of every step, and order annealing.

    Of the paper's six changes these are the per-layer per-step rates (LSLR; a tensor has one), the multi-step loss
    (MSL) and the derivative-order annealing (DA). Per-step norm statistics and offsets are not there: norms follow
    `batch_norm`; nor is the cosine schedule of the outer rate, which is the optimiser's.

    In multi-step loss the query loss after step i of K counts with v_i. All v_i are 1/K at first; after n of N training
    steps those of earlier steps are max((1 - n/N), 0.03) / K and the last has the rest.

    :param multi_loss_steps: N, training steps of the whole stream until the loss of the last step prevails; None: it
        alone counts from the start.
    :param first_order_steps: training steps of the whole stream in first order, before second order,
        whatever `second_order` is set to later; None: none.
    """

    def __init__(self, *, multi_loss_steps: int | None = None, first_order_steps: int | None = None, **learner) -> None:
        for name, value in (("multi_loss_steps", multi_loss_steps), ("first_order_steps", first_order_steps)):
            if value is not None and value < 1:
                raise UsageError(f"{name}={value}: expected None or a number of at least 1")
        super().__init__(**learner)
        self.multi_loss_steps = multi_loss_steps
        self.first_order_steps = first_order_steps
        # outputs of the minibatch after all inner steps but the last, (K - 1, T * Q, ...)
        self._earlier = torch.empty(0)

    def _rate_steps(self) -> int:
        return max(1, self.engine.inner_steps)

    def _rate_like(self, weight: Tensor) -> Tensor:
        return weight.new_empty(())

    def _before_training_iteration(self, **kwargs) -> None:
        if self.first_order_steps is not None:  # the clock decides, so that a resumed run is where it was
            anneals = self.clock.train_iterations < self.first_order_steps
            second_order = self.engine_settings["second_order"] and not anneals
            if self.engine.second_order != second_order:
                self.engine.second_order = second_order
        super()._before_training_iteration(**kwargs)

    def forward(self) -> Tensor:
        """In training: outputs on the query points after the last inner step; those of the earlier ones are kept."""
        self._earlier = torch.empty(0)
        if not self.is_training or self.multi_loss_steps is None or not self.engine.inner_steps:
            return super().forward()
        rule = self.rule_for(self.mbatch[2].shape[1])
        *earlier, last = self._adapted_outputs(rule, every_step=True)
        self._earlier = torch.stack(earlier) if earlier else self._earlier
        return last

    def criterion(self) -> Tensor:
        """The loss; in training the weighted sum of those after each inner step."""
        loss = super().criterion()
        if not self.is_training or not len(self._earlier):
            return loss
        assert self.multi_loss_steps is not None
        share = max(1 - self.clock.train_iterations / self.multi_loss_steps, LEAST) / (len(self._earlier) + 1)
        earlier = torch.stack([self._loss_of(outputs, self.mb_y) for outputs in self._earlier]).sum()
        return share * earlier + (1 - share * len(self._earlier)) * loss

    def _step_cost(self) -> tuple[int, int]:
        images, evaluations = super()._step_cost()
        return images, evaluations + len(self._earlier) * len(self.mb_y)
