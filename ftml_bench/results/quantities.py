"""What rows are judged by: numbers of every round, of which less is better, and their means over parts of rounds."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from ftml_bench.results.cells import ALL, PARTS, CellSummary, mean, part
from ftml_bench.results.pairs import Pair, holm, paired, verdict
from ftml_bench.results.statistics import BenchmarkResult, RowResult, halves, measured

Number = Callable[[CellSummary], float | None]


@dataclass(frozen=True)
class Quantity:
    """A number of every round.

    :param name: in files and frames; `title`: in tables, printed with so many `decimals`.
    :param rounds: the values of a cell's rounds.
    :param judged: the part of the rounds (of `ftml_bench.results.cells.PARTS`) over which rows are compared.
    :param missed: in which rounds it is not known, as γ was not reached, and counted as a round's size; None: in none.
    """

    name: str
    title: str
    decimals: int
    rounds: Callable[[CellSummary], Sequence[float]]
    judged: str
    missed: Callable[[CellSummary], Sequence[bool]] | None = None

    def over(self, name: str) -> Number:
        """Its mean over a part of the rounds; of a part without rounds None."""
        return lambda cell: mean(self.rounds(cell), name)


@dataclass(frozen=True)
class Comparison:
    """The first row of a benchmark minus another: `p` is the pair's after Holm's correction over all other rows, and
    `verdict` the word for it. `pair`, `p` and `verdict` are None if there is no seed that both have finished."""

    first: RowResult
    other: RowResult
    quantity: Quantity
    pair: Pair | None
    p: float | None
    verdict: str | None


def quantities(result: BenchmarkResult) -> list[Quantity]:
    """Those of a benchmark: datapoints to γ, once and for good (if it has a γ), area (unless rounds arrive whole, for
    then it is the error at N), error at every checkpoint."""
    cells = [cell for row in result.rows for cell in row.cells.values()]
    whole = all(cell.first_arrival == result.checkpoints[-1] for cell in cells)
    efficiency = [
        _to_threshold("datapoints_to_threshold", "datapoints to γ", lambda c: c.to_threshold, lambda c: c.censored),
        _to_threshold("datapoints_to_stay", "reaches and stays", lambda c: c.to_stay, lambda c: c.leaves),
    ]
    area = Quantity("area", f"{result.measure} area", 3, lambda cell: cell.area, ALL)
    return [
        *([] if result.threshold is None else efficiency),
        *([] if whole else [area]),
        *(error_at(result, checkpoint) for checkpoint in result.checkpoints),
    ]


def _to_threshold(
    name: str,
    title: str,
    rounds: Callable[[CellSummary], Sequence[float]],
    missed: Callable[[CellSummary], Sequence[bool]],
) -> Quantity:
    return Quantity(name, title, 1, rounds, "second_half", missed)


def error_at(result: BenchmarkResult, checkpoint: int) -> Quantity:
    """The error or loss at a checkpoint."""
    name = f"{result.measure}_at_{checkpoint}"
    title = f"{result.measure} at {checkpoint}"
    return Quantity(name, title, 3, lambda cell: cell.errors[checkpoint], "second_half")


def sums(result: BenchmarkResult) -> list[Quantity]:
    """Of everything measured that is a sum over all rounds so far, such as the regret, what a round adds to it: the
    mean over all rounds is the last sum, divided by their number. None of what a cell lacks for a round."""
    cells = [cell for row in result.rows for cell in row.cells.values()]
    return [
        Quantity(f"average_{name.lower()}", f"average {curve.title}", 3, partial(_added, name), ALL)
        for name, curve in measured(result).items()
        if curve.so_far == "sum" and all(t in cell.measures.get(name, {}) for cell in cells for t in cell.rounds)
    ]


def _added(measure: str, cell: CellSummary) -> list[float]:
    so_far = [0.0, *(cell.measures[measure][t] for t in cell.rounds)]
    return [after - before for before, after in itertools.pairwise(so_far)]


def shown(result: BenchmarkResult) -> list[Quantity]:
    """What rows are judged by. Sums come first where there is no γ: they are what was asked for."""
    if result.threshold is None:
        return [*sums(result), *quantities(result)]
    return [*quantities(result), *sums(result)]


def compared(result: BenchmarkResult) -> list[Quantity]:
    """In which rows are compared: where there is a γ, the checkpoints between the first and the last are left out."""
    kept = set(result.checkpoints if result.threshold is None else (result.checkpoints[0], result.checkpoints[-1]))
    hidden = {error_at(result, checkpoint).name for checkpoint in result.checkpoints if checkpoint not in kept}
    return [quantity for quantity in shown(result) if quantity.name not in hidden]


def compare(first: RowResult, other: RowResult, quantity: Quantity) -> Pair | None:
    """The first row minus the other over the seeds that both have finished; None if there is none.

    Without an interval where all rounds of both are missed: how far they are apart cannot be seen.
    """
    seeds = [seed for seed in first.cells if seed in other.cells]
    if not seeds:
        return None
    cells = [[row.cells[seed] for seed in seeds] for row in (first, other)]
    pair = paired(*([_judged(quantity.rounds(cell), quantity) for cell in of_row] for of_row in cells))
    missed = quantity.missed
    if missed and all(all(_judged(missed(cell), quantity)) for of_row in cells for cell in of_row):
        return replace(pair, low=None, high=None)
    return pair


def _judged(rounds: Sequence[Any], quantity: Quantity) -> Sequence[Any]:
    return rounds[part(quantity.judged, len(rounds))]


def comparisons(result: BenchmarkResult, to: RowResult, quantity: Quantity) -> list[Comparison]:
    """The row `to` minus every other, corrected over all of them."""
    others = [row for row in result.rows if row is not to]
    pairs = [compare(to, other, quantity) for other in others]
    return [Comparison(to, other, quantity, *judged) for other, judged in zip(others, judge(pairs), strict=True)]


def judge(pairs: Sequence[Pair | None]) -> list[tuple[Pair | None, float | None, str | None]]:
    """The pairs of a family, each with its p after Holm's correction and the word for it; None stays None."""
    known = [pair for pair in pairs if pair is not None]
    corrected = iter(holm([pair.p for pair in known]))
    return [(None, None, None) if pair is None else (pair, p := next(corrected), verdict(pair, p)) for pair in pairs]


def numbers(result: BenchmarkResult) -> dict[str, Number]:
    """Every number of a cell by its name in `leaderboard.csv` and `seeds.csv`."""
    found: dict[str, Number] = {
        f"{quantity.name}_{name}": quantity.over(name) for quantity in shown(result) for name in PARTS
    }
    if result.threshold is not None:
        shares: dict[str, Callable[[CellSummary], list[bool]]] = {
            "censored_share": lambda cell: cell.censored,
            "leaves_share": lambda cell: cell.leaves,
            "at_first_arrival_share": lambda cell: cell.at_floor,
        }
        found |= {f"{name}_{where}": _mean(rounds, where) for name, rounds in shares.items() for where in PARTS}
        found["fall"] = CellSummary.fall
    for name, curve in measured(result).items():
        found |= {f"{name.lower()}_{half}": value for half, value in halves(name, curve).items()}
    found["steps"] = lambda cell: cell.steps
    found["gradient_evaluations"] = lambda cell: cell.gradient_evaluations
    if any(cell.points_kept is not None for row in result.rows for cell in row.cells.values()):
        found["points_kept"] = lambda cell: cell.points_kept
    found["seconds"] = lambda cell: cell.seconds
    return found


def _mean(rounds: Callable[[CellSummary], Sequence[float]], name: str) -> Number:
    return lambda cell: mean(rounds(cell), name)
