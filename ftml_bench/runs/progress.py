"""The progress bar of a leaderboard that runs."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from tqdm import tqdm

from ftml_bench.runs.definition import Cell, Definition

SECONDS_IN_A_LOG = 10  # between two states of the bar where nobody watches it move


class Progress:
    """One bar over the evaluations of all cells that are run.

    Cells of a benchmark have the same number of evaluations, so the first to tell its number tells it for all.
    """

    def __init__(self, definition: Definition, todo: list[Cell], kept: int, quiet: bool) -> None:
        self._todo = todo
        self._cells = len(definition.cells())
        self._ended = kept
        self._done: dict[Cell, int] = {}
        self._totals: dict[str, int] = {}
        every = 0.1 if sys.stderr.isatty() else SECONDS_IN_A_LOG
        hidden = quiet or not todo
        self._bar = tqdm(total=0, unit=" evaluations", disable=hidden, dynamic_ncols=True, mininterval=every)
        self._show()

    def evaluated(self, cell: Cell, done: int, total: int) -> None:
        """A cell has made `done` of its `total` evaluations."""
        self._totals[cell.benchmark] = total
        self._bar.total = sum(self._totals.get(cell.benchmark, 0) for cell in self._todo)
        self._bar.update(done - self._done.get(cell, 0))
        self._done[cell] = done

    def wait(self) -> None:
        """Nothing has happened; the clock goes on."""
        self._bar.update(0)

    def ended(self) -> None:
        """A cell has come to its end, whatever that is."""
        self._ended += 1
        self._show()

    def close(self) -> None:
        """Ends the bar's line."""
        self._bar.close()

    def _show(self) -> None:
        self._bar.set_postfix_str(f"{self._ended}/{self._cells} cells")


def say(text: str) -> None:
    """A line on the error output, above the bar; in a worker, on that of the process which has the bar."""
    _say(text)


def say_by(how: Callable[[str], Any]) -> None:
    """Has this process say its lines so from now on."""
    global _say
    _say = how


def _on_the_terminal(text: str) -> None:
    tqdm.write(f"ftml-bench: {text}", file=sys.stderr)


_say: Callable[[str], Any] = _on_the_terminal
