"""Contact sheets: what a stream looks like, as one picture."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import IO

import torch
from avalanche.benchmarks.scenarios import DatasetExperience
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from ftml_bench.benchmarks.checks import check_int
from ftml_bench.benchmarks.linear_regression import LinearRegression
from ftml_bench.benchmarks.stacked import as_input
from ftml_bench.benchmarks.stream import TaskStream
from ftml_bench.errors import UsageError
from ftml_bench.files import replacing

_SMALL = 7  # points
_PANELS = 4  # curves side by side
_CHANNELS = (1, 3, 4)  # grey, colours, and colours with transparency
_TASK_NAMES = ("task_name", "transformation", "view")  # what an experience may call its task


def contact_sheet(
    benchmark: TaskStream, file: str | os.PathLike[str] | IO[bytes], rounds: int = 8, images: int = 10
) -> None:
    """Draw the first datapoints of the first rounds as a PNG.

    Streams of images: a line of images a round, its task named at the left, the label above each image. Regression of
    one input: a panel a round, the datapoints on the curve of the held-out data. Linear regression: where each round's
    loss is least and how fast it grows.

    :param benchmark: one of our streams.
    :param file: the picture to write, whole or not at all, whose folder must exist, or an open file.
    :param rounds: rounds at most.
    :param images: datapoints of each round at most.
    :raises UsageError: for sizes below 1, or a stream of some other kind.
    """
    rounds = check_int("rounds", rounds, least=1)
    images = check_int("images", images, least=1)
    if not isinstance(benchmark, TaskStream):
        raise UsageError(f"no sheet for a {type(benchmark).__name__}: expected a TaskStream")
    trains = list(benchmark.train_stream)[:rounds]
    tests = list(benchmark.test_stream)[:rounds]
    shape = trains[0].stacked.x.shape[1:]
    if len(shape) == 3 and shape[0] in _CHANNELS:
        figure = _image_sheet(benchmark, trains, images)
    elif shape == (1,) and not trains[0].stacked.is_classification:
        figure = _curve_sheet(trains, tests, images)
    elif isinstance(benchmark, LinearRegression):
        figure = _quadratic_sheet(benchmark, rounds)
    else:
        raise UsageError(
            f"no sheet for inputs of shape {tuple(shape)}: expected images (1, 3 or 4 channels first), or "
            "regression of one input"
        )
    if figure.get_suptitle() == "":
        figure.suptitle(f"{benchmark.title}: the first datapoints of each round", fontsize=_SMALL + 2)
    # A canvas of its own: pyplot would keep every figure and choose a backend for the whole process.
    canvas = FigureCanvasAgg(figure)
    if isinstance(file, str | os.PathLike):
        with replacing(Path(file)) as drawn:
            canvas.print_png(drawn)
    else:
        canvas.print_png(file)


def _image_sheet(benchmark: TaskStream, rounds: Sequence[DatasetExperience], images: int) -> Figure:
    # Labels of several numbers need wider columns.
    width = 0.45 if rounds[0].stacked.is_classification else 0.9
    figure = Figure(figsize=(1.6 + width * images, 0.4 + (width + 0.15) * len(rounds)), dpi=110, layout="compressed")
    grid = figure.subplots(len(rounds), images, squeeze=False)
    for index, (experience, line) in enumerate(zip(rounds, grid, strict=True)):
        count = min(images, len(experience.stacked))
        x, y = experience.stacked.take(torch.arange(count))
        for column, axes in enumerate(line):
            axes.axis("off")
            if column < count:
                axes.imshow(as_input(x[column]).permute(1, 2, 0).numpy())
                axes.set_title(benchmark.label_text(y[column]), fontsize=_SMALL, pad=1)
        task = next((getattr(experience, n) for n in _TASK_NAMES if hasattr(experience, n)), "")
        line[0].text(
            -0.3,
            0.5,
            f"round {index + 1}\n{task}".strip(),
            fontsize=_SMALL,
            ha="right",
            va="center",
            transform=line[0].transAxes,
        )
    return figure


def _curve_sheet(trains: Sequence[DatasetExperience], tests: Sequence[DatasetExperience], points: int) -> Figure:
    columns = min(_PANELS, len(trains))
    lines = math.ceil(len(trains) / columns)
    figure = Figure(figsize=(1.9 * columns, 0.4 + 1.5 * lines), dpi=110, layout="constrained")
    grid = figure.subplots(lines, columns, squeeze=False, sharex=True, sharey=True).ravel()
    for axes in grid[len(trains) :]:
        axes.axis("off")
    for index, (train, test, axes) in enumerate(zip(trains, tests, grid, strict=False)):
        held_out = test.stacked
        x, y = held_out.take(held_out.x[held_out.rows].squeeze(1).argsort())
        axes.plot(x.squeeze(1).numpy(), y.squeeze(1).numpy(), linewidth=1, color="tab:gray")
        x, y = train.stacked.take(torch.arange(min(points, len(train.stacked))))
        axes.plot(x.squeeze(1).numpy(), y.squeeze(1).numpy(), "o", markersize=3, color="tab:red")
        axes.set_title(f"round {index + 1}", fontsize=_SMALL, pad=2)
        axes.tick_params(labelsize=_SMALL)
    return figure


def _quadratic_sheet(benchmark: LinearRegression, rounds: int) -> Figure:
    """Every round's optimum in its first two coordinates, and where the cross-section of f there is 0.01 higher."""
    figure = Figure(figsize=(6, 5.4), dpi=110, layout="constrained")
    axes = figure.subplots()
    angle = torch.linspace(0, 2 * math.pi, 100, dtype=torch.float64)
    circle = torch.stack([angle.cos(), angle.sin()])
    count = min(rounds, len(benchmark.A))
    for index in range(count):
        values, vectors = torch.linalg.eigh(benchmark.A[index, :2, :2])
        x, y = benchmark.optima[index, :2, None] + vectors @ ((0.02 / values).sqrt()[:, None] * circle)
        axes.plot(x.numpy(), y.numpy(), linewidth=0.8, color="tab:gray")
        at_x, at_y = benchmark.optima[index, :2].tolist()
        axes.text(at_x, at_y, str(index + 1), fontsize=_SMALL, ha="center", va="center")
    for name, w, color in (("joint", benchmark.w_joint(), "tab:red"), ("MAML", benchmark.w_maml(), "tab:blue")):
        axes.plot(*w[:2].tolist(), "x", color=color, label=f"w*_{name} of all {len(benchmark.A)} rounds")
    axes.set_aspect("equal", adjustable="datalim")
    axes.tick_params(labelsize=_SMALL)
    axes.legend(fontsize=_SMALL, frameon=False)
    figure.suptitle(
        f"{benchmark.title}: optimum and curvature of each round (first 2 of {benchmark.A.shape[1]} coordinates)",
        fontsize=_SMALL + 2,
    )
    return figure
