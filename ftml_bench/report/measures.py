"""What was measured round by round beside loss and accuracy: a table, and a figure with a panel a measure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from ftml_bench.metrics.measures import REGRET, Measured
from ftml_bench.report import figures, labels
from ftml_bench.report.tables import Table, plus_minus
from ftml_bench.results.cells import HALVES, part
from ftml_bench.results.looks import Look
from ftml_bench.results.statistics import BenchmarkResult, RowResult, halves, measured


def table(result: BenchmarkResult) -> Table | None:
    """Every measure of every row over the two halves of the rounds; None if nothing was measured."""
    curves = measured(result)
    if not curves:
        return None
    cell = next(cell for row in result.rows for cell in row.cells.values())
    rounds = len(cell.rounds)
    first, second = (part(half, rounds) for half in HALVES)
    rows = []
    for row in result.rows:
        numbers = [row.over_seeds(value) for name, curve in curves.items() for value in halves(name, curve).values()]
        pairs = zip(numbers[::2], numbers[1::2], strict=True)
        rows.append([row.row.name, *(f"{plus_minus(a, 3)} → {plus_minus(b, 3)}" for a, b in pairs)])
    notes = [curve.note for curve in curves.values()]
    if REGRET in curves and result.comparator:
        notes.append(
            f"The regret is an approximation: in the place of the best meta-learner in hindsight stands "
            f"{result.comparator}, meta-trained on all {rounds} rounds. With more training it might be better, and of "
            "fewer rounds it is not the best."
        )
    sentences = []
    for so_far, what in (
        (False, f"mean over rounds 1–{first.stop} → {second.start + 1}–{rounds}"),
        (True, f"the last value up to round {first.stop} → up to round {rounds}"),
    ):
        titles = [curve.title for curve in curves.values() if bool(curve.so_far) is so_far]
        if titles:
            sentences.append(f"{', '.join(titles).capitalize()}: {what}.")
    notes.append(f"{' '.join(sentences)} {result.means.capitalize()}.")
    return Table(f"{result.spec.name}: round by round", ["strategy", *(c.title for c in curves.values())], rows, notes)


def draw(
    result: BenchmarkResult, look: dict[str, Look], folder: Path, kinds: Sequence[str] = figures.KINDS
) -> list[Path]:
    """Writes `<benchmark>-measures.png`, `.svg` and `.pdf` into `folder`, if anything was measured.

    Sums over rounds are drawn as they are, over a logarithmic axis of rounds, where a logarithm is a straight line;
    means over all rounds so far as they are. Other curves as in the other figures.
    """
    curves = measured(result)
    if not curves:
        return []
    with figures.styled():
        figure, panels = figures.panels(len(curves))
        for panel, (name, curve) in zip(panels, curves.items(), strict=True):
            lines = {row.row.name: _curve(panel, row, name, curve, look[row.row.name]) for row in result.rows}
            title = curve.title + (" (approximate)" if name == REGRET and result.comparator else "")
            panel.set(title=title[0].upper() + title[1:], ylabel=curve.title, xlabel="round")
            if curve.so_far == "sum":
                panel.set_xscale("log", base=2)
                panel.xaxis.set_major_formatter("{x:g}")
            else:
                figures.over_rounds(panel, next(cell.rounds for row in result.rows for cell in row.cells.values()))
                panel.set_ylim(bottom=0)
            labels.at_ends(panel, {name: line for name, line in lines.items() if line is not None})
        return figures.save(figure, folder / f"{result.spec.name}-measures", kinds)


def _curve(panel: Axes, row: RowResult, name: str, curve: Measured, look: Look) -> Line2D | None:
    cells = [cell for cell in row.cells.values() if name in cell.measures]
    rows = [[cell.measures[name].get(t, math.nan) for t in cell.rounds] for cell in cells]
    if not rows:
        return None
    values = np.array(rows)  # (seeds, rounds); NaN where a round has no value
    x = np.arange(1, values.shape[1] + 1)
    known = ~np.isnan(values).any(axis=0)
    if not known.any():
        return None
    x, values = x[known], values[:, known]
    smooth = values if curve.so_far else figures.running_mean(values)
    return figures.band(panel, x, values, smooth, look)
