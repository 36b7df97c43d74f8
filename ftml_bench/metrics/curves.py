"""What a round's learning curve says: datapoints to the threshold, for once or for good, and the area under it.

Pure Python: the plugin metrics (live) and the report (from files) both use these functions, so they cannot disagree.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from ftml_bench.errors import UsageError, is_number, shown, unknown

# metric -> whether larger values are better
LARGER_IS_BETTER = {"accuracy": True, "loss": False}


@dataclass(frozen=True)
class Threshold:
    """The level of proficiency γ (paper, section 3): `accuracy` must be at least `value`, `loss` below it.

    :raises UsageError: for another metric, or a value that it cannot have.
    """

    metric: str
    value: float

    def __post_init__(self) -> None:
        if self.metric not in LARGER_IS_BETTER:
            raise unknown("metric", self.metric, LARGER_IS_BETTER)
        if not is_number(self.value) or not math.isfinite(self.value):  # a loss, such as -log of a density, may be < 0
            raise UsageError(f"threshold: expected a finite number, got {shown(self.value)}")
        if self.metric == "accuracy" and not 0 < self.value <= 1:
            raise UsageError(f"an accuracy lies in (0, 1], got {self.value:g} (80 % is 0.8)")

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


def datapoints_to_stay(datapoints: Sequence[int], values: Sequence[float], threshold: Threshold) -> tuple[int, bool]:
    """Reaches and stays: datapoints at the first evaluation at or beyond γ after which no later one of the round falls
    short of it. A curve that is noisy about γ reaches it early by chance, and does not stay.

    :return: (datapoints, censored), as `datapoints_to_threshold`; censored: the last evaluation falls short of γ.

    >>> datapoints_to_stay([10, 20, 30, 40], [0.9, 0.7, 0.8, 0.8], Threshold("accuracy", 0.8))
    (30, False)
    >>> datapoints_to_stay([10, 20, 30], [0.5, 0.9, 0.7], Threshold("accuracy", 0.8))
    (30, True)
    """
    found, censored = datapoints[-1], True
    for n, value in zip(reversed(datapoints), reversed(values), strict=True):
        if not threshold.met(value):
            break
        found, censored = n, False
    return found, censored


def log_area(datapoints: Sequence[int], values: Sequence[float]) -> float:
    """The mean of a learning curve over the logarithm of datapoints: the area under its straight lines between
    evaluations (trapezoids), divided by the width. A doubling of the data counts the same wherever it is.

    :return: of one evaluation its value.

    >>> log_area([10, 20, 40], [1.0, 0.5, 0.0])
    0.5
    """
    if len(datapoints) == 1:
        return values[0]
    area = sum(
        math.log(after / before) * (a + b) / 2
        for (before, after), (a, b) in zip(pairwise(datapoints), pairwise(values), strict=True)
    )
    return area / math.log(datapoints[-1] / datapoints[0])
