"""The numbers of the committed results, recomputed from the curves: none of the report's arithmetic, plain Python.

Everything starts from `load(...).curves()`, `.measures()` and what the records' protocols say.
"""

from __future__ import annotations

import itertools
import json
import math
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from ftml_bench.results import load

RESULTS = Path(__file__).parents[2] / "leaderboards/results"
SO_FAR = {"Regret", "Regret_Over_Shots", "Current_Task_Metric", "Long_Term_Metric", "Online_Performance"}
BY_ROUND = {"Loss_Of_Round", "Called_The_Only_Class"}


@dataclass(frozen=True)
class Round:
    """One round of one run: its evaluations in order, and what counts as having reached γ."""

    sizes: tuple[int, ...]
    errors: tuple[float, ...]  # 1 - accuracy, or the loss
    met: tuple[bool, ...] | None  # None: no γ

    def first(self) -> int:
        return next((n for n, met in zip(self.sizes, self.met, strict=True) if met), self.sizes[-1])

    def stays(self) -> int:
        """The first evaluation from which on all are at or beyond γ."""
        suffixes = [all(self.met[i:]) for i in range(len(self.met))]
        return next((n for n, good in zip(self.sizes, suffixes, strict=True) if good), self.sizes[-1])

    def censored(self) -> bool:
        return not any(self.met)

    def floor(self) -> bool:
        return self.met[0]

    def area(self) -> float:
        if len(self.sizes) == 1:
            return self.errors[0]
        logs = [math.log(n) for n in self.sizes]
        trapezoids = [(logs[i + 1] - logs[i]) * (self.errors[i] + self.errors[i + 1]) / 2 for i in range(len(logs) - 1)]
        return sum(trapezoids) / (logs[-1] - logs[0])

    def at(self, n: int) -> float:
        return self.errors[self.sizes.index(n)]


Quantity = Callable[[Round], float]


def quantity(name: str) -> Quantity:
    """By the name that a mark gives it: "first", "stays", "censored", "floor", "area", or "at 100"."""
    if name.startswith("at "):
        return lambda one: one.at(int(name[3:]))
    return {
        "first": Round.first, "stays": Round.stays, "censored": Round.censored, "floor": Round.floor, "area": Round.area
    }[name]  # fmt: skip


@cache
def board(name: str):
    """`load` of a committed leaderboard."""
    return load(RESULTS / name)


@cache
def frame(name: str, kind: str):
    """The "curves", "measures" or "costs" of a committed leaderboard."""
    return getattr(board(name), kind)()


def parts(benchmark: str) -> tuple[str, str]:
    """ "ablations/meta_steps/10 steps": the leaderboard "ablations/meta_steps", and its benchmark."""
    leaderboard, _, inner = benchmark.rpartition("/")
    return leaderboard, inner


@cache
def protocol(benchmark: str) -> dict:
    """What one record of a benchmark ("quick/digits") says of the protocol."""
    return json.loads(next((RESULTS / benchmark).glob("*/seed-*/record.json")).read_text())["protocol"]


@cache
def rows(benchmark: str) -> dict[str, dict[int, list[Round]]]:
    """Row -> seed -> rounds, of "leaderboard/benchmark"; comparators included."""
    name, inner = parts(benchmark)
    said = protocol(benchmark)
    curves = frame(name, "curves")
    curves = curves[(curves.benchmark == inner) & (curves["round"] == curves.evaluated_round)]
    evaluations: dict[tuple[str, int, int], list] = {}
    for one in curves.itertuples():
        evaluations.setdefault((one.row, one.seed, one.round), []).append(one)
    found: dict[str, dict[int, list[Round]]] = {}
    for (row, seed, _), some in sorted(evaluations.items(), key=lambda item: item[0][1:]):
        found.setdefault(row, {}).setdefault(seed, []).append(_round(some, said))
    return found


def _round(some: list, said: dict) -> Round:
    values = {"accuracy": [one.accuracy for one in some], "loss": [one.loss for one in some]}
    met = None
    if said["threshold"] is not None:
        metric, gamma = said["threshold"]
        met = tuple(value >= gamma if metric == "accuracy" else value < gamma for value in values[metric])
    errors = [1 - value for value in values["accuracy"]] if said["metric"] == "accuracy" else values["loss"]
    return Round(tuple(one.datapoints for one in some), tuple(errors), met)


