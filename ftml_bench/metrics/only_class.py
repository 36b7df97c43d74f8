"""Whether a learner takes a task for its first class: what it says when it has seen one class of the task."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ftml_bench.metrics.performance import RoundMetric, called, counted_targets, ignored_target


class CalledTheOnlyClass(RoundMetric):
    """The share of a round's held-out data that is called the only class seen so far in this round, in [0, 1].

    Where a point has one class a token or pixel, it is the share of those.

    `Called_The_Only_Class` is emitted after the first arrival of a round, if that has one class (paper, section 1 and
    Figure 1, right: a "7" on a new colour). A learner without errors has the class's own share of the held-out data, a
    tenth where ten are equally frequent; one that takes the colour for the label has 1.
    """

    saved_attributes = ("_only", "_called")

    def __init__(self) -> None:
        super().__init__("accuracy")

    def reset(self) -> None:
        """Forget all rounds."""
        super().reset()
        self._only: int | None = None
        self._called = 0

    def before_training_exp(self, strategy):
        """Note the class, if the first arrival of a round has one."""
        super().before_training_exp(strategy)
        experience = strategy.experience
        self._only = None
        if getattr(experience, "arrival_index", 0) == 0:
            classes = _classes(strategy)
            self._only = classes[0] if len(classes) == 1 else None

    def before_eval_exp(self, strategy):
        """Start a new count."""
        super().before_eval_exp(strategy)
        self._called = 0

    def after_eval_iteration(self, strategy):
        """Add a minibatch."""
        super().after_eval_iteration(strategy)
        counted = counted_targets(strategy)
        if self._only is not None and counted is not None:
            self._called += int((counted & (called(strategy.mb_output) == self._only)).sum())

    def _emit(self) -> list[tuple[str, float, int]]:
        if self._only is None or not self._performance.targets:
            return []
        return [(str(self), self._called / self._performance.targets, self.number)]

    def __str__(self) -> str:
        return "Called_The_Only_Class"


def only_class_metrics() -> list[RoundMetric]:
    """The share of held-out data called the only class seen so far in a round."""
    return [CalledTheOnlyClass()]


def _classes(strategy) -> Sequence[int]:
    targets = np.unique(np.asarray(list(strategy.experience.dataset.targets)))
    return targets[targets != ignored_target(strategy)].tolist()
