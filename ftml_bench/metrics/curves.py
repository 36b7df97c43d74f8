"""What a round's learning curve says: datapoints to the threshold, performance at a checkpoint.

Pure Python: the plugin metrics (live) and the report (from files) both use these functions, so they cannot disagree.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

# metric -> whether larger values are better
LARGER_IS_BETTER = {"accuracy": True, "loss": False}


@dataclass(frozen=True)
class Threshold:
    """The level of proficiency γ (paper, section 3): `accuracy` must be at least `value`, `loss` below it."""

    metric: str
    value: float

    def met(self, value: float) -> bool:
        """Whether a performance reaches the threshold; NaN never does."""
        return value >= self.value if LARGER_IS_BETTER[self.metric] else value < self.value

    def __str__(self) -> str:
        if self.metric == "accuracy":
            return f"{100 * self.value:g} % accuracy"
        return f"{self.metric} {self.value:g}"


def datapoints_to_threshold(
    datapoints: Sequence[int], values: Sequence[float], threshold: Threshold
) -> tuple[int, bool]:
    """Efficiency of a round: the first cumulative number of datapoints at which the threshold holds.

    :param datapoints: cumulative datapoints of the round at each evaluation, increasing.
    :param values: held-out performance at each evaluation.
    :return: (datapoints, censored). A round that never gets there is censored: it counts as its last number of
        datapoints, so that means over rounds are restricted means.

    >>> datapoints_to_threshold([10, 20, 30], [0.5, 0.9, 0.7], Threshold("accuracy", 0.8))
    (20, False)
    >>> datapoints_to_threshold([10, 20, 30], [0.5, 0.6, 0.7], Threshold("accuracy", 0.8))
    (30, True)
    """
    for n, value in zip(datapoints, values, strict=True):
        if threshold.met(value):
            return n, False
    return datapoints[-1], True