def part(name: str, rounds: int) -> range:
    """Which rounds (from 0): "half 1", "half 2", "third 1" to "third 3", "all", or rounds from 1, as "41-56"."""
    if name == "all":
        return range(rounds)
    if "-" in name:
        first, last = map(int, name.split("-"))
        return range(first - 1, last)
    kind, number = name.split()
    parts, number = {"half": 2, "third": 3}[kind], int(number)
    return range(rounds * (number - 1) // parts, rounds * number // parts)


@cache
def values(benchmark: str, row: str, name: str, where: str) -> dict[int, list[float]]:
    """Of every seed the rounds' values in a part of the stream."""
    if name.startswith("average "):  # of a sum over all rounds so far, what each round adds to it
        sums = _curves(benchmark, row, name.removeprefix("average "))
        return {
            seed: [curve[t] - curve.get(t - 1, 0.0) for t in part(where, len(curve))] for seed, curve in sums.items()
        }
    of = quantity(name)
    return {
        seed: [float(of(rounds[i])) for i in part(where, len(rounds))] for seed, rounds in rows(benchmark)[row].items()
    }


@cache
def of_seeds(benchmark: str, row: str, name: str, where: str) -> list[float]:
    """A number a seed: the mean over rounds; "fall" and measures are what they are called."""
    if name == "fall":
        halves = [values(benchmark, row, "first", half) for half in ("half 1", "half 2")]
        return [statistics.fmean(a) - statistics.fmean(b) for a, b in zip(*(h.values() for h in halves), strict=True)]
    if name in SO_FAR | BY_ROUND:
        return _measured(benchmark, row, name, where)
    return [statistics.fmean(some) for some in values(benchmark, row, name, where).values()]


def _measured(benchmark: str, row: str, name: str, where: str) -> list[float]:
    """The mean of a measure over those of a part's rounds that have it; of what is over all so far the last."""
    found = []
    for seed, curve in _curves(benchmark, row, name).items():
        rounds = part(where, len(rows(benchmark)[row][seed]))
        known = [curve[t] for t in rounds if t in curve]
        found.append(known[-1] if name in SO_FAR else statistics.fmean(known))
    return found


def _curves(benchmark: str, row: str, name: str) -> dict[int, dict[int, float]]:
    """Seed -> round, from 0 -> value of a measure."""
    leaderboard, inner = parts(benchmark)
    measures = frame(leaderboard, "measures")
    found = {}
    for seed, some in measures[(measures.benchmark == inner) & (measures.row == row)].groupby("seed"):
        curves = {measure: dict(zip(of["round"] - 1, of.value, strict=True)) for measure, of in some.groupby("measure")}
        if name == "Regret" and name not in curves:  # against the comparator, whose one evaluation a round is its loss
            best = [one.errors[-1] for one in rows(benchmark)["FTML in hindsight"][seed]]
            paid = [curves["Loss_Of_Round"][t] - loss for t, loss in enumerate(best)]
            curves[name] = dict(enumerate(itertools.accumulate(paid)))
        found[seed] = curves[name]
    return found


def standard_error(numbers: list[float]) -> float:
    return math.sqrt(sum((x - sum(numbers) / len(numbers)) ** 2 for x in numbers) / (len(numbers) - 1) / len(numbers))


def differences(benchmark: str, first: str, other: str, name: str, where: str) -> list[float]:
    """Of every seed, the first row minus the other; zero where they differ by rounding alone."""
    pairs = zip(*(of_seeds(benchmark, row, name, where) for row in (first, other)), strict=True)
    return [0.0 if math.isclose(a, b, rel_tol=1e-9) else a - b for a, b in pairs]


def counts(benchmark: str, first: str, other: str, name: str, where: str) -> tuple[int, int, int]:
    """Rounds of all seeds in which the first row has less, as much, more."""
    a, b = (list(itertools.chain(*values(benchmark, row, name, where).values())) for row in (first, other))
    ties = [math.isclose(x, y, rel_tol=1e-9) for x, y in zip(a, b, strict=True)]
    wins = sum(x < y and not tie for x, y, tie in zip(a, b, ties, strict=True))
    return wins, sum(ties), len(a) - wins - sum(ties)


def sign_flips(numbers: list[float]) -> float:
    """The p of all ways to flip signs, counted one by one."""
    reach = abs(sum(numbers)) * (1 - 1e-9)
    flips = list(itertools.product((1, -1), repeat=len(numbers)))
    return sum(abs(sum(x * s for x, s in zip(numbers, signs, strict=True))) >= reach for signs in flips) / len(flips)


def holm(ps: list[float]) -> list[float]:
    """By its definition: the largest of (rows left) * p among all that are not larger."""
    ranks = {i: rank for rank, i in enumerate(sorted(range(len(ps)), key=lambda i: ps[i]))}
    return [min(1.0, max((len(ps) - ranks[j]) * ps[j] for j in ranks if ranks[j] <= ranks[i])) for i in range(len(ps))]
