"""Follow the leader: joint training, then fine-tuning (paper, section 6, baseline c)."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn
from typing_extensions import Unpack

from ftml_bench.adaptation import adapted_names, update_procedure
from ftml_bench.adaptation.inner_loop import Input
from ftml_bench.adaptation.refusals import is_pytorchs, refuse_parameter_hooks, refuse_scripts
from ftml_bench.adaptation.weights import put
from ftml_bench.errors import UsageError, above_zero, unknown
from ftml_bench.strategies.avalanche.adaptable import as_it_is_without_gradient
from ftml_bench.strategies.avalanche.keywords import LearnerKeywords
from ftml_bench.strategies.joint import JointLearner

TRAIN_AT = ("arrivals", "round_end")
FINE_TUNINGS = {"gd": torch.optim.SGD, "adam": torch.optim.Adam}


class FollowTheLeader(JointLearner):
    """Trains jointly on the rounds before t; is evaluated after fine-tuning a copy on D_t by full batches.

    In the first round there is nothing to train on, and no step is taken. Minibatches are drawn in per-task groups from
    the rounds before.

    :param train_at: when steps are taken. "arrivals": at each. So the leader that round t begins with has had one
        arrival's steps with the data of round t - 1. "round_end": those that a round's arrivals give are all taken when
        it has ended, before anything of the next is evaluated, as the paper trains on all t - 1 first; as many in all.
    :param fine_tuning: "gd" (FTML's update procedure) or "adam".
    :param inner_lr: step size of the fine-tuning.
    :param inner_clip: c: every entry of a gradient of the fine-tuning is cut to [-c, c]; None: as it is.
    :param update_steps: steps of the fine-tuning.
    :param batch_norm: "support": at evaluation the statistics of D_t; "transductive": of the held-out batch; "running":
        mixed minibatches, running statistics at evaluation.
    :param group_size: points of a group of one task, of which a minibatch has a whole number; None: nearest to 20.
    :param draw: "tasks": groups of tasks drawn uniformly; "all": every step is on all data of the rounds before,
        whatever `train_mb_size` (exact gradients; rounds of one size).
    """

    BATCH_NORM_RULES = ("support", "transductive", "running")

    def __init__(
        self,
        *,
        fine_tuning: Literal["gd", "adam"] = "gd",
        inner_lr: float = 0.1,
        inner_clip: float | None = None,
        update_steps: int = 5,
        batch_norm: Literal["support", "transductive", "running"] = "support",
        group_size: int | None = None,
        draw: Literal["tasks", "all"] = "tasks",
        train_at: Literal["arrivals", "round_end"] = "arrivals",
        **learner: Unpack[LearnerKeywords],
    ) -> None:
        if fine_tuning not in FINE_TUNINGS:
            raise unknown("fine-tuning", fine_tuning, FINE_TUNINGS)
        if update_steps < 1:
            raise UsageError(f"update_steps={update_steps}: expected a number of at least 1")
        above_zero(inner_lr=inner_lr)
        if inner_clip is not None and not inner_clip > 0:
            raise UsageError(f"inner_clip={inner_clip}: expected None or a number above 0")
        if train_at not in TRAIN_AT:
            raise unknown("value of train_at", train_at, TRAIN_AT)
        super().__init__(batch_norm=batch_norm, group_size=group_size, draw=draw, **learner)
        refuse_scripts(self.model)
        self.train_at = train_at
        self.owed_steps, self._round_owed = 0, -1  # of the arrivals of a round, which its end will take
        self.fine_tuning = fine_tuning
        self.inner_lr = inner_lr
        self.inner_clip = inner_clip
        self.update_steps = update_steps

    def _rounds(self) -> list[int]:
        return [number for number in self.buffer.rounds if number != self.current_round]

    def _steps(self) -> int:
        if self.train_at == "arrivals":
            return super()._steps()
        due = 0
        if self.current_round != self._round_owed:
            due, self.owed_steps, self._round_owed = self.owed_steps, 0, self.current_round
        self.owed_steps += super()._steps()
        return due

    def state_dict(self) -> dict[str, Any]:
        """As `Learner.state_dict`, with the steps that the end of the round will take."""
        return {**super().state_dict(), "owed": self.owed_steps, "round_owed": self._round_owed}

    def load_state_dict(self, state, experiences) -> None:
        """As `Learner.load_state_dict`."""
        super().load_state_dict(state, experiences)
        self.owed_steps, self._round_owed = state.get("owed", 0), state.get("round_owed", -1)

    def _update(self, model: nn.Module, x: Input, y: Tensor) -> None:
        with as_it_is_without_gradient(self.model, self):
            self._fine_tune(model, x, y)

    def _fine_tune(self, model: nn.Module, x: Input, y: Tensor) -> None:
        refuse_parameter_hooks(self.model)
        # a criterion of somebody's own may look at the weights of the learner's model: they have to be the tuned ones
        sees_weights = not is_pytorchs(self._criterion)
        held = self.model if sees_weights else model
        tuned = update_procedure(
            held,
            dict(held.named_parameters()),
            self._criterion,
            x,
            y,
            steps=self.update_steps,
            optimizer=lambda parameters: FINE_TUNINGS[self.fine_tuning](parameters, lr=self.inner_lr),
            adapted=adapted_names(held, "all"),
            clip=self.inner_clip,
            outputs=None
            if sees_weights or isinstance(x, tuple)
            else lambda weights: self._plain_pass(x, parameters=weights),
        )
        put(tuned, model, self.model)
        self.cost.gradient_evaluations += self.update_steps * len(y)
