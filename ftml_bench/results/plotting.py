"""A first look at results: two panels a benchmark, drawn from the frames."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from ftml_bench.results.cells import THIRDS, part
from ftml_bench.results.looks import Look, looks
from ftml_bench.results.statistics import BenchmarkResult

if TYPE_CHECKING:
    import pandas as pd


def draw(curves: pd.DataFrame, survival: pd.DataFrame, benchmarks: dict[tuple[str, str], BenchmarkResult]) -> Figure:
    """The figure of `ftml_bench.results.Results.plot`.

    :param benchmarks: by leaderboard and benchmark.
    """
    lines = max(len(benchmarks), 1)
    figure = Figure(figsize=(9, 3.4 * lines), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(lines, 2, squeeze=False)
    for (left, right), ((board, name), result) in zip(grid, benchmarks.items(), strict=False):
        look = looks(own.spec for (other, _), own in benchmarks.items() if other == board)
        some = (survival.leaderboard == board) & (survival.benchmark == name) & (survival.part == THIRDS[-1])
        for row in result.rows:
            if row.cells:
                open_rounds = survival[some & (survival.row == row.row.name)]
                left.step(open_rounds.datapoints, open_rounds.open, where="post", **_line(look[row.row.name]))
                own = (curves.leaderboard == board) & (curves.benchmark == name) & (curves.row == row.row.name)
                finished = curves.seed.isin(list(row.cells))  # there are those that diverged, too
                _errors(right, curves[own & finished], result, row.row.name, look[row.row.name])
        for panel in (left, right):
            panel.set_xscale("log", nonpositive="clip")  # curves of rounds begin at no datapoints
            panel.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            panel.xaxis.set_major_formatter("{x:g}")
            panel.xaxis.set_minor_formatter(NullFormatter())
            panel.set_xlabel("datapoints")
        left.set_xlim(right.get_xlim())
        left.set(title=f"{board}: {name}", ylabel=f"rounds short of γ ({result.gamma})", ylim=(0, 1.02))
        right.set(title="last third of the rounds, all seeds", ylabel=result.measure)
        if result.measure == "loss":
            right.set_yscale("log")
        if result.threshold is None:
            left.set_axis_off()
        right.legend(fontsize="small", frameon=False)
    return figure


def _errors(panel: Axes, curve: pd.DataFrame, result: BenchmarkResult, label: str, look: Look) -> None:
    """The mean error over datapoints, over the last third of the rounds and all seeds that have finished."""
    own = curve[curve["round"] == curve.evaluated_round]
    rounds = sorted(own["round"].unique())
    last = own[own["round"].isin(rounds[part(THIRDS[-1], len(rounds))])]
    error = 1 - last.accuracy if result.measure == "error" else last.loss
    means = error.groupby(last.datapoints).mean()
    panel.plot(means.index, means, marker=look.marker, markersize=4, label=label, **_line(look))


def _line(look: Look) -> dict[str, Any]:
    return {"color": look.color, "linestyle": look.linestyle, "linewidth": 0.8 if look.grey else 1.6}
