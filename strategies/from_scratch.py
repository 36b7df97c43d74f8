"""Train from scratch: new parameters every round (paper, section 6, baseline b)."""

from __future__ import annotations

import os
from copy import deepcopy
from typing import Any, Literal

import torch
from avalanche.training.plugins.evaluation import default_evaluator
from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from ftml_bench.errors import UsageError
from ftml_bench.strategies.joint import JointLearner


class FromScratch(JointLearner):
    """Starts every round with the first parameters and a new optimiser state; trains on through its arrivals.

    The control of every comparison: it cannot learn across rounds. The first arguments are Avalanche's own (see
    `SupervisedTemplate`); `train_mb_size` is the size of a minibatch, drawn from the current round.

    :param steps: training steps an arrival; None: ceil(n / train_mb_size).
    :param step_factor: takes so many times the steps: equal steps starve a learner that starts anew each round.
    :param batch_norm: "support": at evaluation the statistics of D_t; "transductive": of the held-out batch.
    :param update_size: at most so many points of D_t for its statistics.
    :param seed: of the draws.
    :param buffer_folder: keep the images of all rounds in a file there instead of in memory (streams of stacked
        tensors); the file is gone with the learner.
    """

    def __init__(
        self,
        *,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        criterion: nn.Module = nn.CrossEntropyLoss(),  # noqa: B008 (as Avalanche's own)
        train_mb_size: int = 1,
        train_epochs: int = 1,
        eval_mb_size: int | None = None,
        device: str | torch.device = "cpu",
        plugins=None,
        evaluator=default_evaluator,
        eval_every: int = -1,
        peval_mode: str = "epoch",
        steps: int | None = None,
        step_factor: int = 1,
        batch_norm: Literal["support", "transductive"] = "support",
        update_size: int = 1000,
        seed: int = 0,
        buffer_folder: str | os.PathLike[str] | None = None,
    ) -> None:
        if step_factor < 1:
            raise UsageError(f"step_factor={step_factor}: expected a number of at least 1")
        super().__init__(
            model=model,
            optimizer=optimizer,
            criterion=criterion,
            train_mb_size=train_mb_size,
            train_epochs=train_epochs,
            eval_mb_size=eval_mb_size,
            device=device,
            plugins=plugins,
            evaluator=evaluator,
            eval_every=eval_every,
            peval_mode=peval_mode,
            steps=steps,
            batch_norm=batch_norm,
            group_size=train_mb_size,  # a minibatch is one group: all of it is of one task
            update_size=update_size,
            seed=seed,
            buffer_folder=buffer_folder,
        )
        self.step_factor = step_factor
        self._first_state = deepcopy(self.model.state_dict())

    def _rounds(self) -> list[int]:
        return [self.current_round]

    def _before_training_exp(self, **kwargs) -> None:
        if self.buffer.find(self.experience) not in self._rounds():
            self._take_in_changes()
            # In place, so that the optimiser and plugins keep their references. Buffers that a plugin has filled since
            # (class means, for one) stay its own.
            self.model.load_state_dict({**self.model.state_dict(), **self._first_state})
            self.optimizer.state.clear()
        super()._before_training_exp(**kwargs)
        self._take_in_changes()

    def _take_in_changes(self) -> None:
        """What the model has grown by or was given by hand or a plugin, untrained yet, is of its first parameters."""
        first, state = self._first_state, self.model.state_dict()
        as_first = {n: v for n, v in first.items() if n in state and v.shape == state[n].shape}
        norms = tuple(f"{name}." for name, module in self.model.named_modules() if isinstance(module, _NormBase))
        filled = {n for n, _ in self.model.named_buffers() if n not in as_first and not n.startswith(norms)}
        new = {n: v.detach().clone() for n, v in state.items() if n not in as_first and n not in filled}
        self._first_state = {**as_first, **new}

    def state_dict(self) -> dict[str, Any]:
        """As `Learner.state_dict`, with the first parameters."""
        return {**super().state_dict(), "first_state": self._first_state}

    def load_state_dict(self, state, experiences) -> None:
        """As `Learner.load_state_dict`."""
        super().load_state_dict(state, experiences)
        self._first_state = state["first_state"]

    def _steps(self) -> int:
        return self.step_factor * super()._steps()
