"""Several seeds of a learner in one process: their training steps go through the device in one pass.

A meta-batch of 25 tasks does not fill a GPU, so that two of them take less than twice as long as one.
"""

from __future__ import annotations

from typing import Any

from ftml_bench.recorded.training_step import RecordedStep, acts_after_training


class Together:
    """Learners that take the training steps of an arrival together.

    `learner.train(arrival)` files the data and calls all hooks, and notes the steps here; `take_steps` takes those of
    all learners. In between a learner must not be used. A learner that something acts on after its steps, inside
    `train`, takes them there, by itself.

    >>> together = Together()
    >>> for learner in learners:  # doctest: +SKIP
    ...     learner.execution.together = together
    >>> for learner, arrival in zip(learners, arrivals):  # doctest: +SKIP
    ...     learner.train(arrival, eval_streams=[])
    >>> together.take_steps()
    """

    def __init__(self) -> None:
        self.note = ""  # for a record: with how many, or why not
        self._noted: dict[Any, int] = {}
        self._recorded: RecordedStep | None = None

    def may_take(self, learner: Any) -> bool:
        """Whether the steps of `learner` may be noted now and taken later."""
        return learner.takes_steps_together and not acts_after_training(learner)

    def note_steps(self, learner: Any, steps: int) -> None:
        """Steps that `learner` is to take."""
        self._noted[learner] = self._noted.get(learner, 0) + steps

    def take_steps(self) -> None:
        """Take all steps that are noted."""
        noted, self._noted = self._noted, {}
        alike = len(noted) > 1 and len({learner.alike() for learner in noted}) == len(set(noted.values())) == 1
        recorded = self._recorded_of(list(noted)) if alike else None
        self._recorded = recorded  # none: the memory of its graph is free
        if recorded is None or recorded.note:
            for learner, steps in noted.items():
                learner.execution.take_alone(steps)
            return
        recorded.train(next(iter(noted.values())))
        reason = recorded.note
        self.note = f"not together: {reason}" if reason else f"steps taken together by {len(noted)} seeds"

    def _recorded_of(self, learners: list[Any]) -> RecordedStep:
        if self._recorded is None or self._recorded.strategies != learners:
            self._recorded = None  # the memory of its graph is free for the next
            self._recorded = RecordedStep(learners)
        return self._recorded
