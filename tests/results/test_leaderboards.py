"""Every number of every committed `leaderboard.md`, recomputed from the curves by `recomputed`."""

from __future__ import annotations

import math
import re
import statistics

import numpy as np
import pytest

from tests.results.recomputed import (
    RESULTS,
    board,
    counts,
    differences,
    frame,
    holm,
    of_seeds,
    part,
    parts,
    protocol,
    quantity,
    rows,
    sign_flips,
    standard_error,
    values,
)

BOARDS = sorted(
    str(path.parent.relative_to(RESULTS))
    for path in RESULTS.rglob("leaderboard.yaml")
    if "trials" not in path.parts  # of which no text says a number but REPRODUCIBILITY.md's tables of choices
)
THIRDS = ("third 1", "third 2", "third 3")
MEASURES = {
    "regret": "Regret",
    "loss of the round": "Loss_Of_Round",
    "called the only class": "Called_The_Only_Class",
    "regret over shots": "Regret_Over_Shots",
    "current task metric": "Current_Task_Metric",
    "long term metric": "Long_Term_Metric",
    "online performance": "Online_Performance",
}
INTERVAL = re.compile(r"([+-]?[\d.]+)(?: \(([+-]?[\d.]+) to ([+-]?[\d.]+)\)( =)?)?")


def tables(name):
    """(benchmark, heading after it, rows by column) of a leaderboard.md, without bold and no-break spaces."""
    text = (RESULTS / name / "leaderboard.md").read_text(encoding="utf-8").replace("\u00a0", " ")
    for section in text.split("\n### ")[1:]:
        benchmark, heading = section.splitlines()[0].split(": ", 1)
        lines = [line.replace("**", "") for line in section.splitlines() if line.startswith("|")]
        columns, _, *cells = [[cell.strip().strip("*") for cell in line.strip("|").split("|")] for line in lines]
        yield f"{name}/{benchmark}", heading, [dict(zip(columns, row, strict=True)) for row in cells]


def plus_minus(numbers, decimals, sign=""):
    error = f" ± {standard_error(numbers):.{decimals}f}" if len(numbers) > 1 else ""
    return f"{statistics.fmean(numbers):{sign}.{decimals}f}{error}"


def named(column):
    """(quantity, part, decimals) of a column of the tables of results and differences."""
    if column in ("datapoints to γ", "reaches and stays"):
        return {"datapoints to γ": "first", "reaches and stays": "stays"}[column], "half 2", 1
    if column.startswith("average "):
        return f"average {MEASURES[column.removeprefix('average ')]}", "all", 3
    kind = column.split(" ", 1)[1]  # "error at 100", "loss area"
    return kind, "all" if kind == "area" else "half 2", 3


def share(benchmark, row, name, where):
    some = [one for rounds in values(benchmark, row, name, where).values() for one in rounds]
    return f"{100 * sum(some) / len(some):.0f} %"


def thirds(benchmark, row, name, decimals):
    return " → ".join(f"{statistics.fmean(of_seeds(benchmark, row, name, third)):.{decimals}f}" for third in THIRDS)


def check_results(benchmark, row, column):
    if column == "censored":
        return share(benchmark, row, "censored", "half 2")
    name, where, decimals = named(column)
    text = plus_minus(of_seeds(benchmark, row, name, where), decimals)
    if name == "first":
        return f"{plus_minus(of_seeds(benchmark, row, name, 'half 1'), decimals)} → {text}"
    return text


def median(benchmark, row):
    """Kaplan-Meier with nothing lost before N: where at most half of the rounds are left."""
    rounds = [r for run in rows(benchmark)[row].values() for r in (run[i] for i in part("third 3", len(run)))]
    n = protocol(benchmark)["datapoints_per_round"]
    for size in sorted({r.first() for r in rounds}):
        if 2 * sum(r.first() > size or r.censored() for r in rounds) <= len(rounds):
            return str(size)
    return f"> {n}"


def check_thirds(benchmark, row, column):
    if column in ("datapoints to γ", "reaches and stays"):
        return thirds(benchmark, row, named(column)[0], 1)
    if column == "median":
        return median(benchmark, row)
    if column == "reached":
        return f"{100 - int(share(benchmark, row, 'censored', 'third 3')[:-2])} %"
    if column == "at the floor":
        return share(benchmark, row, "floor", "third 3")
    own = of_seeds(benchmark, row, "fall", "all")
    if column == "fall":
        return plus_minus(own, 1, "+")
    control = of_seeds(benchmark, "FromScratch", "fall", "all")
    return "–" if row == "FromScratch" else plus_minus([a - b for a, b in zip(own, control, strict=True)], 1, "+")


def check_costs(benchmark, row, column):
    name, inner = parts(benchmark)
    costs = frame(name, "costs")
    costs = costs[(costs.benchmark == inner) & (costs.row == row)]
    if column == "seeds":
        return str(len(costs))
    if column == "batch norm":
        return protocol_of(benchmark, row)["batch_norm"]
    mean = costs[column.replace(" ", "_")].dropna().mean()
    if math.isnan(mean):
        return "–"
    if column == "seconds" or mean < 999.5:
        return f"{mean:.1f}" if column == "seconds" else f"{mean:.0f}"
    return f"{mean / 1e3:.1f}k" if mean < 999_950 else f"{mean / 1e6:.1f}M"


