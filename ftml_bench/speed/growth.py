"""How cost and memory grow: of a meta-step with tasks, inner steps, points and image side; of an arrival with rounds.

Time is CPU time of one thread, the values of a quantity by turns; memory is what a process of its own grows by.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory, mkdtemp
from typing import Any

import torch
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

from ftml_bench.memory import keep_freed_memory
from ftml_bench.report.figures import panels, save, styled
from ftml_bench.results.looks import COLORS
from ftml_bench.runs import definition as definitions
from ftml_bench.speed.arrivals import Stopwatch, arrivals_of
from ftml_bench.speed.machine import description, load
from ftml_bench.speed.made_up import MadeUp
from ftml_bench.speed.measuring import at, interleaved, row, table
from ftml_bench.speed.processes import gradient_of, peaks
from ftml_bench.speed.subjects import INNER_STEPS, QUERY, SUPPORT, TASKS, has_native

USUAL = {"tasks": TASKS, "inner_steps": INNER_STEPS, "support": SUPPORT, "query": QUERY, "side": 28}
TITLES = {
    "tasks": "tasks (T)",
    "inner_steps": "inner steps (K)",
    "support": "support points (S)",
    "query": "query points (Q)",
    "side": "image side",
}
# What a quantity is set to, the others being as usual.
VALUES = {
    "tasks": (1, 5, 25, 100),
    "inner_steps": (1, 5, 20, 50),
    "support": (5, 10, 40, 160),
    "query": (5, 10, 40, 160),
    "side": (14, 28, 56, 84),
}
ROUNDS = (1, 4, 14, 56)
MEASURED_STEPS = 2  # meta-steps of an arrival that is timed: all are alike


@dataclass(frozen=True)
class Line:
    """One quantity: for each of its values ms and MiB."""

    title: str
    values: tuple[int, ...]
    milliseconds: list[float]
    mebibytes: list[float]


def report(folder: Path | None, *, repeats: int) -> Iterator[str]:
    """Lines of Markdown: a table for each quantity; the figure goes to `folder`/growth.png and .svg.

    :param repeats: interleaved repeats of each timing, after one that is not counted.
    """
    keep_freed_memory()
    torch.set_num_threads(1)
    way = "native" if has_native() else "batched"
    yield "# How cost and memory grow"
    yield ""
    yield (
        f"A meta-gradient of RainbowNet by the engine `{way}`, one thread: T = {TASKS}, K = {INNER_STEPS}, "
        f"S = {SUPPORT}, Q = {QUERY}, images of 28 x 28, but for the one quantity that a table varies. Milliseconds of "
        f"CPU time, median of {repeats} interleaved repeats; MiB that one adds to a process of its own."
    )
    yield f"Machine: {description()}."
    lines = []
    for quantity, values in VALUES.items():
        lines.append(of_meta_step(way, quantity, values, repeats))
        yield from _table(lines[-1])
    lines.append(of_arrival(ROUNDS, repeats))
    yield from _table(lines[-1])
    yield ""
    yield (
        f"An arrival of 20 images in a stream of so many rounds of 900, in its last: the draw and meta-gradient of "
        f"{MEASURED_STEPS} meta-steps, the update procedure on 440 to 460 images, and the prediction of 178. MiB "
        f"are those of the arrivals of a process of its own, with stream, buffer and learner."
    )
    if folder is not None:
        draw(lines, folder)
        yield ""
        yield "![Time and memory of a meta-step, over multiples of each usual value, and of an arrival](growth.png)"


def of_meta_step(way: str, quantity: str, values: tuple[int, ...], repeats: int) -> Line:
    """A meta-gradient by an engine where one quantity varies."""
    sizes: list[dict[str, Any]] = [{**USUAL, quantity: value} for value in values]
    title = TITLES[quantity]
    calls = {f"{title} {value}": gradient_of(way, **size) for value, size in zip(values, sizes, strict=True)}
    seconds = interleaved(calls, repeats, time.process_time, "a meta-step")
    at(f"memory of a meta-step by {title}")
    return Line(title, values, _medians(seconds), peaks(partial(gradient_of, way), sizes))


def of_arrival(rounds: tuple[int, ...], repeats: int) -> Line:
    """An arrival in the last round of streams of so many rounds."""
    with TemporaryDirectory() as folder:
        with ExitStack() as open_files:
            coming = {f"{count} rounds": open_files.enter_context(_arrivals_in(folder, count)) for count in rounds}
            calls = {title: partial(next, arrivals) for title, arrivals in coming.items()}
            seconds = interleaved(calls, repeats, time.process_time, "an arrival")
        at("memory of an arrival by rounds")
        mebibytes = peaks(_first_arrival, [{"folder": folder, "rounds": count} for count in rounds])
    return Line("rounds", rounds, _medians(seconds), mebibytes)


def _arrivals_in(folder: str, rounds: int) -> closing[Generator[None, None, None]]:
    """Has the next arrival of the last round come, train and be evaluated, each time it is asked for one."""
    paper = definitions.load("rainbow_mnist").to_dict()
    paper["benchmarks"]["rainbow_mnist"]["steps"] = MEASURED_STEPS
    short = definitions.from_dict(paper, "rainbow_mnist")
    records = Path(mkdtemp(dir=folder))
    return closing(arrivals_of(short, MadeUp(rounds=rounds), rounds - 1, records, Stopwatch(), "cpu"))


def _first_arrival(folder: str, rounds: int) -> Callable[[], Any]:
    def first() -> None:
        with _arrivals_in(folder, rounds) as arrivals:
            next(arrivals)

    return first


def _medians(seconds: dict[str, list[float]]) -> list[float]:
    return [1e3 * statistics.median(times) for times in seconds.values()]


def _table(line: Line) -> Iterator[str]:
    yield ""
    yield from table([line.title, *map(str, line.values)])
    yield row(["ms", *(f"{ms:.0f}" if ms >= 10 else f"{ms:.1f}" for ms in line.milliseconds)])
    yield row(["MiB", *(f"{mib:.0f}" for mib in line.mebibytes)])
    yield ""
    yield f"Load of the machine at the end: {load()}."


def draw(lines: list[Line], folder: Path) -> list[Path]:
    """One figure: time (left) and memory (right) of a meta-step, log-log, and of an arrival."""
    with styled():
        figure, axes = panels(4)
        for column, (name, title, unit) in enumerate(
            [("milliseconds", "CPU time", "milliseconds"), ("mebibytes", "memory", "MiB")]
        ):
            step, arrival = axes[column], axes[2 + column]
            for line, color in zip(lines[:-1], COLORS, strict=False):
                usual = line.values.index(USUAL[_quantity(line)])
                x = [value / line.values[usual] for value in line.values]
                step.plot(x, getattr(line, name), color=color, marker="o", markersize=3.5, label=line.title)
            step.set(title=f"A meta-step: {title}", xlabel="times the usual value", ylabel=unit, yscale="log")
            arrival.plot(lines[-1].values, getattr(lines[-1], name), color="dimgrey", marker="o", markersize=3.5)
            arrival.set(title=f"An arrival: {title}", xlabel="rounds of the stream", ylabel=unit)
            arrival.set_ylim(0, 1.1 * max(getattr(lines[-1], name)))
        for axis in axes:
            axis.set_xscale("log")
        for scale in (*(axis.xaxis for axis in axes), axes[0].yaxis, axes[1].yaxis):
            scale.set_major_locator(LogLocator(subs=(1, 2, 5)))
            scale.set_major_formatter(StrMethodFormatter("{x:g}"))
            scale.set_minor_formatter(NullFormatter())
        handles, names = axes[0].get_legend_handles_labels()
        figure.legend(handles, names, loc="outside lower center", ncols=5, frameon=False)
        return save(figure, folder / "growth")


def _quantity(line: Line) -> str:
    return next(quantity for quantity, title in TITLES.items() if title == line.title)
