"""The paper's Figure 3: datapoints to γ, error at the first checkpoint and error at N, over the rounds.

Without a γ its Figure 4: the error at every checkpoint.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

from ftml_bench.results.statistics import BenchmarkResult, CellSummary
from ftml_bench.runs.definition import Definition

# Okabe and Ito (2008): told apart with any kind of colour vision. Yellow, the weakest on white, comes last.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#000000", "#E69F00", "#56B4E9", "#F0E442")
DASHES = ("solid", "dashed", "dotted")
WINDOW = 5  # rounds

Style = tuple[str, str]  # colour, line style

STYLE: dict[Any, Any] = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e6e6e6",
    "grid.linewidth": 0.7,
    "axes.edgecolor": "#666666",
    "xtick.color": "#444444",
    "ytick.color": "#444444",
    "svg.hashsalt": "ftml-bench",  # with no date in the metadata: the same records, the same bytes
}


def styles(definition: Definition) -> dict[str, Style]:
    """Row name -> colour and line style, the same in every figure of a leaderboard."""
    names = dict.fromkeys(row.name for spec in definition.benchmarks for row in spec.rows)
    return {name: (PALETTE[i % len(PALETTE)], DASHES[i // len(PALETTE) % len(DASHES)]) for i, name in enumerate(names)}


def draw(result: BenchmarkResult, style: dict[str, Style], folder: Path) -> list[Path]:
    """Writes `<benchmark>.png` and `<benchmark>.svg` into `folder`.

    Faint: the mean over seeds of each round. Solid: its centred running mean over 5 rounds (fewer at the ends).
    Shaded: the standard error over seeds of the running mean.
    """
    with mpl.rc_context(STYLE):
        return save(_figure(result, style), folder / result.spec.name)


def panels(count: int) -> tuple[Figure, list[Axes]]:
    """A figure with panels side by side, as wide as three."""
    figure = Figure(figsize=(11, 4.1), layout=ConstrainedLayoutEngine(w_pad=0.12))
    FigureCanvasAgg(figure)
    return figure, list(figure.subplots(1, count, squeeze=False)[0])


def legend(figure: Figure, panel: Axes) -> None:
    """The rows of a panel below the figure, if it has any."""
    lines, names = panel.get_legend_handles_labels()
    if lines:
        columns = -(-len(lines) // -(-len(lines) // 5))  # as few lines as hold five each, evenly filled
        figure.legend(lines, names, loc="outside lower center", ncols=columns, frameon=False)


def save(figure: Figure, path: Path) -> list[Path]:
    """Writes `path`.png and `path`.svg."""
    path.parent.mkdir(parents=True, exist_ok=True)
    files = [path.with_name(f"{path.name}.png"), path.with_name(f"{path.name}.svg")]
    figure.savefig(files[0], dpi=160)
    figure.savefig(files[1], metadata={"Date": None})
    return files


def band(axes: Axes, x: np.ndarray, values: np.ndarray, smooth: np.ndarray, style: Style, label: str) -> None:
    """One row: faint the mean over seeds of `values`, solid that of `smooth`; shaded its standard error.

    :param values: (seeds, rounds), as `smooth`; `x`: (rounds,).
    """
    color, dashes = style
    axes.plot(x, values.mean(axis=0), color=color, linewidth=0.7, alpha=0.3)
    axes.plot(x, smooth.mean(axis=0), color=color, linestyle=dashes, linewidth=1.8, label=label)
    if len(values) > 1:
        error = smooth.std(axis=0, ddof=1) / np.sqrt(len(values))
        lower, upper = smooth.mean(axis=0) - error, smooth.mean(axis=0) + error
        axes.fill_between(x, lower, upper, color=color, alpha=0.15, linewidth=0)


def running_mean(values: np.ndarray, window: int = WINDOW) -> np.ndarray:
    """Centred mean over `window` (odd) rounds of values (..., R); at the ends, over those of them that exist.

    >>> running_mean(np.array([0.0, 3.0, 6.0, 9.0]), 3).tolist()
    [1.5, 3.0, 6.0, 7.5]
    """
    rounds = values.shape[-1]
    reach = window // 2
    spans = [values[..., max(0, t - reach) : t + reach + 1] for t in range(rounds)]
    return np.stack([span.mean(axis=-1) for span in spans], axis=-1)


def _figure(result: BenchmarkResult, style: dict[str, Style]) -> Figure:
    first, last = result.checkpoints[0], result.checkpoints[-1]
    checkpoints = [first, last] if result.threshold is not None else result.checkpoints
    count = len(checkpoints) + (result.threshold is not None)
    figure, axes = panels(count)
    error = {"error": "Error rate", "loss": "Loss"}[result.measure]
    if result.threshold is not None:
        _panel(axes[0], result, style, lambda cell: cell.to_threshold)
        axes[0].set(title=f"Datapoints to γ ({result.gamma})", ylabel="datapoints")
        axes[0].axhline(last, color="#888888", linewidth=0.8, linestyle=(0, (1, 2)))
        axes[0].annotate("not reached", (1, last), (-2, 3), xycoords=("axes fraction", "data"),
                           textcoords="offset points", ha="right", fontsize=7.5, color="#666666")  # fmt: skip
        axes[0].set_ylim(bottom=0)
    for panel, checkpoint in zip(axes[-len(checkpoints) :], checkpoints, strict=True):
        _panel(panel, result, style, _errors_at(checkpoint))
        panel.set(title=f"{error} after {checkpoint} datapoints", ylabel=error.lower())
        if result.measure == "loss":
            panel.set_yscale("log")  # losses of learners differ by powers of ten
            panel.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            panel.yaxis.set_major_formatter("{x:g}")
            panel.yaxis.set_minor_formatter(NullFormatter())
        else:
            panel.set_ylim(bottom=0)
    for panel in axes:
        panel.set_xlabel("round")
        panel.xaxis.set_major_locator(MaxNLocator("auto", steps=[1, 2, 2.5, 5, 10], integer=True))
        panel.margins(x=0.02)
    legend(figure, axes[0])
    return figure


def _errors_at(checkpoint: int) -> Callable[[CellSummary], list[float]]:
    return lambda cell: cell.errors[checkpoint]


def _panel(
    axes: Axes,
    result: BenchmarkResult,
    style: dict[str, Style],
    curve: Callable[[CellSummary], list[float] | list[int]],
) -> None:
    for row in result.rows:
        if not row.cells:
            continue
        values = np.array([curve(cell) for cell in row.cells.values()], dtype=float)  # (seeds, rounds)
        x = np.arange(1, values.shape[1] + 1)
        band(axes, x, values, running_mean(values), style[row.row.name], row.row.name)
