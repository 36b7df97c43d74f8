"""`leaderboard.csv` and `seeds.csv`: every number of every table for other programs, to twelve digits."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable

from ftml_bench.results.cells import CellSummary
from ftml_bench.results.quantities import compared, comparisons, numbers
from ftml_bench.results.statistics import BenchmarkResult, Estimate, estimate

COLUMNS = (
    *("benchmark", "row", "minus", "quantity", "mean", "standard_error", "seeds", "smaller"),
    *("low", "high", "p", "p_holm", "improvement", "wins", "ties", "losses", "verdict"),
)
SEED_COLUMNS = ("benchmark", "row", "seed", "quantity", "value")


def of_rows(results: list[BenchmarkResult]) -> str:
    """A line a row and quantity, and a line a difference of two rows; columns that are not filled are empty.

    Columns: benchmark, row, minus (the row that was subtracted, seed by seed; empty: none), quantity, mean,
    standard_error (over seeds; empty for one), seeds, smaller (on how many `row` is smaller than `minus`), and of what
    `ftml_bench.results.pairs.Pair` says: low, high, p, p_holm, improvement, wins, ties, losses, verdict.
    """
    lines: list[list[object]] = []
    for result in results:
        name = result.spec.name
        found = numbers(result)
        for row in result.rows:
            for quantity, value in found.items():
                lines.append([name, row.row.name, "", quantity, *_estimate(row.over_seeds(value)), *[""] * 10])
        lines += [[name, *line] for line in _differences(result)]
    return _csv(COLUMNS, lines)


def of_seeds(results: list[BenchmarkResult]) -> str:
    """A line a finished seed and quantity: benchmark, row, seed, quantity, value."""
    lines = [
        [result.spec.name, row.row.name, seed, quantity, _number(number)]
        for result in results
        for row in result.rows
        for seed, cell in row.cells.items()
        for quantity, value in numbers(result).items()
        if (number := value(cell)) is not None
    ]
    return _csv(SEED_COLUMNS, lines)


def _differences(result: BenchmarkResult) -> Iterable[list[object]]:
    first, control = result.rows[0], result.control
    for quantity in compared(result):
        for one in comparisons(result, first, quantity):
            line: list[object] = [first.row.name, one.other.row.name, quantity.name + f"_{quantity.judged}"]
            if one.pair is None:
                yield [*line, "", "", 0, *[""] * 10]
                continue
            pair = one.pair
            line += [_number(pair.mean), _number(pair.standard_error), pair.seeds, pair.leads]
            line += [_number(value) for value in (pair.low, pair.high, pair.p, one.p, pair.improvement)]
            yield [*line, pair.wins, pair.ties, pair.losses, one.verdict]
    if control and result.threshold is not None:
        for row in result.rows:
            if row is not control:
                seeds = [seed for seed in row.cells if seed in control.cells]
                falls = [CellSummary.fall(row.cells[seed]) - CellSummary.fall(control.cells[seed]) for seed in seeds]
                smaller = sum(fall < 0 for fall in falls)
                yield [row.row.name, control.row.name, "fall", *_estimate(estimate(falls)), smaller, *[""] * 9]


def _estimate(value: Estimate) -> list[object]:
    return [_number(value.mean), _number(value.standard_error), value.seeds]


def _number(value: float | None) -> str:
    # Twelve digits: the last ones of a logarithm are those of the machine.
    return "" if value is None else repr(float(f"{value:.12g}"))


def _csv(columns: Iterable[str], lines: Iterable[Iterable[object]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(lines)
    return text.getvalue()
