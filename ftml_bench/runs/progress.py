"""The progress bar of a leaderboard that runs."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from typing import Any

from tqdm import tqdm

from ftml_bench import bars
from ftml_bench.errors import printable
from ftml_bench.runs.definition import Cell, Definition
from ftml_bench.runs.pace import Pace

# A lock of threads alone: one process writes bars, and the semaphore of tqdm's own would be said to have leaked from a
# worker that was ended while a learner in it drew a bar.
tqdm.set_lock(threading.RLock())

_BAR = 6  # columns of the bar itself, at least
_NAME = 16  # of a cell's name, at least: what does not fit beside such names is counted


class Progress:
    """One bar over the evaluations of all cells that are run: which run, how many have ended, how fast, how long yet.

    :param kept: cells that were done before.
    :param quiet: no bar.
    """

    def __init__(self, definition: Definition, todo: list[Cell], kept: int, quiet: bool) -> None:
        self._cells = len(definition.cells())
        self._several = len(definition.benchmarks) > 1
        self._ended = kept
        self._pace = Pace(todo)
        kind = _Bar if bars.watched() else _Lines
        self._bar = kind(self._said, total=0, disable=quiet or not todo, **bars.settings())

    def evaluated(self, cell: Cell, done: int, total: int) -> None:
        """A cell has made `done` of its `total` evaluations."""
        self._pace.evaluated(cell, done, total)
        self._show()

    def wait(self) -> None:
        """Nothing has happened; the clock goes on."""
        self._bar.update(0)

    def stopped(self, cell: Cell) -> None:
        """A cell does not run any more; it may run again."""
        self._pace.stopped(cell)

    def ended(self, cell: Cell) -> None:
        """A cell has come to its end, whatever that is."""
        self._ended += 1
        self._pace.over(cell)
        self._show()

    def close(self) -> None:
        """Ends the bar's line."""
        self._bar.close()

    def _show(self) -> None:
        self._bar.total = self._pace.total
        self._bar.update(self._pace.done - self._bar.n)

    def _said(self, columns: int) -> dict[str, str]:
        """The fields of the bar's format that are ours, in so many columns."""
        left = self._pace.seconds_left
        end = f"{self._ended}/{self._cells} cells"
        clock = f"{'?' if left is None else tqdm.format_interval(int(left))}{rate(self._pace.rate)}"
        room = columns - len(f" 100%|| {end} [00:00:00<{clock}]") - _BAR
        running = list(map(self._name, self._pace.running)) or ["done" if self._ended == self._cells else "starting"]
        return {"cells": names(running, room), "end": end, "clock": clock}

    def _name(self, cell: Cell) -> str:
        """ "digits/FTML/0": benchmark, where there are several, row and seed."""
        return f"{f'{cell.benchmark}/' if self._several else ''}{cell.row}/{cell.seed}"


class _Bar(tqdm):
    """tqdm's bar with fields of its own, which depend on how much room there is."""

    def __init__(self, said: Callable[[int], dict[str, str]], **settings: Any) -> None:
        self._said = said
        super().__init__(bar_format="{cells} {percentage:3.0f}%|{bar}| {end} [{elapsed}<{clock}]", **settings)

    @property
    def format_dict(self) -> dict[str, Any]:
        """What the format can name."""
        found = super().format_dict
        return {**found, **self._said(found["ncols"] or bars.COLUMNS_IN_A_LOG)}


class _Lines(_Bar, bars.Lines):
    """The same in a log."""


def names(cells: list[str], room: int) -> str:
    """Cells in at most `room` columns: as many as have sixteen each, long names without their middle, and a count.

    >>> names(["digits/FTML/0", "digits/TrainOnEverything/0", "digits/FTML/1"], 40)
    'digits/FTML/0, digits/T…Everything/0 +1'
    """
    for shown in range(len(cells), 0, -1):
        rest = f" +{len(cells) - shown}" if shown < len(cells) else ""
        each = (room - len(rest) - 2 * (shown - 1)) // shown
        if each >= min(_NAME, max(map(len, cells[:shown]))):
            break
    return ", ".join(_shortened(cell, each) for cell in cells[:shown]) + rest


def _shortened(text: str, columns: int) -> str:
    """A text without its middle, if it is longer; never less than a letter at either end."""
    if len(text) <= columns:
        return text
    end = max((columns - 1) * 3 // 5, 1)
    return f"{text[: max(columns - 1 - end, 1)]}…{text[-end:]}"


def rate(evaluations: float | None) -> str:
    """Evaluations a second for people, or seconds an evaluation where that is the larger number.

    >>> rate(2.34), rate(1 / 5.62), rate(1 / 750), rate(None)
    (', 2.3 evaluations/s', ', 5.6 s/evaluation', ', 750 s/evaluation', '')
    """
    if not evaluations:
        return ""
    number, unit = (evaluations, "evaluations/s") if evaluations >= 1 else (1 / evaluations, "s/evaluation")
    return f", {number:.{1 if number < 100 else 0}f} {unit}"


def say(text: str) -> None:
    """A line on the error output, above the bar; in a worker, on that of the process which has the bar."""
    _say(text)


def say_by(how: Callable[[str], Any]) -> None:
    """Has this process say its lines so from now on."""
    global _say
    _say = how


def _on_the_terminal(text: str) -> None:
    tqdm.write(f"ftml-bench: {printable(text)}", file=sys.stderr)


_say: Callable[[str], Any] = _on_the_terminal
