"""Numbers in texts that follow from committed results, marked where they stand, and written anew from the curves.

    <!-- = mean(digits, "FTML", "first", "half 2", 0) -->39<!-- / -->      what is between follows from the expression
    <!-- table: late(digits, "first", 1), late(digits, "at 20", 3) -->     so do the cells of the table that follows

The row that a line of a table is of is its first cell, up to a comma or bracket. The least of a column, as printed, is
bold; of halves it is the second that counts, and is bold. `python -m tests.results.marks` says which numbers are not
what the curves make; with `--write` it puts them right.
"""

from __future__ import annotations

import re
import statistics
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from tests.results import recomputed
from tests.results.recomputed import board, counts, differences, of_seeds, rows, standard_error, values

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "REPRODUCIBILITY.md", *sorted((ROOT / "docs").glob("*.md"))]
INLINE = re.compile(r"(<!-- = (.*?) -->)(.*?)(<!-- / -->)", re.DOTALL)
TABLE = re.compile(r"(<!-- table: (.*?) -->\n\n(?:\|.*\n){2})((?:\|.*\n)+)")
WORDS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")


@dataclass(frozen=True)
class Column:
    """A column of a marked table: the text of a row, and the number by which rows are ranked (None: not ranked)."""

    text: Callable[[str], str]
    value: Callable[[str], str] | None


def mean(benchmark: str, row: str, name: str, where: str, decimals: int) -> str:
    return f"{statistics.fmean(of_seeds(benchmark, row, name, where)):.{decimals}f}"


def plus_minus(numbers: list[float], decimals: int) -> str:
    error = f"\u00a0±\u00a0{standard_error(numbers):.{decimals}f}" if len(numbers) > 1 else ""
    return f"{statistics.fmean(numbers):.{decimals}f}{error}"


def pm(benchmark: str, row: str, name: str, where: str, decimals: int) -> str:
    """ "39.3 ± 0.7"."""
    return plus_minus(of_seeds(benchmark, row, name, where), decimals)


def gap(benchmark: str, row: str, other: str, name: str, where: str, decimals: int) -> str:
    """By how much two rows differ, paired by seed: "6.8 ± 2.6", of whatever sign."""
    found = differences(benchmark, row, other, name, where)
    return plus_minus(found if statistics.fmean(found) > 0 else [-one for one in found], decimals)


def said(benchmark: str, row: str, other: str, name: str) -> str:
    """The word for two rows, as `.paired` has it: "ahead", "level" ..."""
    return _paired(benchmark, row, other, name).verdict


def interval(benchmark: str, row: str, other: str, name: str, decimals: int) -> str:
    """The 95 % interval of a difference, as `.paired` has it, turned so that its mean is above zero: "7.5 to 14.6"."""
    pair = _paired(benchmark, row, other, name)
    low, high = (pair.low, pair.high) if pair["mean"] > 0 else (-pair.high, -pair.low)
    return f"{low:.{decimals}f} to {high:.{decimals}f}".replace("-", "−")


def ahead(benchmark: str, row: str, other: str, name: str, where: str) -> str:
    """On how many seeds a row is ahead: "three"."""
    return WORDS[sum(one < 0 for one in differences(benchmark, row, other, name, where))]


def of_all(benchmark: str) -> str:
    """How many seeds there are: "three"."""
    return WORDS[len(rows(benchmark)["FTML"])]


def seed(benchmark: str, row: str, name: str, where: str, number: int, decimals: int) -> str:
    """A number of one seed."""
    return f"{of_seeds(benchmark, row, name, where)[number]:.{decimals}f}"


def percent(benchmark: str, row: str, name: str, where: str) -> str:
    some = [one for rounds in values(benchmark, row, name, where).values() for one in rounds]
    return f"{100 * statistics.fmean(some):.0f}"


def times(benchmark: str, row: str, name: str, where: str) -> str:
    """In how many rounds of all seeds: "three"."""
    return WORDS[int(sum(one for rounds in values(benchmark, row, name, where).values() for one in rounds))]


def leaving(benchmark: str, row: str, where: str) -> str:
    """Percent of the rounds that reach γ in which a later evaluation falls short of it."""
    rounds = [run[i] for run in rows(benchmark)[row].values() for i in recomputed.part(where, len(run))]
    reached = [one for one in rounds if not one.censored()]
    return f"{100 * sum(not all(one.met[one.met.index(True) :]) for one in reached) / len(reached):.0f}"


def less(benchmark: str, row: str, other: str, name: str, where: str) -> str:
    """In how many rounds of all seeds a row has less; `same` and `more` likewise."""
    return str(counts(benchmark, row, other, name, where)[0])


def same(benchmark: str, row: str, other: str, name: str, where: str) -> str:
    return str(counts(benchmark, row, other, name, where)[1])


def more(benchmark: str, row: str, other: str, name: str, where: str) -> str:
    return str(counts(benchmark, row, other, name, where)[2])


def beyond(benchmark: str, row: str, decimals: int) -> str:
    """By how much the fall of a row exceeds that of FromScratch."""
    return plus_minus(differences(benchmark, row, "FromScratch", "fall", "all"), decimals)


