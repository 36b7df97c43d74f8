"""The paper's Figure 3: datapoints to γ, error at the first checkpoint and error at N, over the rounds; and how many
rounds have not reached γ yet, over datapoints.

Without a γ its Figure 4: the error at every checkpoint, and their area over the logarithm of datapoints.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import matplotlib.style as mpl_style
import numpy as np
from matplotlib import rcParams
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

from ftml_bench.files import replacing
from ftml_bench.report import labels
from ftml_bench.results.cells import THIRDS
from ftml_bench.results.frames import rounds_of
from ftml_bench.results.kaplan_meier import survival
from ftml_bench.results.looks import MARKERS, Look
from ftml_bench.results.quantities import quantities
from ftml_bench.results.statistics import BenchmarkResult, CellSummary, measured

WINDOW = 5  # rounds
COLUMNS = 2  # panels side by side
KINDS = ("svg", "png", "pdf")
_UNDATED: dict[str, dict[str, None]] = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}  # same data, same bytes
_MARKED = 6  # markers along a line


def draw(result: BenchmarkResult, look: dict[str, Look], folder: Path, kinds: Sequence[str] = KINDS) -> list[Path]:
    """Writes `<benchmark>.svg`, `.png` and `.pdf` into `folder`; `caption` says what they show."""
    with styled():
        return save(_figure(result, look), folder / result.spec.name, kinds)


def caption(result: BenchmarkResult, look: dict[str, Look]) -> str:
    """What the lines of a benchmark's figures are, and of how many seeds."""
    counts = sorted({len(row.cells) for row in result.rows if row.cells})
    seeds = "no seed" if not counts else " to ".join(map(str, dict.fromkeys((counts[0], counts[-1]))))
    text = (
        f"Faint: the mean over seeds ({seeds}) of each round. Strong, with markers: its centred running mean over "
        f"{WINDOW} rounds."
    )
    if counts and counts[-1] > 1:
        text += " Shaded: ± one standard error over seeds of the running mean."
    if result.threshold is not None:
        text += " Steps: Kaplan-Meier, the rounds of the last third of the stream of all seeds together."
    so_far = {curve.so_far for curve in measured(result).values()}
    if "sum" in so_far:
        text += " Sums over rounds: as they are, over a logarithmic axis."
    if "mean" in so_far:
        text += " Means over all rounds so far: as they are."
    if any(look[row.row.name].grey for row in result.rows):
        text += " Grey: rows beyond the eight that have colours, without faint line and shade."
    return text


def open_rounds(result: BenchmarkResult, look: dict[str, Look]) -> Figure:
    """The panel of the rounds of the last third that have not reached γ, alone; the benchmark has a γ."""
    figure, axes = panels(1)
    figure.set_size_inches(5.5, 3.4)
    _open_rounds(axes[0], result, look)
    return figure


@contextmanager
def styled() -> Iterator[None]:
    """Matplotlib with the style of our figures, until the end of the block."""
    with mpl_style.context("ftml_bench.report.ftml"):
        yield


