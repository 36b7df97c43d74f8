"""How fast the cells of a leaderboard go, and when the rest will be done: by each row's own speed so far."""

from __future__ import annotations

import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from ftml_bench.runs.definition import Cell

Row = tuple[str, str]  # of a benchmark


@dataclass
class _Work:
    """A cell that runs or has run.

    :param begun: when, of the clock; `ended`: likewise, None while it runs.
    :param before: evaluations that it had made by then.
    """

    begun: float
    before: int
    done: int
    total: int
    ended: float | None = None


class Pace:
    """What cells tell of themselves, and what follows from it.

    :param todo: the cells that are run.
    :param clock: seconds.
    """

    def __init__(self, todo: Iterable[Cell], clock: Callable[[], float] = time.monotonic) -> None:
        self._todo = list(todo)
        self._clock = clock
        self._work: dict[Cell, _Work] = {}
        self._over: set[Cell] = set()

    def evaluated(self, cell: Cell, done: int, total: int) -> None:
        """A cell has made `done` of its `total` evaluations; as many as before or fewer: it begins there."""
        work = self._work.get(cell)
        if work is None or work.ended is not None or done <= work.done:
            self._work[cell] = _Work(self._clock(), done, done, total)
        else:
            work.done = done

    def stopped(self, cell: Cell) -> None:
        """A cell does not run any more."""
        if cell in self._work:
            self._work[cell].ended = self._clock()

    def over(self, cell: Cell) -> None:
        """A cell will not run again, whatever it has come to."""
        self.stopped(cell)
        self._over.add(cell)

    @property
    def running(self) -> list[Cell]:
        """The cells that run, those that were begun first before the others."""
        return [cell for cell, work in self._work.items() if work.ended is None]

    @property
    def done(self) -> int:
        """Evaluations of all cells."""
        return sum(work.done for work in self._work.values())

    @property
    def total(self) -> float:
        """Evaluations that all cells will have made; of one that has not begun as many as of one alike."""
        return self.done + sum(self._remaining().values())

    @property
    def rate(self) -> float | None:
        """Evaluations a second of what runs now; None: not known yet."""
        speeds = self._seconds_each()
        known = [1 / speeds[_row(cell)] for cell in self.running if speeds.get(_row(cell))]
        return sum(known) if known else None

    @property
    def seconds_left(self) -> float | None:
        """Until all cells are done, with as many at a time as now; None: not known yet.

        A row that has not evaluated yet takes what rows of its benchmark take on average, or else what all take.
        """
        speeds = self._seconds_each()
        left = [_of_alike(speeds, cell) * number for cell, number in self._remaining().items()]
        if left and not speeds:
            return None
        return max(sum(left) / max(len(self.running), 1), *left, 0.0)

    def _remaining(self) -> dict[Cell, float]:
        """Evaluations that each cell has before it."""
        totals = {_row(cell): float(work.total) for cell, work in self._work.items()}
        left = {cell: float(work.total - work.done) for cell, work in self._work.items()}
        return {c: left.get(c, _of_alike(totals, c)) for c in self._todo if c not in self._over}

    def _seconds_each(self) -> dict[Row, float]:
        """Of one evaluation of each row that has made one: time of its cells by their evaluations."""
        now = self._clock()
        seconds: defaultdict[Row, float] = defaultdict(float)
        evaluations: defaultdict[Row, float] = defaultdict(float)
        for cell, work in self._work.items():
            seconds[_row(cell)] += (now if work.ended is None else work.ended) - work.begun
            evaluations[_row(cell)] += work.done - work.before
        return {row: seconds[row] / number for row, number in evaluations.items() if number}


def _of_alike(rows: dict[Row, float], cell: Cell) -> float:
    """What is known of the cell's row; else the mean of the benchmark's rows; else of all; else 0."""
    if _row(cell) in rows:
        return rows[_row(cell)]
    of_benchmark = [value for row, value in rows.items() if row[0] == cell.benchmark]
    return statistics.fmean(of_benchmark or rows.values() or [0.0])


def _row(cell: Cell) -> Row:
    return cell.benchmark, cell.row
