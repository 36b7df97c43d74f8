"""From the curves of runs to the numbers of a leaderboard: a cell's, and over seeds. Plain Python."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import Any

from ftml_bench.errors import UsageError
from ftml_bench.metrics.curves import Threshold
from ftml_bench.metrics.measures import CURVES, LOSS_OF_ROUND, REGRET, Measured
from ftml_bench.results.cells import HALVES, CellSummary, average, part, summarize
from ftml_bench.runs import versions
from ftml_bench.runs.definition import BenchmarkSpec, Cell, Definition, Row
from ftml_bench.runs.record import Run


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds: `standard_error` is None for one seed; both are None for none."""

    mean: float | None
    standard_error: float | None
    seeds: int


@dataclass(frozen=True)
class RowResult:
    """A row of a benchmark: its finished cells by seed, and a sentence for every seed that is not among them."""

    row: Row
    cells: dict[int, CellSummary]
    notes: list[str]
    batch_norm: str

    def over_seeds(self, quantity: Callable[[CellSummary], float | None]) -> Estimate:
        """A quantity of a cell, averaged over the finished seeds that have it."""
        return estimate(value for cell in self.cells.values() if (value := quantity(cell)) is not None)


@dataclass(frozen=True)
class BenchmarkResult:
    """All that a leaderboard says of one benchmark. `rows` are in the definition's order.

    :param of_classes: whether targets are classes, so that measures of performance are accuracies.
    :param comparator: the row against which the regret is counted; None: none, or the regret is exact.
    """

    spec: BenchmarkSpec
    threshold: Threshold | None  # None: a benchmark without γ, which is judged at its checkpoints alone
    measure: str  # "error" (1 - accuracy) or "loss"
    checkpoints: list[int]  # the last one is N
    seeds: tuple[int, ...]
    rows: list[RowResult]
    of_classes: bool
    comparator: str | None = None

    @property
    def gamma(self) -> str:
        """The threshold for people: "80 % accuracy", "loss below 1"; without one "none"."""
        if self.threshold is None:
            return "none"
        if self.threshold.metric == "accuracy":
            return str(self.threshold)
        return f"{self.threshold.metric} below {self.threshold.value:g}"

    @property
    def means(self) -> str:
        """What a number of a row is, for people; of one seed it has no error."""
        several = any(len(row.cells) > 1 for row in self.rows)
        return "means ± standard errors over seeds" if several else "of one seed, without an error"

    @property
    def control(self) -> RowResult | None:
        """The row that cannot learn across rounds: FromScratch, the one with the fewest steps."""
        rows = [row for row in self.rows if row.row.strategy.split(":")[-1] == "FromScratch"]
        return min(rows, key=lambda row: row.row.settings.get("step_factor", 1), default=None)


def estimate(values: Iterable[float]) -> Estimate:
    """Mean and standard error (standard deviation with n - 1, divided by √n).

    >>> estimate([1.0, 2.0, 3.0])
    Estimate(mean=2.0, standard_error=0.5773502691896258, seeds=3)
    """
    numbers = [float(value) for value in values]
    if not numbers:
        return Estimate(None, None, 0)
    mean = average(numbers)
    if len(numbers) == 1:
        return Estimate(mean, None, 1)
    if not math.isfinite(mean):
        return Estimate(mean, math.nan, len(numbers))
    return Estimate(mean, statistics.stdev(numbers) / math.sqrt(len(numbers)), len(numbers))


def results(definition: Definition, runs: list[tuple[Cell, Run]], root: Path) -> list[BenchmarkResult]:
    """The numbers of every benchmark of which at least one run came to its end (finished or diverged).

    :param root: the leaderboard's folder, to name files in errors.
    :raises UsageError: a finished run's files do not hold what its protocol says, or two runs are of different versions
        of a stream or of the protocol.
    """
    found = dict(runs)
    versions.refuse_mixed(
        (definition.benchmark(cell.benchmark).benchmark, run.record["protocol"], root / cell.folder / "record.json")
        for cell, run in runs
        if run.ended
    )
    return [
        result
        for spec in definition.benchmarks
        if (result := _benchmark_result(spec, definition.seeds, found, root)) is not None
    ]


def open_cells(runs: list[tuple[Cell, Run]], missing: list[Cell]) -> list[str]:
    """A line for every cell that has no result yet or failed."""
    lines = [f"{cell}: {_reason(run)}" for cell, run in runs if run.status in ("failed", "running")]
    return lines + [f"{cell}: not run" for cell in missing]


def measured(result: BenchmarkResult) -> dict[str, Measured]:
    """The curves that any finished run of the benchmark has, by name."""
    found = {name for row in result.rows for cell in row.cells.values() for name in cell.measures}
    return {name: curve for name, curve in CURVES.items() if name in found}