def p_beyond(benchmark: str, row: str) -> str:
    """The p of that excess, of all ways to flip the seeds' signs: "0.002"."""
    return f"{recomputed.sign_flips(differences(benchmark, row, 'FromScratch', 'fall', 'all')):.3f}"


def off(benchmark: str, row: str, other: str, name: str, where: str) -> str:
    """By how many percent a row has less than another."""
    a, b = (statistics.fmean(of_seeds(benchmark, one, name, where)) for one in (row, other))
    return f"{100 * (1 - a / b):.0f}"


def late(benchmark: str, name: str, decimals: int, where: str = "half 2", *, ranked: bool = True) -> Column:
    value = partial(mean, benchmark, name=name, where=where, decimals=decimals)
    return Column(lambda row: pm(benchmark, row, name, where, decimals), value if ranked else None)


def area(benchmark: str) -> Column:
    return late(benchmark, "area", 3, "all")


def halves(benchmark: str, name: str, decimals: int, *, ranked: bool = True) -> Column:
    def text(row: str) -> str:
        return " → ".join(pm(benchmark, row, name, half, decimals) for half in ("half 1", "half 2"))

    return Column(text, late(benchmark, name, decimals).value if ranked else None)


NAMES = {
    "digits": "quick/digits",
    "sinusoids": "quick/sinusoids",
    "mnist": "rainbow_mnist_small/rainbow_mnist",
    "whole": "rainbow_mnist_cpu/rainbow_mnist",
    "quarter": "rainbow_mnist_cpu_quarter/rainbow_mnist",
    "fourfold": "rainbow_mnist_cpu_fourfold/rainbow_mnist",
    "rates": "trials/rainbow_mnist_cpu_fourfold_rates/rainbow_mnist",
    "authors": "rainbow_mnist_authors/rainbow_mnist",
    "cifar": "cifar100_small/cifar100",
    "cifar_cpu": "cifar100_cpu/cifar100",
    "fifth": "cifar100_cpu_fifth/cifar100",
    "many_steps": "trials/cifar100_cpu_overfitting/120 steps",
    "few_steps": "trials/cifar100_cpu_overfitting/24 steps",
    "pose": "pose_small/pose",
    "pose_cpu": "pose_cpu/pose",
    "pose_mujoco": "pose_cpu_mujoco/pose",
    "colored": "colored/digits",
    "colored_mnist": "colored_mnist/mnist",
    "curvature": "regret/curvature",
    "independent": "regret/independent",
    "waves": "regret/sinusoids",
    "avalanche": "avalanche/digits",
}
FUNCTIONS = {
    **{one.__name__: one for one in (mean, pm, gap, said, interval, ahead, of_all, seed, times, percent)},
    **{one.__name__: one for one in (leaving, beyond, p_beyond, off, less, same, more, late, area, halves)},
}


def _paired(benchmark: str, row: str, other: str, name: str):
    leaderboard, inner = recomputed.parts(benchmark)
    frame = board(leaderboard).paired(to=row)
    frame = frame[(frame.benchmark == inner) & (frame.minus == other)]
    start = {"first": "datapoints_to_threshold_", "stays": "datapoints_to_stay_"}.get(
        name, f"{name.replace(' ', '_')}_"
    )
    return frame[frame.quantity.str.contains(start)].iloc[0]


def written(text: str) -> str:
    """A page with every marked number as the curves make it."""
    text = INLINE.sub(lambda mark: mark[1] + _value(mark[2]) + mark[4], text)
    return TABLE.sub(lambda mark: mark[1] + _lines(_value(f"({mark[2]},)"), mark[3]), text)


def unmarked(text: str) -> str:
    """A page without what is marked."""
    return TABLE.sub("", INLINE.sub("", text))


def _value(expression: str):
    return eval(expression, {"__builtins__": {}}, {**NAMES, **FUNCTIONS})


def _lines(columns: tuple[Column, ...], text: str) -> str:
    labels = [line.split("|")[1].strip() for line in text.splitlines()]
    names = [re.split(r"[,(]", label)[0].strip() for label in labels]
    best = [column.value and min((column.value(name) for name in names), key=float, default=None) for column in columns]
    lines = []
    for label, name in zip(labels, names, strict=True):
        cells = [
            _bold(column.text(name)) if column.value and column.value(name) == least else column.text(name)
            for column, least in zip(columns, best, strict=True)
        ]
        lines.append(f"| {' | '.join([label, *cells])} |\n")
    return "".join(lines)


def _bold(text: str) -> str:
    """Of halves the second, by which they are ranked."""
    before, arrow, last = text.rpartition(" → ")
    return f"{before}{arrow}**{last}**"


def main() -> int:
    wrong = False
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        if (right := written(text)) == text:
            continue
        if "--write" in sys.argv:
            page.write_text(right, encoding="utf-8")
            continue
        wrong = True
        for before, after in zip(text.splitlines(), right.splitlines(), strict=True):
            if before != after:
                print(f"{page.relative_to(ROOT)}:\n- {before}\n+ {after}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
