"""Results as pandas frames: `load` one folder or several, then ask. pandas is imported when a frame is made."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ftml_bench.errors import UsageError, unknown
from ftml_bench.results.cells import HALVES, PARTS, THIRDS, CellSummary, part
from ftml_bench.results.kaplan_meier import survival
from ftml_bench.results.quantities import compared, comparisons, numbers
from ftml_bench.results.statistics import BenchmarkResult, RowResult, results
from ftml_bench.runs.definition import Cell
from ftml_bench.runs.packed import unpacked
from ftml_bench.runs.reading import read_runs
from ftml_bench.runs.record import Run

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

KEYS = ("leaderboard", "benchmark", "row")


@dataclass(frozen=True)
class Board:
    """A leaderboard's folder as read: the runs that have a record, and the numbers of every benchmark that has any."""

    name: str
    runs: list[tuple[Cell, Run]]
    results: list[BenchmarkResult]


@dataclass(frozen=True)
class Results:
    """What leaderboards' folders hold. Make one with `load`.

    Every frame begins with the columns `leaderboard` (its name; of two of one name the folder as given), `benchmark`
    and `row` (the row's name in the definition, such as "FTML"). Rounds and seeds are numbered as everywhere: rounds
    from 1. Rows that are comparators are in `curves`, `measures` and `costs` alone. Seeds that have not finished are
    in none but `curves` and `measures` (those that diverged).
    """

    boards: list[Board]

    def curves(self) -> pd.DataFrame:
        """Every evaluation of every run that has ended, as `curve.csv` has it.

        Columns: seed; round, that was being learned; evaluated_round, whose held-out data were predicted; datapoints of
        `round` that had arrived; loss; accuracy in [0, 1], NaN where targets are no classes; steps and
        gradient_evaluations since the start of the run.
        """
        columns = ["round", "evaluated_round", "datapoints", "loss", "accuracy", "steps", "gradient_evaluations"]
        return _frame(
            [*KEYS, "seed", *columns],
            (
                [
                    *(*_keys(board, cell), cell.seed, row.round + 1, row.evaluated_round + 1, row.datapoints),
                    *(row.loss, _nan(row.accuracy), row.steps, row.gradient_evaluations),
                ]
                for board in self.boards
                for cell, run in board.runs
                if run.ended
                for row in run.curve
            ),
        )

    def efficiency(self) -> pd.DataFrame:
        """A line a round of every finished seed: how soon it was learned.

        Columns: seed; round; half (1, 2) and third (1, 2, 3) of the stream; datapoints to γ, a round that does not get
        there counts as N; reached, whether it does; datapoints_to_stay, at the first evaluation at or beyond γ after
        which no later one of the round falls short of it, and stays, likewise; first_arrival, the floor: no round can
        reach γ with less; area, the mean error (or loss) over the logarithm of datapoints. Without a γ the columns of
        it are missing values.
        """
        columns = ["seed", "round", "half", "third", "datapoints", "reached", "datapoints_to_stay", "stays"]
        frame = _frame(
            [*KEYS, *columns, "first_arrival", "area"],
            (
                [*keys, seed, *line]
                for keys, _, row in self._rows()
                for seed, cell in row.cells.items()
                for line in _rounds(cell)
            ),
        )
        types = {"datapoints": "Int64", "datapoints_to_stay": "Int64", "reached": "boolean", "stays": "boolean"}
        return frame.astype(types)

    def seeds(self) -> pd.DataFrame:
        """A line a finished seed and quantity, as in `seeds.csv`: seed, quantity, value.

        Quantities: `datapoints_to_threshold`, `datapoints_to_stay`, `area`, `error_at_N` (or `loss_at_N`) for every
        checkpoint, `censored_share`, `leaves_share` (rounds that end short of γ), `at_first_arrival_share`,
        `average_regret` and the like (of sums over rounds), each followed by a part of the rounds (`_first_half`,
        `_second_half`, `_first_third`, `_middle_third`, `_last_third`, `_all_rounds`); `fall`; what else was measured,
        by halves; `steps`, `gradient_evaluations`, `points_kept`, `seconds`.
        """
        return _frame(
            [*KEYS, "seed", "quantity", "value"],
            (
                [*keys, seed, quantity, number]
                for keys, result, row in self._rows()
                for seed, cell in row.cells.items()
                for quantity, value in numbers(result).items()
                if (number := value(cell)) is not None
            ),
        )

    def measures(self) -> pd.DataFrame:
        """What was recorded beside loss and accuracy, as `measures.csv` has it: seed, round, measure, value."""
        return _frame(
            [*KEYS, "seed", "round", "measure", "value"],
            (
                [*_keys(board, cell), cell.seed, number + 1, measure, value]
                for board in self.boards
                for cell, run in board.runs
                if run.ended
                for measure, values in run.measures.items()
                for number, value in values.items()
            ),
        )

    def summary(self) -> pd.DataFrame:
        """A line a row and quantity, over its finished seeds: quantity (as in `seeds`), mean, standard_error (NaN for
        one seed), seeds."""
        estimates = (
            ([*keys, quantity], row.over_seeds(value))
            for keys, result, row in self._rows()
            for quantity, value in numbers(result).items()
        )
        return _frame(
            [*KEYS, "quantity", "mean", "standard_error", "seeds"],
            ([*line, _nan(one.mean), _nan(one.standard_error), one.seeds] for line, one in estimates if one.seeds),
        )

    def survival(self) -> pd.DataFrame:
        """Kaplan-Meier curves of datapoints to γ, of the rounds of all seeds together.

        Columns: part of the rounds; datapoints; open, the share of rounds that have not reached γ after so many; low
        and high of its 95 % band, which takes rounds as independent. Every curve begins with 1 at 0 datapoints.
        """
        return _frame([*KEYS, "part", "datapoints", "open", "low", "high"], self._survival())

    def paired(self, to: str) -> pd.DataFrame:
        """The row `to` minus every other row of its benchmark, paired by seed and round; less is better.

        Columns: minus, the other row; quantity (with the part of the rounds over which it is judged); mean,
        standard_error, low, high (the 95 % interval), p, p_holm (corrected for the other rows), improvement
        (probability of improvement), wins, ties, losses (in rounds), leads (in seeds), seeds, verdict: see
        `ftml_bench.results.pairs`.

        :raises UsageError: no benchmark has a row of that name.
        """
        names = sorted({row.row.name for _, _, row in self._rows()})
        if to not in names:
            raise unknown("row", to, names)
        columns = ["mean", "standard_error", "low", "high", "p", "p_holm", "improvement", "wins", "ties", "losses"]
        return _frame([*KEYS, "minus", "quantity", *columns, "leads", "seeds", "verdict"], self._paired(to))

    def costs(self) -> pd.DataFrame:
        """A line a run that has finished, comparators included: seed, steps, gradient_evaluations, points_kept (the
        most that training could draw from at a time, where that is known), seconds, device, engine."""
        return _frame(
            [*KEYS, "seed", "steps", "gradient_evaluations", "points_kept", "seconds", "device", "engine"],
            (
                [
                    *(*_keys(board, cell), cell.seed, run.curve[-1].steps, run.curve[-1].gradient_evaluations),
                    *(run.record.get("cost", {}).get("points_kept"), run.seconds),
                    *(run.record.get("device"), run.record.get("engine")),
                ]
                for board in self.boards
                for cell, run in board.runs
                if run.status == "finished" and run.curve
            ),
        )

    def plot(self) -> Figure:
        """Two panels a benchmark: the share of rounds of the last third that have not reached γ, over datapoints
        (left out without a γ), and the error over datapoints, mean over the rounds of the last third and all seeds.

        A `matplotlib.figure.Figure`: `plot().savefig("results.png")`.
        """
        from ftml_bench.results.plotting import draw

        results = {(board.name, result.spec.name): result for board in self.boards for result in board.results}
        return draw(self.curves(), self.survival(), results)

    def _rows(self) -> Iterator[tuple[list[str], BenchmarkResult, RowResult]]:
        for board in self.boards:
            for result in board.results:
                for row in result.rows:
                    yield [board.name, result.spec.name, row.row.name], result, row

    def _survival(self) -> Iterator[list[Any]]:
        for keys, result, row in self._rows():
            for name in PARTS if result.threshold is not None else ():
                datapoints, censored = rounds_of(row, name)
                if not datapoints:
                    continue
                curve = survival(datapoints, censored)
                yield [*keys, name, 0, 1.0, math.nan, math.nan]
                for line in zip(curve.datapoints, curve.open, curve.low, curve.high, strict=True):
                    yield [*keys, name, *line]

    def _paired(self, to: str) -> Iterator[list[Any]]:
        for keys, result, row in self._rows():
            if row.row.name != to:
                continue
            for quantity in compared(result):
                for one in comparisons(result, row, quantity):
                    if (pair := one.pair) is None:
                        continue
                    line = [*keys, one.other.row.name, f"{quantity.name}_{quantity.judged}", pair.mean]
                    line += [_nan(number) for number in (pair.standard_error, pair.low, pair.high)]
                    line += [pair.p, one.p, pair.improvement, pair.wins, pair.ties, pair.losses]
                    yield [*line, pair.leads, pair.seeds, one.verdict]


