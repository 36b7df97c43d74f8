"""All rows of a leaderboard at a glance: how fast they learn, and what that takes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from ftml_bench.report import labels
from ftml_bench.report.figures import KINDS, save, styled
from ftml_bench.report.tables import human
from ftml_bench.results.cells import ALL, HALVES
from ftml_bench.results.looks import Look
from ftml_bench.results.quantities import Number, Quantity, quantities
from ftml_bench.results.statistics import BenchmarkResult, halves, measured

NAME = "overview"  # of its files
_WIDTHS = {"rows": 3.2, "second": 2.4, "gradient evaluations": 2.0, "points kept": 2.0}
_COSTS: dict[str, Number] = {
    "gradient evaluations": lambda cell: cell.gradient_evaluations,
    "points kept": lambda cell: cell.points_kept,
}


@dataclass(frozen=True)
class _Shown:
    """What a panel shows of every row, by its title, or by its `name` where there is less room; `early` is None where
    there is one number for all rounds."""

    title: str
    name: str
    early: Number | None
    late: Number
    is_wide: bool  # rows differ by powers of ten, and all are above 0
    more_is_better: bool = False


def caption(results: Sequence[BenchmarkResult]) -> str:
    """What the figure shows."""
    bars = any(len(row.cells) > 1 for result in results for row in result.rows)
    return (
        "Every row, with its number in the panels to the right. Hollow: mean over the first half of the rounds. Full: "
        "second half of the rounds; an area is over all rounds; a running sum or mean is its last value"
        f"{'; bars: ± one standard error over seeds' * bars}. Right: the first panel's number against what it cost in "
        "one run."
    )


def draw(
    results: Sequence[BenchmarkResult], look: dict[str, Look], folder: Path, kinds: Sequence[str] = KINDS
) -> list[Path]:
    """Writes `overview.svg`, `.png` and `.pdf` into `folder`; `caption` says what they show."""
    with styled():
        return save(_figure(results, look), folder / NAME, kinds)


def _figure(results: Sequence[BenchmarkResult], look: dict[str, Look]) -> Figure:
    shown = [_shown(result) for result in results]
    columns = [
        name
        for name in _WIDTHS
        if (name != "second" or any(len(some) > 1 for some in shown))
        and (name not in _COSTS or any(_mean_costs(result, name) for result in results))
    ]
    heights = [1.0 + 0.19 * max(len(result.rows), 4) for result in results]
    figure = Figure(figsize=(11, sum(heights)), layout=ConstrainedLayoutEngine(w_pad=0.06, h_pad=0.06))
    FigureCanvasAgg(figure)
    widths = [_WIDTHS[name] for name in columns]
    alike = len({(result.gamma, result.measure, result.checkpoints[-1]) for result in results}) == 1
    if alike:  # axes that are shared are of one kind
        shown = [
            [
                replace(one, is_wide=all(others[n].is_wide for others in shown if len(others) > n))
                for n, one in enumerate(some)
            ]
            for some in shown
        ]
    grid = figure.subplots(
        len(results), len(columns), squeeze=False, sharex="col" if alike else False,
        width_ratios=widths, height_ratios=heights,
    )  # fmt: skip
    beside: list[tuple[Axes, dict[str, tuple[float, float]]]] = []
    for axes, result, some in zip(grid, results, shown, strict=True):
        panels = dict(zip(columns, axes, strict=True))
        _rows(panels["rows"], result, look, some[0])
        panels["rows"].set_title(f"{labels.shortened(result.spec.name)}\n{some[0].title}", loc="left")
        if len(some) > 1:
            _rows(panels["second"], result, look, some[1])
            panels["second"].set_yticklabels([])
            panels["second"].set_title(some[1].title, loc="left")
        elif "second" in panels:
            panels["second"].remove()
        for name in _COSTS:
            if name in panels:
                beside.append((panels[name], _over(panels[name], result, look, some[0], name)))
    for panel, points in beside:  # when all panels that share an axis have set its limits
        labels.beside(panel, points)
    _settle(figure)
    return figure


def _settle(figure: Figure) -> None:
    """Fix the panels where the layout puts them: its last digits differ from run to run, and with them the file's."""
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    for axes in figure.axes:
        left, bottom, width, height = (round(number, 5) for number in axes.get_position().bounds)
        axes.set_position((left, bottom, width, height))