def protocol_of(benchmark, row):
    name, inner = parts(benchmark)
    run = next(run for cell, run in board(name).boards[0].runs if (cell.benchmark, cell.row) == (inner, row))
    return run.record["protocol"]


def check_measures(benchmark, row, column):
    return " → ".join(plus_minus(of_seeds(benchmark, row, MEASURES[column], half), 3) for half in ("half 1", "half 2"))


def resampled(first, other):
    """Between what the 2.5 % and the 97.5 % lie of means of seeds drawn anew, and of each its rounds: other draws move
    such a percentage by up to 1.5."""
    draws = np.random.default_rng(11)
    d = np.array(list(first.values())) - np.array(list(other.values()))
    seeds = draws.integers(len(d), size=(3000, len(d), 1))
    means = d[seeds, draws.integers(d.shape[1], size=(3000, *d.shape))].mean(axis=(1, 2))
    return np.percentile(means, [[1, 4], [96, 99]])


def check_difference(benchmark, first, row, column, cell):
    name, where, decimals = named(column)
    some = differences(benchmark, first, row, name, where)
    mean, *rest = INTERVAL.fullmatch(cell).groups()
    assert float(mean) == pytest.approx(statistics.fmean(some), abs=0.5000001 * 10**-decimals)
    assert (rest[0] is None) == (len(some) == 1)
    if len(some) == 1:
        return
    low, high, level = rest
    bounds = resampled(values(benchmark, first, name, where), values(benchmark, row, name, where))
    for end, (least, most) in zip((low, high), bounds, strict=True):
        assert least - 10**-decimals <= float(end) <= most + 10**-decimals
    scale = statistics.fmean(of_seeds(benchmark, row, name, where))
    assert bool(level) == (max(-float(low), float(high)) <= 0.05 * scale)


def check_certainty(benchmark, first, name, where, found):
    others = [row["strategy"] for row in found]
    all_differences = [differences(benchmark, first, other, name, where) for other in others]
    ps = [sign_flips(some) for some in all_differences]
    for row, some, p, corrected in zip(found, all_differences, ps, holm(ps), strict=True):
        wins, ties, losses = counts(benchmark, first, row["strategy"], name, where)
        assert row["rounds"] == f"{wins} / {ties} / {losses}"
        share = 100 * (wins + ties / 2) / (wins + ties + losses)
        assert float(row["better"][:-2]) == pytest.approx(share, abs=0.50001)
        if len(some) == 1:  # which decides nothing
            assert len(row) == 3
            continue
        assert row["seeds ahead"] == f"{sum(d < 0 for d in some)} of {len(some)}"
        assert [row["p"], row["p (Holm)"]] == [f"{p:.3f}", f"{corrected:.3f}"]


@pytest.mark.parametrize("name", BOARDS)
def test_every_number_of_a_leaderboard(name):
    checked = 0
    for benchmark, heading, found in tables(name):
        first = found[0]["strategy"] if "minus" not in heading else heading.split(" minus ")[0]
        if heading.startswith("what can be said of "):
            check_certainty(
                benchmark, leader(name, benchmark), *named(heading[len("what can be said of ") :])[:2], found
            )
            checked += 6 * len(found)
            continue
        for row in found:
            label = row.pop("strategy").rstrip(" *")
            for column, cell in row.items():
                checked += 1
                if heading.endswith("minus the others"):
                    check_difference(benchmark, first, label, column, cell)
                elif heading == "datapoints to γ by thirds":
                    assert cell == check_thirds(benchmark, label, column), (heading, label, column)
                elif heading.endswith("by thirds"):
                    assert cell == thirds(benchmark, label, named(column)[0], 3), (heading, label, column)
                elif heading == "what it took":
                    assert cell == check_costs(benchmark, label, column), (heading, label, column)
                elif heading == "round by round":
                    assert cell == check_measures(benchmark, label, column), (heading, label, column)
                else:
                    assert cell == check_results(benchmark, label, column), (heading, label, column)
    assert checked > 50


def leader(name, benchmark):
    """The first row of a benchmark's table of results."""
    return next(found[0]["strategy"] for one, _, found in tables(name) if one == benchmark)


def test_what_is_recomputed_by_hand():
    """A round of 10, 20 and 40 points with γ 80 %: errors 0.3, 0.1 and 0.25 reach it at 20 and do not stay."""
    from tests.results.recomputed import Round

    one = Round((10, 20, 40), (0.3, 0.1, 0.25), (False, True, False))
    assert (quantity("first")(one), quantity("stays")(one), quantity("at 20")(one)) == (20, 40, 0.1)
    assert quantity("area")(one) == pytest.approx((0.2 + 0.175) / 2)
    assert holm([0.01, 0.04, 0.03]) == [0.03, 0.06, 0.06]
    assert sign_flips([1.0, 2.0, 3.0]) == 0.25
