"""What one finished run says, from its curve."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

from ftml_bench.errors import UsageError
from ftml_bench.metrics.curves import Threshold, datapoints_to_stay, datapoints_to_threshold, log_area
from ftml_bench.runs.record import CurveRow, Run

HALVES = ("first_half", "second_half")
THIRDS = ("first_third", "middle_third", "last_third")
ALL = "all_rounds"
PARTS = (*HALVES, *THIRDS, ALL)


def part(name: str, rounds: int) -> slice:
    """A part of so many rounds by its name (of `PARTS`). What does not divide goes to the later parts; the first half
    of a single round is that round.

    >>> [part(name, 20) for name in THIRDS]
    [slice(0, 6, None), slice(6, 13, None), slice(13, 20, None)]
    """
    if name in THIRDS:
        third = THIRDS.index(name)
        return slice(rounds * third // 3, rounds * (third + 1) // 3)
    return {"first_half": slice(0, max(rounds // 2, 1)), "second_half": slice(rounds // 2, rounds)}.get(
        name, slice(0, rounds)
    )


def average(values: Sequence[float]) -> float:
    """The mean; NaN if a value is not finite, as a measure's may be."""
    return statistics.fmean(values) if all(map(math.isfinite, values)) else math.nan


def mean(values: Sequence[float], name: str) -> float | None:
    """The mean of the rounds' values over a part of them; None if the part has no rounds."""
    some = values[part(name, len(values))]
    return average(some) if some else None


@dataclass(frozen=True)
class CellSummary:
    """What one finished run says. Every list has one entry a round, in order.

    :param rounds: the rounds' numbers.
    :param to_threshold: datapoints to γ; a censored round counts as its last number of datapoints. Without γ: empty.
    :param censored: whether γ was not reached. Without γ: empty.
    :param to_stay: datapoints to reach γ and stay there, counted likewise; `leaves`: whether the round ends short of γ.
    :param area: the mean error (or loss) over the logarithm of datapoints.
    :param errors: checkpoint -> error of each round (1 - accuracy, or the loss). The last checkpoint is N.
    :param first_arrival: datapoints at the first evaluation of a round, below which none can reach γ.
    :param steps: training steps in all; `gradient_evaluations` and `seconds` likewise.
    :param points_kept: the most datapoints that training could draw from at a time; None: not known.
    :param measures: what else was measured: name (in `ftml_bench.metrics.measures.CURVES`) -> round -> value.
    """

    rounds: list[int]
    to_threshold: list[int]
    censored: list[bool]
    to_stay: list[int]
    leaves: list[bool]
    area: list[float]
    errors: dict[int, list[float]]
    first_arrival: int
    steps: int
    gradient_evaluations: int
    seconds: float
    measures: dict[str, dict[int, float]] = field(default_factory=dict)
    points_kept: int | None = None

    @property
    def at_floor(self) -> list[bool]:
        """Of every round, whether its first arrival was enough for γ: it could not have come earlier."""
        return [
            not censored and n == self.first_arrival
            for n, censored in zip(self.to_threshold, self.censored, strict=True)
        ]

    def fall(self) -> float:
        """By how much datapoints to γ fall from the first half of the rounds to the second."""
        first, second = (statistics.fmean(self.to_threshold[part(half, len(self.rounds))]) for half in HALVES)
        return first - second


def summarize(run: Run, threshold: Threshold | None, checkpoints: list[int], folder: Path) -> CellSummary:
    """The summary of a finished run.

    :param checkpoints: the last one is N; `folder`: the run's, to name its files in errors.
    :raises UsageError: the curve does not hold what the protocol says.
    """
    file = folder / "curve.csv"
    by_round: dict[int, list[CurveRow]] = {}
    for row in run.curve:
        if row.evaluated_round == row.round:
            by_round.setdefault(row.round, []).append(row)
    expected = run.record["protocol"]["rounds"]
    if len(by_round) != expected:
        raise UsageError(f"{file}: damaged: {len(by_round)} rounds were evaluated, expected {expected}")
    once, for_good, area = [], [], []
    errors: dict[int, list[float]] = {checkpoint: [] for checkpoint in checkpoints}
    for number, rows in sorted(by_round.items()):
        sizes = [row.datapoints for row in rows]
        if sizes[0] < 1 or any(after <= before for before, after in pairwise(sizes)):
            raise UsageError(
                f"{file}: damaged: datapoints of round {number + 1} that do not increase from 1 on: {sizes}"
            )
        if threshold is not None:
            values = [_value(row, threshold.metric, file) for row in rows]
            once.append(datapoints_to_threshold(sizes, values, threshold))
            for_good.append(datapoints_to_stay(sizes, values, threshold))
        curve = [_error(row, run.record["protocol"]["metric"], file) for row in rows]
        area.append(log_area(sizes, curve))
        for checkpoint in checkpoints:
            if checkpoint not in sizes:
                raise UsageError(f"{file}: damaged: round {number + 1} has no evaluation at {checkpoint} datapoints")
            errors[checkpoint].append(curve[sizes.index(checkpoint)])
    return CellSummary(
        rounds=sorted(by_round),
        to_threshold=[datapoints for datapoints, _ in once],
        censored=[censored for _, censored in once],
        to_stay=[datapoints for datapoints, _ in for_good],
        leaves=[censored for _, censored in for_good],
        area=area,
        errors=errors,
        first_arrival=min(rows[0].datapoints for rows in by_round.values()),
        steps=run.curve[-1].steps,
        gradient_evaluations=run.curve[-1].gradient_evaluations,
        seconds=run.seconds,
        measures=run.measures,
        points_kept=run.record.get("cost", {}).get("points_kept"),
    )


def _value(row: CurveRow, metric: str, file: Path) -> float:
    value = row.loss if metric == "loss" else row.accuracy
    if value is None or not math.isfinite(value):  # of a run that has finished
        raise UsageError(f"{file}: damaged: round {row.round + 1} has no {metric} at {row.datapoints} datapoints")
    return value


def _error(row: CurveRow, metric: str, file: Path) -> float:
    value = _value(row, metric, file)
    return 1 - value if metric == "accuracy" else value