def panels(count: int) -> tuple[Figure, list[Axes]]:
    """A figure with as many panels, two side by side."""
    lines = -(-count // COLUMNS)
    figure = Figure(figsize=(11, 0.2 + 3.1 * lines), layout=ConstrainedLayoutEngine(w_pad=0.08, h_pad=0.08))
    FigureCanvasAgg(figure)
    axes = list(figure.subplots(lines, min(count, COLUMNS), squeeze=False).ravel())
    for unused in axes[count:]:
        unused.remove()
    return figure, axes[:count]


def save(figure: Figure, path: Path, kinds: Sequence[str] = KINDS) -> list[Path]:
    """Writes `path`.svg, `path`.png and `path`.pdf, laid out once for all of them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.set_dpi(rcParams["savefig.dpi"])  # letters are as wide as in the picture
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    files = [path.with_name(f"{path.name}.{kind}") for kind in kinds]
    for file, kind in zip(files, kinds, strict=True):
        with replacing(file) as drawn:
            figure.savefig(drawn, format=kind, metadata=_UNDATED.get(kind))
    return files


def band(axes: Axes, x: np.ndarray, values: np.ndarray, smooth: np.ndarray, look: Look) -> Line2D:
    """One row: faint the mean over seeds of `values`, strong that of `smooth`; shaded its standard error.

    :param values: (seeds, rounds), as `smooth`; `x`: (rounds,).
    """
    mean = smooth.mean(axis=0)
    if look.grey:
        return axes.plot(x, mean, color=look.color, linewidth=0.8, marker="", zorder=1.5)[0]
    axes.plot(x, values.mean(axis=0), color=look.color, linewidth=0.7, alpha=0.3, marker="")
    if len(values) > 1:
        error = smooth.std(axis=0, ddof=1) / np.sqrt(len(values))
        axes.fill_between(x, mean - error, mean + error, color=look.color, alpha=0.15, linewidth=0)
    # From another place on for every marker, so that lines which lie on each other still show theirs.
    every = max(1, len(x) // _MARKED)
    first = MARKERS.index(look.marker) * every // len(MARKERS)
    return axes.plot(
        x, mean, color=look.color, linestyle=look.linestyle, marker=look.marker, markevery=(first, every),
        markeredgewidth=0, zorder=2.5,
    )[0]  # fmt: skip


def running_mean(values: np.ndarray, window: int = WINDOW) -> np.ndarray:
    """Centred mean over `window` (odd) rounds of values (..., R); at the ends, over those of them that exist.

    >>> running_mean(np.array([0.0, 3.0, 6.0, 9.0]), 3).tolist()
    [1.5, 3.0, 6.0, 7.5]
    """
    rounds = values.shape[-1]
    reach = window // 2
    means = np.empty(values.shape)
    for t in range(rounds):
        means[..., t] = values[..., max(0, t - reach) : t + reach + 1].mean(axis=-1)
    return means


def over_rounds(axes: Axes, rounds: Sequence[int]) -> np.ndarray:
    """The axis of rounds by their numbers, from 0; gives their places, which count from 1."""
    axes.set_xlabel("round")
    axes.xaxis.set_major_locator(MaxNLocator("auto", steps=[1, 2, 2.5, 5, 10], integer=True))
    axes.set_xlim(rounds[0] + 0.5, rounds[-1] + 1.5)
    return np.array(rounds) + 1


def logarithmic(axes: Axes, which: str) -> None:
    """A logarithmic axis "x" or "y" with plain numbers; it stays linear if a line has a point that is not above 0: that
    would not be seen."""
    shown = [line.get_data()["xy".index(which)] for line in axes.get_lines()]
    if any(np.less_equal(values, 0).any() for values in shown):
        return
    axis = getattr(axes, f"{which}axis")
    low, high = axis.get_data_interval()
    if 0 <= high - low <= 1e-9 * high:  # a decade on either side, as Matplotlib takes it, but with a warning
        getattr(axes, f"set_{which}lim")(low / 10, high * 10)
    getattr(axes, f"set_{which}scale")("log")
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter("{x:g}")
    axis.set_minor_formatter(NullFormatter())


def _figure(result: BenchmarkResult, look: dict[str, Look]) -> Figure:
    first, last = result.checkpoints[0], result.checkpoints[-1]
    checkpoints = [first, last] if result.threshold is not None else result.checkpoints
    error = {"error": "Error rate", "loss": "Loss"}[result.measure]
    curves = {f"{error} after {checkpoint} datapoints": _errors_at(checkpoint) for checkpoint in checkpoints}
    if result.threshold is None and any(quantity.name == "area" for quantity in quantities(result)):
        curves[f"{error}, mean over the logarithm of datapoints"] = lambda cell: cell.area
    figure, axes = panels(len(curves) + (0 if result.threshold is None else 2))
    if result.threshold is not None:
        lines = _rounds(axes[0], result, look, lambda cell: cell.to_threshold)
        axes[0].set(title=f"Datapoints to γ ({result.gamma})", ylabel="datapoints")
        axes[0].axhline(last, color="#888888", linewidth=0.8, linestyle=(0, (1, 2)))
        axes[0].annotate("not reached", (1, last), (-2, 3), xycoords=("axes fraction", "data"),
                           textcoords="offset points", ha="right", fontsize=7.5, color="#666666")  # fmt: skip
        logarithmic(axes[0], "y")
        labels.at_ends(axes[0], lines)
        _open_rounds(axes[1], result, look)
    for panel, (title, curve) in zip(axes[-len(curves) :], curves.items(), strict=True):
        lines = _rounds(panel, result, look, curve)
        panel.set(title=title, ylabel=error.lower())
        if result.measure == "loss":
            logarithmic(panel, "y")  # losses of learners differ by powers of ten
        else:
            panel.set_ylim(bottom=0)
        labels.at_ends(panel, lines)
    return figure


def _open_rounds(axes: Axes, result: BenchmarkResult, look: dict[str, Look]) -> None:
    """How many rounds of the last third have not reached γ, over datapoints."""
    lines = {}
    for row in result.rows:
        datapoints, censored = rounds_of(row, THIRDS[-1])
        if not datapoints:
            continue
        curve, own = survival(datapoints, censored), look[row.row.name]
        floor = min(cell.first_arrival for cell in row.cells.values())
        lines[row.row.name] = axes.plot(
            [0.7 * floor, *curve.datapoints, result.checkpoints[-1]], [1, *curve.open, curve.open[-1]],
            drawstyle="steps-post", color=own.color, linestyle=own.linestyle, marker="",
            linewidth=0.8 if own.grey else 1.8, zorder=1.5 if own.grey else 2.5,
        )[0]  # fmt: skip
    logarithmic(axes, "x")
    axes.set(title=f"Rounds short of γ ({result.gamma}), last third", xlabel="datapoints", ylabel="share of rounds")
    axes.set_ylim(0, 1.03)
    axes.margins(x=0)
    labels.at_ends(axes, lines)


def _errors_at(checkpoint: int) -> Callable[[CellSummary], list[float]]:
    return lambda cell: cell.errors[checkpoint]


def _rounds(
    axes: Axes,
    result: BenchmarkResult,
    look: dict[str, Look],
    curve: Callable[[CellSummary], list[float] | list[int]],
) -> dict[str, Line2D]:
    """Every row over the rounds; the lines by name."""
    lines = {}
    for row in result.rows:
        if row.cells:
            values = np.array([curve(cell) for cell in row.cells.values()], dtype=float)  # (seeds, rounds)
            x = over_rounds(axes, next(iter(row.cells.values())).rounds)
            lines[row.row.name] = band(axes, x, values, running_mean(values), look[row.row.name])
    return lines
