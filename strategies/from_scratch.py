"""Train from scratch: new parameters every round (paper, section 6, baseline b)."""

from __future__ import annotations

from copy import deepcopy
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from typing_extensions import Unpack

from ftml_bench.errors import UsageError, unknown
from ftml_bench.models.layer_state import all_tensors, put_tensors
from ftml_bench.seeding import generator
from ftml_bench.strategies.avalanche.keywords import LearnerKeywords
from ftml_bench.strategies.joint import JointLearner

FIRST_PARAMETERS = ("same", "shuffled")


class FromScratch(JointLearner):
    """Starts every round with new parameters and a new optimiser state; trains on through its arrivals.

    The control of every comparison: it cannot learn across rounds. A minibatch is of the current round. Parameters and
    buffers of a criterion that is a module start anew, too; a tensor that is trained but is of neither model nor
    criterion, and a number that a layer counts in an attribute, go on.

    :param first_parameters: of a round. "same": those of the first, so that rounds differ by their data alone.
        "shuffled": their entries in a new order, which is a new draw of what is initialised entry by entry, as
        PyTorch's layers are.
    :param step_factor: takes so many times the steps: equal steps starve a learner that starts anew each round.
    :param batch_norm: "support": at evaluation the statistics of D_t; "transductive": of the held-out batch.
    """

    def __init__(
        self,
        *,
        first_parameters: Literal["same", "shuffled"] = "same",
        step_factor: int = 1,
        batch_norm: Literal["support", "transductive"] = "support",
        **learner: Unpack[LearnerKeywords],
    ) -> None:
        if step_factor < 1:
            raise UsageError(f"step_factor={step_factor}: expected a number of at least 1")
        # a minibatch is one group: all of it is of one task
        super().__init__(batch_norm=batch_norm, group_size=learner.get("train_mb_size", 1), **learner)
        if first_parameters not in FIRST_PARAMETERS:
            raise unknown("value of first_parameters", first_parameters, FIRST_PARAMETERS)
        self.step_factor = step_factor
        self.first_parameters = first_parameters
        self._first_state = deepcopy(all_tensors(self.model))
        self._first_criterion = {name: t.detach().clone() for name, t in self._of_criterion().items()}

    def _of_criterion(self) -> dict[str, Tensor]:
        """Parameters and buffers of a criterion that are not the model's; a plugin that is the criterion keeps its."""
        if not isinstance(self._criterion, nn.Module) or self._criterion in self.plugins:
            return {}
        of_model = {id(t) for t in (*self.model.parameters(), *self.model.buffers())}
        named = (*self._criterion.named_parameters(), *self._criterion.named_buffers())
        return {name: t for name, t in named if id(t) not in of_model}

    def _rounds(self) -> list[int]:
        return [self.current_round]

    def _before_training_exp(self, **kwargs) -> None:
        if self.buffer.find(self.experience) not in self._rounds():
            self._take_in_changes()
            # In place, so that the optimiser and plugins keep their references. Buffers that a plugin has filled since
            # (class means, for one) stay its own.
            put_tensors(self.model, self._first_state)
            with torch.no_grad():
                for name, t in self._of_criterion().items():
                    if name in self._first_criterion:
                        t.copy_(self._first_criterion[name])
            if self.first_parameters == "shuffled" and self.current_round >= 0:
                self._shuffle_parameters()
            self.optimizer.state.clear()
        super()._before_training_exp(**kwargs)
        self._take_in_changes()

    @torch.no_grad()
    def _shuffle_parameters(self) -> None:
        rng = generator(self.seed, "first parameters", self.current_round)
        for p in self.model.parameters():
            p.copy_(p.flatten()[torch.randperm(p.numel(), generator=rng).to(p.device)].view_as(p))

    def _take_in_changes(self) -> None:
        """What the model has grown by or was given by hand or a plugin, untrained yet, is of its first parameters."""
        first, state = self._first_state, all_tensors(self.model)
        as_first = {n: v for n, v in first.items() if n in state and _shape(v) == _shape(state[n])}
        norms = tuple(f"{name}." for name, module in self.model.named_modules() if isinstance(module, _NormBase))
        filled = {n for n, _ in self.model.named_buffers() if n not in as_first and not n.startswith(norms)}
        new = {n: deepcopy(v) for n, v in state.items() if n not in as_first and n not in filled}
        self._first_state = {**as_first, **new}

    def state_dict(self) -> dict[str, Any]:
        """As `Learner.state_dict`, with the first parameters."""
        first = {"first_state": self._first_state, "first_criterion": self._first_criterion}
        return {**super().state_dict(), **first}

    def load_state_dict(self, state, experiences) -> None:
        """As `Learner.load_state_dict`."""
        super().load_state_dict(state, experiences)
        self._first_state = state["first_state"]
        self._first_criterion = state.get("first_criterion", self._first_criterion)

    def _steps(self) -> int:
        return self.step_factor * super()._steps()


def _shape(value: Any) -> Any:
    """None for a layer's extra state, which is no tensor."""
    return getattr(value, "shape", None)