def halves(name: str, curve: Measured) -> dict[str, Callable[[CellSummary], float | None]]:
    """How a curve becomes two numbers, "first_half" and "second_half": its mean over the rounds that have a value; of a
    sum or mean over all rounds so far, the half's last value. None where a run has none."""

    def number(cell: CellSummary, half: str) -> float | None:
        values = [cell.measures.get(name, {}).get(t) for t in cell.rounds[part(half, len(cell.rounds))]]
        known = [value for value in values if value is not None]
        if not known:
            return None
        return known[-1] if curve.so_far else average(known)

    return {half: partial(number, half=half) for half in HALVES}


_JUDGED_BY = ("threshold", "checkpoints", "rounds", "datapoints_per_round", "metric")  # keys of a protocol


def _benchmark_result(
    spec: BenchmarkSpec, seeds: tuple[int, ...], runs: dict[Cell, Run], root: Path
) -> BenchmarkResult | None:
    ended = {c: run for c, run in runs.items() if c.benchmark == spec.name and run.ended}
    if not ended:
        return None
    finished = {cell: run for cell, run in ended.items() if run.status == "finished"}
    where, first = next((root / cell.folder, run.record["protocol"]) for cell, run in ended.items())
    for key in _JUDGED_BY:
        if first.get(key) is None and (key != "threshold" or key not in first):
            raise UsageError(f"{where / 'record.json'}: damaged: its protocol says no {key!r}")
    threshold = None if first["threshold"] is None else Threshold(*first["threshold"])
    checkpoints = sorted({*first["checkpoints"], first["datapoints_per_round"]})
    for cell, run in finished.items():
        for key in _JUDGED_BY:
            if run.record["protocol"].get(key) != first.get(key):
                raise UsageError(f"{root / cell.folder / 'record.json'}: its {key!r} differs from the other runs'")
    rows = []
    for row in spec.rows:
        if row.comparator:
            continue
        cells = {
            cell.seed: summarize(run, threshold, checkpoints, root / cell.folder)
            for cell, run in finished.items()
            if cell.row == row.name
        }
        rules = {
            str(run.record["protocol"].get("batch_norm") or "") for c, run in finished.items() if c.row == row.name
        }
        open_seeds = [Cell(spec.name, row.name, seed) for seed in seeds if seed not in cells]
        notes = _notes([(cell, runs.get(cell)) for cell in open_seeds], len(seeds))
        rows.append(RowResult(row, cells, notes, ", ".join(sorted(rules))))
    measure = "error" if first["metric"] == "accuracy" else first["metric"]
    of_classes = any(row.accuracy is not None for run in ended.values() for row in run.curve)
    result = BenchmarkResult(spec, threshold, measure, checkpoints, seeds, rows, of_classes)
    comparators = [row.name for row in spec.rows if row.comparator]
    for name in comparators[:1]:
        losses = {
            cell.seed: {row.round: row.loss for row in run.curve} for cell, run in finished.items() if cell.row == name
        }
        result = _against_comparator(result, name, losses)
    return result


def _against_comparator(result: BenchmarkResult, name: str, losses: dict[int, dict[int, float]]) -> BenchmarkResult:
    """The result with the regret against a comparator's losses (seed -> round -> loss), where it is not exact."""
    compared = False
    rows = []
    for row in result.rows:
        cells = {}
        for seed, cell in row.cells.items():
            own, best = cell.measures.get(LOSS_OF_ROUND, {}), losses.get(seed, {})
            if REGRET not in cell.measures and all(t in own and t in best for t in cell.rounds):
                compared = True
                regret = dict(zip(cell.rounds, accumulate(own[t] - best[t] for t in cell.rounds), strict=True))
                cell = replace(cell, measures={**cell.measures, REGRET: regret})
            cells[seed] = cell
        rows.append(replace(row, cells=cells))
    return replace(result, rows=rows, comparator=name if compared else None)


def _notes(cells: list[tuple[Cell, Run | None]], seeds: int) -> list[str]:
    """One sentence for each way in which seeds are not among the finished."""
    kinds: dict[str, list[str]] = {}
    for cell, run in cells:
        status = "not run" if run is None else _WORDS[run.status]
        detail = f"seed {cell.seed}"
        if run is not None and run.status in ("diverged", "failed"):
            detail += f", {_reason(run)}"
        kinds.setdefault(status, []).append(detail)
    return [f"{len(which)} of {seeds} seeds {status} ({'; '.join(which)})" for status, which in kinds.items()]


_WORDS = {"diverged": "diverged", "failed": "failed", "running": "not finished"}


def _reason(run: Run) -> str:
    if run.status == "diverged":
        return f"round {run.record['diverged_round'] + 1}"
    reason: Any = run.record.get("reason", "not finished")
    return str(reason)
