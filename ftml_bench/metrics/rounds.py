"""The paper's metrics as Avalanche plugin metrics: what a round's learning curve says, over rounds.

The names of the emitted values depend on the metric alone, so that the curves of several strategies overlay in
TensorBoard. x is the round, counted from 1, or the number of datapoints seen so far for the learning curve.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence

from ftml_bench.errors import UsageError
from ftml_bench.metrics.curves import Threshold, datapoints_to_threshold
from ftml_bench.metrics.performance import RoundMetric


class DatapointsToThreshold(RoundMetric):
    """Efficiency: datapoints of a round until the threshold is reached (paper, section 6, "learning proficiency").

    `Datapoints_To_Threshold` is emitted once a round: when the threshold is first met, or after the last arrival, then
    as the round's size, with `Threshold_Censored` = 1. Where an evaluation that comes again says otherwise (after a
    later epoch on the same data), it is emitted again.
    """

    of_stream = saved_attributes = ("_emitted",)

    def __init__(self, threshold: Threshold) -> None:
        self.threshold = threshold
        super().__init__(threshold.metric)

    def _new_stream(self) -> None:
        super()._new_stream()
        self._emitted: tuple[int, int, bool] | None = None

    def _emit(self) -> list[tuple[str, float, int]]:
        n, censored = datapoints_to_threshold(self.datapoints, self.values, self.threshold)
        found = (self.round, n, censored)
        if found == self._emitted or (censored and not self.is_last):
            return []
        self._emitted = found
        return [("Datapoints_To_Threshold", n, self.number), ("Threshold_Censored", int(censored), self.number)]

    def __str__(self) -> str:
        return "Datapoints_To_Threshold"


class PerformanceAtCheckpoint(RoundMetric):
    """Held-out performance after exactly `checkpoint` datapoints of a round."""

    saved_attributes = ("_reached",)

    def __init__(self, checkpoint: int, metric: str) -> None:
        if checkpoint < 1:
            raise UsageError(f"checkpoint {checkpoint}: expected a number of datapoints of at least 1")
        super().__init__(metric)
        self.checkpoint = checkpoint
        self._reached = False  # or said that it is not

    def _emit(self) -> list[tuple[str, float, int]]:
        self._reached |= self.checkpoint in self.datapoints
        if self.is_last and not self._reached:
            self._reached = True
            warnings.warn(
                f"{self} says nothing of round {self.number}: it was evaluated after "
                f"{', '.join(map(str, self.datapoints))} of its datapoints",
                stacklevel=2,
            )
        return [(str(self), self.values[-1], self.number)] if self.datapoints[-1] == self.checkpoint else []

    def __str__(self) -> str:
        return f"{self.metric.capitalize()}_At_{self.checkpoint}_Datapoints"


class FinalPerformance(RoundMetric):
    """Held-out performance of a round after its last arrival."""

    def _emit(self) -> list[tuple[str, float, int]]:
        return [(str(self), self.values[-1], self.number)] if self.is_last else []

    def __str__(self) -> str:
        return f"Final_{self.metric.capitalize()}"


class LearningCurve(RoundMetric):
    """Held-out performance of the current round after every arrival, over all datapoints of the stream so far."""

    def _emit(self) -> list[tuple[str, float, int]]:
        return [(str(self), self.values[-1], self.n_before + self.n_seen)]

    def __str__(self) -> str:
        return f"{self.metric.capitalize()}_Over_Datapoints"


def efficiency_metrics(*, threshold: tuple[str, float] = ("accuracy", 0.9)) -> list[RoundMetric]:
    """Datapoints to the threshold, and whether the round was censored.

    :param threshold: (metric, value): "accuracy" must be at least, "loss" below it. Every benchmark has its own.
    """
    return [DatapointsToThreshold(Threshold(*threshold))]


def checkpoint_metrics(*, checkpoints: Sequence[int], metric: str = "accuracy") -> list[RoundMetric]:
    """Performance of every round at each of `checkpoints` datapoints."""
    return [PerformanceAtCheckpoint(checkpoint, metric) for checkpoint in checkpoints]


def final_performance_metrics(*, metric: str = "accuracy") -> list[RoundMetric]:
    """Performance of every round with all its data."""
    return [FinalPerformance(metric)]


def learning_curve_metrics(*, metric: str = "accuracy") -> list[RoundMetric]:
    """Performance of the current round over all datapoints of the stream so far."""
    return [LearningCurve(metric)]
