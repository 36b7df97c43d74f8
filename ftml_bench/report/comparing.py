"""Two leaderboards' folders against each other, row by row: what got better or worse beyond noise. Plain Python."""

from __future__ import annotations

import itertools
import math
import random
import statistics
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from ftml_bench.errors import UsageError
from ftml_bench.report.contents import Contents, compute
from ftml_bench.report.remarks import RUN_WITH
from ftml_bench.report.statistics import BenchmarkResult, RowResult
from ftml_bench.report.tables import NONE, Table, compared_quantities

LEVEL = 0.05  # of the test, and of what its interval leaves out
EXACT = 16  # differences, up to which all sign flips are counted; of more, as many are drawn
RESAMPLES = 10_000


@dataclass(frozen=True)
class Change:
    """New minus old in a quantity of which less is better, paired by seed.

    :param mean: of the differences.
    :param low, high: bootstrap interval of 95 % of the mean; equal to it for one seed.
    :param p: two-sided p of the sign-flip test: how often flipping the signs of the differences at random gives a mean
        as far from zero as this one.
    :param seeds: pairs.
    """

    mean: float
    low: float
    high: float
    p: float
    seeds: int

    @property
    def verdict(self) -> str:
        """ "better" or "worse" if the test and the interval both say so; "no change" if all differences are 0; else
        "not decided"."""
        if self.low == self.high == 0:
            return "no change"
        if self.p > LEVEL or self.low <= 0 <= self.high:
            return "not decided"
        return "better" if self.mean < 0 else "worse"


def change(differences: list[float]) -> Change:
    """What differences, one a seed, say.

    >>> change([-1.0, -2.0, -3.0]).p  # of 8 ways to flip signs, 2 are as far from zero
    0.25
    """
    n = len(differences)
    mean = statistics.fmean(differences)
    draws = random.Random(0)  # the same files give the same interval
    flips: Iterable[tuple[int, ...]]
    if n <= EXACT:
        flips = itertools.product((1, -1), repeat=n)
    else:
        flips = (tuple(draws.choice((1, -1)) for _ in range(n)) for _ in range(2**EXACT))
    reach = abs(math.fsum(differences)) * (1 - 1e-12)  # sums of other orders round otherwise
    far = [abs(math.fsum(map(float.__mul__, differences, map(float, signs)))) >= reach for signs in flips]
    p = statistics.fmean(far) if n <= EXACT else (sum(far) + 1) / (len(far) + 1)
    means = sorted(statistics.fmean(draws.choices(differences, k=n)) for _ in range(RESAMPLES))
    cut = int(RESAMPLES * LEVEL / 2)
    return Change(mean, means[cut], means[-1 - cut], p, n)


def least_p(seeds: int) -> float:
    """The smallest p that so many pairs can have: all differences of one sign."""
    return 2 / 2**seeds


def tables(old: Path, new: Path) -> list[Table]:
    """A table of every benchmark that both have, and one of what they were run with.

    :raises UsageError: one is no leaderboard's folder, or the two share no benchmark that is judged alike.
    """
    before, after = compute(old), compute(new)
    found, apart = [], []
    for result in after.results:
        other = next((one for one in before.results if one.spec.name == result.spec.name), None)
        why = "is not in both" if other is None else _why_not(other, result)
        if other is None or why:
            apart.append(f"{result.spec.name} {why}: not compared")
        else:
            found.append(_of_benchmark(other, result))
    if not found:
        raise UsageError(f"{old} and {new} have no benchmark to compare: {'; '.join(apart) or 'no results'}")
    return [*found, _of_versions(before, after, apart)]


def _why_not(old: BenchmarkResult, new: BenchmarkResult) -> str:
    for what, before, after in (
        ("stream", (old.spec.benchmark, old.spec.settings), (new.spec.benchmark, new.spec.settings)),
        ("threshold", old.threshold, new.threshold),
        ("checkpoints", old.checkpoints, new.checkpoints),
        ("metric", old.measure, new.measure),
    ):
        if before != after:
            return f"has another {what}"
    return ""


def _of_benchmark(old: BenchmarkResult, new: BenchmarkResult) -> Table:
    rows, most = [], 0
    for row in new.rows:
        other = next((one for one in old.rows if one.row.name == row.row.name), None)
        if other is None:
            rows.append([row.row.name, "only in NEW", *[NONE] * 5])
            continue
        for title, decimals, value in compared_quantities(new).values():
            seeds = [seed for seed in row.cells if seed in other.cells]
            if not seeds:
                rows.append([row.row.name, title, *[NONE] * 4, "no seed that both have finished"])
                continue
            found = change([value(row.cells[seed]) - value(other.cells[seed]) for seed in seeds])
            most = max(most, found.seeds)
            said = f"{found.mean:+.{decimals}f}", f"{found.low:+.{decimals}f} to {found.high:+.{decimals}f}"
            verdict = found.verdict + (" (other settings)" if _settings(old, other) != _settings(new, row) else "")
            rows.append([row.row.name, title, *said, f"{found.p:.3f}", str(found.seeds), verdict])
    names = {row.row.name for row in new.rows}
    rows += [[row.row.name, "only in OLD", *[NONE] * 5] for row in old.rows if row.row.name not in names]
    columns = ["strategy", "quantity", "NEW - OLD", "95 % interval", "p", "seeds", "verdict"]
    notes = [
        "Over the second half of the rounds, seed by seed; less is better. p: two-sided, exact sign flips over seeds. "
        f"Better or worse: p of at most {LEVEL:g}, and the interval (bootstrap over seeds) leaves out 0."
    ]
    if most and least_p(most) > LEVEL:
        notes.append(
            f"With {most} seeds p is at least {least_p(most):g}: nothing can be decided at {LEVEL:g}. It takes "
            f"{_enough()} seeds, all of one sign."
        )
    return Table(f"{new.spec.name}: NEW against OLD", columns, rows, notes)


def _enough() -> int:
    return next(n for n in itertools.count(1) if least_p(n) <= LEVEL)


def _settings(result: BenchmarkResult, row: RowResult) -> tuple[object, ...]:
    """Whatever a row's numbers hang on beside versions."""
    spec = result.spec
    return row.row, spec.steps, spec.arrivals, spec.model


def _of_versions(old: Contents, new: Contents, apart: list[str]) -> Table:
    rows = []
    kinds = {**RUN_WITH, "commit": lambda record: record.get("commit"), "machine": lambda record: record.get("machine")}
    for what, of in kinds.items():
        before, after = (
            ", ".join(sorted({str(of(run.record)) for _, run in side.runs if run.ended})) for side in (old, new)
        )
        rows.append([what, before, after, "the same" if before == after else "other"])
    curves = {cell: run.curve for cell, run in old.runs if run.ended}
    ended = [(cell, run) for cell, run in new.runs if run.ended]
    equal = sum(curves.get(cell) == run.curve for cell, run in ended)
    notes = [*apart, f"{equal} of {len(ended)} cells of NEW have the curve of OLD, bit for bit."]
    return Table("Run with", ["", "OLD", "NEW", ""], rows, notes)