def load(*folders: str | Path) -> Results:
    """Reads leaderboards' folders, or archives (.zip) that `ftml-bench submit` made.

    >>> load("runs/quick").efficiency()  # doctest: +SKIP

    :raises UsageError: none or one twice is given, there is no leaderboard in one, or a damaged or changed file.
    """
    if not folders:
        raise UsageError("nothing to load: expected the folder of a leaderboard, such as runs/quick")
    paths = [Path(folder) for folder in folders]
    if twice := [path for path, count in Counter(path.absolute() for path in paths).items() if count > 1]:
        raise UsageError(f"{twice[0]} is given twice")
    boards = []
    for path in paths:
        with unpacked(path) as root:
            definition, runs, _ = read_runs(root)
            boards.append(Board(definition.name, runs, results(definition, runs, root)))
    names = Counter(board.name for board in boards)
    return Results(
        [
            board if names[board.name] == 1 else replace(board, name=str(path))
            for board, path in zip(boards, paths, strict=True)
        ]
    )


def rounds_of(row: RowResult, name: str) -> tuple[list[int], list[bool]]:
    """Datapoints to γ, and whether censored, of the rounds of all seeds in a part of the stream."""
    some = [(cell, part(name, len(cell.rounds))) for cell in row.cells.values()]
    return (
        [n for cell, where in some for n in cell.to_threshold[where]],
        [censored for cell, where in some for censored in cell.censored[where]],
    )


def _rounds(cell: CellSummary) -> Iterator[list[Any]]:
    rounds = len(cell.rounds)
    for i, number in enumerate(cell.rounds):
        half, third = (
            next(k for k, name in enumerate(names, 1) if i in range(rounds)[part(name, rounds)])
            for names in (HALVES, THIRDS)
        )
        efficiency: list[Any] = [None] * 4
        if cell.to_threshold:
            efficiency = [cell.to_threshold[i], not cell.censored[i], cell.to_stay[i], not cell.leaves[i]]
        yield [number + 1, half, third, *efficiency, cell.first_arrival, cell.area[i]]


def _keys(board: Board, cell: Cell) -> list[str]:
    return [board.name, cell.benchmark, cell.row]


def _nan(value: float | None) -> float:
    return math.nan if value is None else value


def _frame(columns: list[str], lines: Iterable[list[Any]]) -> pd.DataFrame:
    import pandas as pd

    return pd.DataFrame(list(lines), columns=columns)
