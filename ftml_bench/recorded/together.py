"""Several seeds of FTML in one process: their training steps go through the device in one pass.

A meta-batch of 25 tasks does not fill a GPU, so that two of them take less than twice as long as one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ftml_bench.recorded.graphs import fixed_by
from ftml_bench.recorded.training_step import MetaStep, acts_after_training

if TYPE_CHECKING:
    from ftml_bench.strategies.ftml import FTML


class Together:
    """Learners that take the training steps of an arrival together.

    `learner.train(arrival)` files the data and calls all hooks, and notes the steps here; `take_steps` takes those of
    all learners. In between a learner must not be used. A learner that something acts on after its steps, inside
    `train`, takes them there, by itself.

    >>> together = Together()
    >>> for learner in learners:  # doctest: +SKIP
    ...     learner.together = together
    >>> for learner, arrival in zip(learners, arrivals):  # doctest: +SKIP
    ...     learner.train(arrival, eval_streams=[])
    >>> together.take_steps()
    """

    def __init__(self) -> None:
        self.note = ""  # for a record: with how many, or why not
        self._noted: dict[FTML, int] = {}
        self._meta_step: MetaStep | None = None

    def may_take(self, learner: FTML) -> bool:
        """Whether the steps of `learner` may be noted now and taken later."""
        return learner.engine.takes_each and learner.train_epochs == 1 and not acts_after_training(learner)

    def note_steps(self, learner: FTML, steps: int) -> None:
        """Steps that `learner` is to take."""
        self._noted[learner] = self._noted.get(learner, 0) + steps

    def take_steps(self) -> None:
        """Take all steps that are noted."""
        noted, self._noted = self._noted, {}
        alike = len(noted) > 1 and len({*map(_kind, noted)}) == len(set(noted.values())) == 1
        meta_step = self._meta_step_of(list(noted)) if alike else None
        self._meta_step = meta_step  # none: the memory of its graph is free
        if meta_step is None or meta_step.note:
            for learner, steps in noted.items():
                learner.take_steps(steps)
            return
        meta_step.train(next(iter(noted.values())))
        reason = meta_step.note
        self.note = f"not together: {reason}" if reason else f"steps taken together by {len(noted)} seeds"

    def _meta_step_of(self, learners: list[FTML]) -> MetaStep:
        if self._meta_step is None or self._meta_step.strategies != learners:
            self._meta_step = None  # the memory of its graph is free for the next
            self._meta_step = MetaStep(learners)
        return self._meta_step


def _kind(learner: FTML) -> tuple:
    """What learners must have in common to take their steps in one pass."""
    shapes = tuple((name, p.shape, p.requires_grad) for name, p in learner.model.named_parameters())
    sizes = (learner.meta_batch_size, learner.support_size, learner.query_size)
    numbers, _ = fixed_by(learner.model, learner._criterion)
    return (type(learner), learner.engine.name, repr(learner.engine_settings), sizes, shapes, numbers, learner.device)
