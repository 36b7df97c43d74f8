"""What the page's charts show, computed here; the page's script only draws it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from ftml_bench.report.figures import running_mean
from ftml_bench.results.cells import ALL, THIRDS, CellSummary, part
from ftml_bench.results.frames import rounds_of
from ftml_bench.results.kaplan_meier import survival
from ftml_bench.results.looks import Look
from ftml_bench.results.quantities import quantities
from ftml_bench.results.statistics import BenchmarkResult, RowResult, measured
from ftml_bench.runs.definition import Cell
from ftml_bench.runs.record import Run

_DIGITS = 5  # that a chart can show
_PARTS = {
    ALL: "all rounds",
    THIRDS[0]: "first third of the rounds",
    THIRDS[1]: "middle third of the rounds",
    THIRDS[2]: "last third of the rounds",
}

Chart = dict[str, Any]


def of_benchmark(result: BenchmarkResult, runs: list[tuple[Cell, Run]], look: dict[str, Look]) -> dict[str, Any]:
    """Everything that the charts of a benchmark show, as JSON holds it; None stands where there is no number.

    `rows`: name and look of each; `spent`: its gradient evaluations at the end of every round, mean over seeds.
    `rounds`, `datapoints`, `survival`: the charts over each of them; all have `title`, `y` (the axis), `logX`, `logY`
    and of every row by name a line:
    `x`; `mean` (over rounds the running mean, over seeds); `error`, its standard error; `faint`, the mean of each round
    (over rounds alone); `seeds`, what `mean` is the mean of.
    """
    curves = {cell: run.curve for cell, run in runs if cell.benchmark == result.spec.name and run.status == "finished"}
    rows = [row for row in result.rows if row.cells]
    return {
        "name": result.spec.name,
        "rows": [_row(row, look[row.row.name], curves) for row in rows],
        "rounds": [*_quantities(result, rows), *_measures(result, rows)],
        "datapoints": [_learning_curve(result, rows, curves, name) for name in _PARTS],
        "survival": [] if result.threshold is None else [_survival(rows, name) for name in _PARTS],
        "last": result.checkpoints[-1],
    }


def _row(row: RowResult, look: Look, curves: dict[Cell, Any]) -> dict[str, Any]:
    ends = []
    for cell, curve in curves.items():
        if cell.row == row.row.name:
            spent = {line.round: line.gradient_evaluations for line in curve}  # the last of a round stays
            ends.append([spent[number] for number in sorted(spent)])
    return {
        "name": row.row.name,
        "color": look.color,
        "onDark": look.on_dark,
        "dash": look.dash,
        "marker": look.marker,
        "grey": look.grey,
        "spent": _numbers(np.mean(ends, axis=0)),
    }


def _quantities(result: BenchmarkResult, rows: list[RowResult]) -> Iterable[Chart]:
    for quantity in quantities(result):
        lines = {row.row.name: _over_rounds(list(row.cells.values()), quantity.rounds, smooth=True) for row in rows}
        counts = quantity.name.startswith("datapoints")
        yield _chart(quantity.title, lines, log_y=counts or result.measure == "loss")


def _measures(result: BenchmarkResult, rows: list[RowResult]) -> Iterable[Chart]:
    for name, curve in measured(result).items():
        lines = {}
        for row in rows:
            cells = [cell for cell in row.cells.values() if name in cell.measures]
            if cells:
                line = _over_rounds(cells, _of_rounds(name), smooth=not curve.so_far)
                if line["x"]:
                    lines[row.row.name] = line
        yield _chart(curve.title, lines, log_x=curve.so_far == "sum")


def _learning_curve(result: BenchmarkResult, rows: list[RowResult], curves: dict[Cell, Any], name: str) -> Chart:
    """The error over the datapoints of a round, mean over a part of the rounds."""
    lines = {}
    for row in rows:
        seeds, sizes = [], []
        for seed, cell in row.cells.items():
            by_size = _errors(curves[Cell(result.spec.name, row.row.name, seed)], cell, name, result.measure)
            sizes = sorted(by_size)
            seeds.append([float(np.mean(by_size[size])) for size in sizes])
        lines[row.row.name] = {"x": sizes, **_line(np.array(seeds))}
    title = f"{result.measure} over datapoints, {_PARTS[name]}"
    return _chart(title, lines, y=result.measure, log_x=True, log_y=result.measure == "loss")


def _errors(curve: Sequence[Any], cell: CellSummary, name: str, measure: str) -> dict[int, list[float]]:
    """Datapoints -> error of each round of a part."""
    rounds = set(cell.rounds[part(name, len(cell.rounds))])
    found: dict[int, list[float]] = {}
    for line in curve:
        if line.round in rounds and line.evaluated_round == line.round:
            found.setdefault(line.datapoints, []).append(1 - line.accuracy if measure == "error" else line.loss)
    return found


def _survival(rows: list[RowResult], name: str) -> Chart:
    lines = {}
    for row in rows:
        datapoints, censored = rounds_of(row, name)
        if not datapoints:
            continue
        floor = min(cell.first_arrival for cell in row.cells.values())
        curve = survival(datapoints, censored)
        lines[row.row.name] = {
            "x": [0.7 * floor, *curve.datapoints],
            "mean": _numbers([1, *curve.open]),
            "low": _numbers([1, *curve.low]),
            "high": _numbers([1, *curve.high]),
            "median": curve.median,
        }
    title = f"rounds short of γ, {_PARTS[name]}"
    return _chart(title, lines, y="share of rounds", log_x=True)


def _of_rounds(measure: str) -> Callable[[CellSummary], list[float]]:
    return lambda cell: [cell.measures[measure].get(t, math.nan) for t in cell.rounds]


def _over_rounds(
    cells: Sequence[CellSummary], values: Callable[[CellSummary], Sequence[float]], *, smooth: bool
) -> dict[str, Any]:
    rounds = np.array([values(cell) for cell in cells], dtype=float)  # (seeds, rounds)
    known = ~np.isnan(rounds).any(axis=0)
    rounds = rounds[:, known]
    line = _line(running_mean(rounds) if smooth else rounds)
    faint = _numbers(rounds.mean(axis=0)) if smooth else []
    return {"x": (np.array(cells[0].rounds)[known] + 1).tolist(), **line, "faint": faint}


def _line(seeds: np.ndarray) -> dict[str, Any]:
    """Of values (seeds, x): mean, standard error (none of one seed) and all."""
    error = seeds.std(axis=0, ddof=1) / math.sqrt(len(seeds)) if len(seeds) > 1 else []
    return {
        "mean": _numbers(seeds.mean(axis=0)),
        "error": _numbers(error),
        "seeds": [_numbers(seed, _DIGITS - 1) for seed in seeds],
    }


def _chart(title: str, lines: dict[str, Any], *, y: str = "", log_x: bool = False, log_y: bool = False) -> Chart:
    """`y`: what the axis says, if not the title. A line below 0 is not to be lost on a logarithmic axis."""
    log_y = log_y and all(value is None or value >= 0 for line in lines.values() for value in line["mean"])
    return {"title": title, "y": y or title, "logX": log_x, "logY": log_y, "lines": lines}


def _numbers(values: Iterable[float], digits: int = _DIGITS) -> list[float | None]:
    return [float(f"{value:.{digits}g}") if math.isfinite(value) else None for value in values]