def _shown(result: BenchmarkResult) -> list[_Shown]:
    """One thing or two: datapoints to γ, else the area, else the error at N; the first sum or mean over all rounds so
    far, else the area, else the error at N. The sum comes first where there is no γ: it is what was asked for."""
    found = {quantity.name: quantity for quantity in quantities(result)}
    names = [*found]
    chosen = [name for name in ("datapoints_to_threshold", "area") if name in found] + names[-1:]
    first, *others = [_of_rounds(result, found[name]) for name in dict.fromkeys(chosen)]
    so_far = [
        _Shown(
            f"{curve.title}, all rounds",
            curve.title,
            None,
            last := halves(name, curve)["second_half"],
            is_wide=curve.so_far == "sum" and _all_positive(result, last),
            more_is_better=curve.so_far == "mean" and result.of_classes,  # then it is of accuracies
        )
        for name, curve in measured(result).items()
        if curve.so_far
    ]
    if so_far and result.threshold is None:
        return [so_far[0], first]
    return [first, *(so_far or others)[:1]]


def _of_rounds(result: BenchmarkResult, quantity: Quantity) -> _Shown:
    is_wide = quantity.name == "datapoints_to_threshold" or result.measure == "loss"
    title = quantity.title.replace("γ", f"γ ({result.gamma})")
    if quantity.judged == ALL:
        area = quantity.over(ALL)
        return _Shown(title, quantity.title, None, area, is_wide and _all_positive(result, area))
    early, late = (quantity.over(half) for half in HALVES)
    return _Shown(title, quantity.title, early, late, is_wide and _all_positive(result, early, late))


def _all_positive(result: BenchmarkResult, *numbers: Number) -> bool:
    """Whether a logarithmic axis can show every row."""
    means = [row.over_seeds(number).mean for row in result.rows for number in numbers]
    return all(mean is None or mean > 0 for mean in means)


def _rows(axes: Axes, result: BenchmarkResult, look: dict[str, Look], shown: _Shown) -> None:
    """A line a row, the first on top."""
    for place, row in enumerate(result.rows):
        own = look[row.row.name]
        for number, fill in ((shown.early, "none"), (shown.late, "full")):
            found = None if number is None else row.over_seeds(number)
            if found is not None and found.mean is not None:
                axes.errorbar(
                    found.mean, place, xerr=found.standard_error or 0, color=own.color, marker=own.marker or "o",
                    fillstyle=fill, markersize=5, linestyle="", elinewidth=1.2,
                )  # fmt: skip
    names = [f"{labels.shortened(row.row.name)}  {n}" for n, row in enumerate(result.rows, 1)]
    axes.set_yticks(range(len(result.rows)), names)
    axes.set_ylim(len(result.rows) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)
    if shown.more_is_better:
        axes.set_xlabel("better →", loc="right", labelpad=1)
    else:
        axes.set_xlabel("← better", loc="left", labelpad=1)
    if shown.is_wide:
        _logarithmic(axes, "x")


def _mean_costs(result: BenchmarkResult, name: str) -> dict[str, float]:
    """What rows cost on average, of those that say."""
    means = {row.row.name: row.over_seeds(_COSTS[name]).mean for row in result.rows}
    return {row: mean for row, mean in means.items() if mean}


def _over(
    axes: Axes, result: BenchmarkResult, look: dict[str, Look], shown: _Shown, name: str
) -> dict[str, tuple[float, float]]:
    """What is shown of late rounds, over what it has cost; gives the rows' numbers with their points."""
    costs, points = _mean_costs(result, name), {}
    for number, row in enumerate(result.rows, 1):
        own, x, y = look[row.row.name], costs.get(row.row.name), row.over_seeds(shown.late).mean
        if x is not None and y is not None:
            axes.plot(x, y, color=own.color, marker=own.marker or "o", markersize=5, linestyle="")
            points[str(number)] = x, y
    axes.set_title(f"over {name}", loc="left")
    axes.set_ylabel(shown.name)
    axes.margins(0.2)
    _logarithmic(axes, "x", few=True)
    if shown.is_wide:
        _logarithmic(axes, "y")
    return points


def _logarithmic(axes: Axes, which: str, *, few: bool = False) -> None:
    """A logarithmic axis with a few plain numbers, whatever it spans; `few`: it is short."""
    getattr(axes, f"set_{which}scale")("log")
    low, high = getattr(axes, f"get_{which}lim")()
    axis = getattr(axes, f"{which}axis")
    if few and 3 * low <= high < 10 * low:
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    elif high < 10 * low:
        axis.set_major_locator(MaxNLocator(2 if few else 4, steps=[1, 2, 5, 10]))
    else:
        halfway = high < (30 if few else 1000) * low
        axis.set_major_locator(LogLocator(subs=(1, 3) if halfway else (1,), numticks=3 if few else 6))
    axis.set_major_formatter(FuncFormatter(_plain))
    axis.set_minor_formatter(NullFormatter())


def _plain(value: float, _: int) -> str:
    return human(value).replace(".0", "") if value >= 1000 else f"{value:g}"
