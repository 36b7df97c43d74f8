"""The tables of one benchmark: results, differences and what can be said of them, thirds of the stream, costs."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ftml_bench.report.tables import NONE, Table, best, human, plus_minus
from ftml_bench.results.cells import THIRDS, CellSummary, part
from ftml_bench.results.frames import rounds_of
from ftml_bench.results.kaplan_meier import survival
from ftml_bench.results.pairs import LEVEL, Pair, least_p, seeds_needed
from ftml_bench.results.quantities import Comparison, Quantity, compared, comparisons, error_at, quantities, shown, sums
from ftml_bench.results.statistics import BenchmarkResult, RowResult, estimate


def tables(result: BenchmarkResult) -> list[Table]:
    """The results first; those of datapoints to γ only where there is a γ."""
    found = [_results(result)]
    if len(result.rows) > 1:
        found += _against_first(result)
    if result.threshold is not None:
        found.append(_efficiency(result))
    return [*found, _errors(result), _costs(result)]


def _results(result: BenchmarkResult) -> Table:
    """A row a strategy, over the second half of the rounds (area: over all)."""
    judged = {quantity.name: quantity for quantity in shown(result)}
    columns, cells, bold = ["strategy"], [[row.row.name + (" *" if row.notes else "") for row in result.rows]], set()

    def add(title: str, column: list[str]) -> None:
        columns.append(title)
        cells.append(column)

    for name, quantity in judged.items():
        values = [row.over_seeds(quantity.over(quantity.judged)) for row in result.rows]
        texts = [plus_minus(value, quantity.decimals) for value in values]
        if name == "datapoints_to_threshold":
            first = [plus_minus(row.over_seeds(quantity.over("first_half")), quantity.decimals) for row in result.rows]
            texts = [NONE if text == NONE else f"{one} → {text}" for one, text in zip(first, texts, strict=True)]
        add(quantity.title, texts)
        bold |= {(row, len(columns) - 1) for row in best([value.mean for value in values], quantity.decimals)}
        if name == "datapoints_to_stay":
            add("censored", [_percent(row, lambda cell: cell.censored, "second_half") for row in result.rows])
    notes = [f"{row.row.name}: {note}" for row in result.rows for note in row.notes]
    if result.threshold is not None:
        notes.append(
            f"γ = {result.gamma}. Datapoints to γ: mean over the first half of the rounds → mean over the second half"
            f"{_halves(result)}; rounds that do not reach γ count as {result.checkpoints[-1]} (restricted mean); "
            "censored: their share of the second half. Reaches and stays: datapoints at the first evaluation at or "
            "beyond γ after which no later one of the round falls short of it, second half."
        )
    second = "" if result.threshold is None else ", of two numbers the second"
    notes.append(
        f"{result.measure.capitalize()} on held-out data over the second half of the rounds"
        f"{_halves(result) if result.threshold is None else ''}. {_area(result, 'all rounds')}{_sums(result)}"
        f"{result.means.capitalize()}; bold: the least, as printed{second}."
    )
    rows = [list(row) for row in zip(*cells, strict=True)]
    return Table(f"{result.spec.name}: {result.spec.benchmark}", columns, rows, notes, frozenset(bold))


def _against_first(result: BenchmarkResult) -> list[Table]:
    """The first row minus the others in every quantity, and what can be said of it in the first."""
    first = result.rows[0]
    found = {quantity.name: comparisons(result, first, quantity) for quantity in compared(result)}
    return [_differences(result, found), _certainty(result, next(iter(found.values())))]


def _differences(result: BenchmarkResult, found: dict[str, list[Comparison]]) -> Table:
    name = result.rows[0].row.name
    columns = ["strategy", *(some[0].quantity.title for some in found.values())]
    rows, bold = [], set()
    for index, other in enumerate(result.rows[1:]):
        some = [column[index] for column in found.values()]
        rows.append([other.row.name, *(_difference(comparison) for comparison in some)])
        bold |= {(index, i) for i, one in enumerate(some, 1) if one.verdict in ("ahead", "behind")}
    note = (
        f"{name} minus the row, paired by seed and round, as in the table above: mean (95 % interval: bootstrap over "
        f"seeds and their rounds). Below zero {name} leads. Bold: it can be told that {name} is ahead or behind; =: "
        "level, the interval lies within 5 % of the row's mean; else they cannot be told apart with these seeds."
    )
    if _pairs(next(iter(found.values()))) == 1:
        note = (
            f"{name} minus the row, paired by round, as in the table above: mean, of one seed. Below zero {name} leads."
        )
    return Table(f"{result.spec.name}: {name} minus the others", columns, rows, [note], frozenset(bold))


def _difference(comparison: Comparison) -> str:
    pair, decimals = comparison.pair, comparison.quantity.decimals
    if pair is None:
        return NONE
    mark = " =" if comparison.verdict == "level" else ""
    return f"{signed(pair.mean, decimals)}{interval(pair, decimals)}{mark}"


def signed(value: float, decimals: int) -> str:
    """ "-6.8", "+0.2"; zero up to rounding is "0.0", of no sign."""
    return f"{value:+.{decimals}f}" if float(f"{value:.{decimals}f}") else f"{0:.{decimals}f}"


def interval(pair: Pair, decimals: int) -> str:
    """ " (-11.9 to -1.4)"; of one seed nothing."""
    if pair.low is None or pair.high is None:
        return ""
    return f" ({signed(pair.low, decimals)} to {signed(pair.high, decimals)})"


def _certainty(result: BenchmarkResult, found: list[Comparison]) -> Table:
    name, quantity = result.rows[0].row.name, found[0].quantity
    rows = []
    columns = ["strategy", "seeds ahead", "rounds", "better", "p", "p (Holm)", f"{name} is"]
    for comparison in found:
        pair = comparison.pair
        if pair is None or comparison.p is None or comparison.verdict is None:
            rows.append([comparison.other.row.name, *[NONE] * 6])
            continue
        rounds = f"{pair.wins} / {pair.ties} / {pair.losses}"
        better = f"{100 * pair.improvement:.0f} %"
        seeds = f"{pair.leads} of {pair.seeds}"
        name_, ps = comparison.other.row.name, [f"{pair.p:.3f}", f"{comparison.p:.3f}"]
        rows.append([name_, seeds, rounds, better, *ps, comparison.verdict])
    counted = (
        f"ounds in which {name} has less / the same / more. Better: probability of improvement, the share of rounds in "
        "which it has less, ties counted half."
    )
    notes = [f"Seeds and r{counted} p: two-sided, exact sign flips over seeds; Holm: corrected for all rows."]
    if _pairs(found) == 1:  # it has no p
        columns, *rows = ([line[0], *line[2:4]] for line in [columns, *rows])
        notes = [f"R{counted}"]
    notes.append(certainty(_pairs(found), len(found)))
    return Table(f"{result.spec.name}: what can be said of {quantity.title}", columns, rows, notes)


def _pairs(found: list[Comparison]) -> int:
    """The most seeds that two of the rows have both finished."""
    return max((one.pair.seeds for one in found if one.pair), default=0)


def _mean(result: BenchmarkResult) -> str:
    return result.means.replace("means", "mean").replace("errors", "error")


def certainty(seeds: int, rows: int) -> str:
    """What so many seeds can tell, in a sentence.

    >>> certainty(3, 4)
    '3 seeds cannot go below p = 0.25; for 0.05 after the correction for 4 rows it takes 8, all of one sign.'
    """
    if not seeds:
        return "No seed is finished in two rows."
    if seeds == 1:
        return "One seed decides nothing: how far others would lie from it is not known."
    return (
        f"{seeds} seeds cannot go below p = {least_p(seeds):.2g}; for {LEVEL:g} after the "
        f"correction for {rows} row{'s' if rows > 1 else ''} it takes {seeds_needed(rows)}, all of one sign."
    )


def _efficiency(result: BenchmarkResult) -> Table:
    """Datapoints to γ by thirds of the stream, censored and discrete as they are."""
    control = result.control
    once, for_good = quantities(result)[:2]
    columns = ["strategy", once.title, for_good.title, "median", "reached", "at the floor", "fall"]
    columns += [f"minus {control.row.name}'s"] if control else []
    rows = []
    for row in result.rows:
        line = [row.row.name, _thirds(row, once), _thirds(row, for_good)]
        line += [_median(result, row), _percent(row, lambda cell: [not one for one in cell.censored], THIRDS[-1])]
        line += [_percent(row, lambda cell: cell.at_floor, THIRDS[-1])]
        line += [plus_minus(row.over_seeds(CellSummary.fall), 1, "+")]
        if control:
            line.append(NONE if control is row else _fall_beyond(row, control))
        rows.append(line)
    notes = [
        f"Means over thirds of the stream{_rounds_of_thirds(result)}, no round left out. Of the last third: the median "
        "(Kaplan-Meier, all seeds), the share of rounds that reach γ, and the share that sit on the floor: "
        f"{_floor(result)}, the first arrival, was enough, and nothing less can be seen. Standard errors: "
        "leaderboard.csv.",
        f"Fall: datapoints to γ, first half of the rounds minus second half, {_mean(result)}.",
    ]
    if control:
        notes.append(
            f"{control.row.name} cannot learn across rounds: its fall is the luck of the order, and only what exceeds "
            "it (paired by seed) is learning to learn."
        )
    return Table(f"{result.spec.name}: datapoints to γ by thirds", columns, rows, notes)


def _median(result: BenchmarkResult, row: RowResult) -> str:
    datapoints, censored = rounds_of(row, THIRDS[-1])
    if not datapoints:
        return NONE
    median = survival(datapoints, censored).median
    return f"> {result.checkpoints[-1]}" if median is None else str(median)


def _fall_beyond(row: RowResult, control: RowResult) -> str:
    seeds = [seed for seed in row.cells if seed in control.cells]
    return plus_minus(estimate(row.cells[seed].fall() - control.cells[seed].fall() for seed in seeds), 1, "+")


def _errors(result: BenchmarkResult) -> Table:
    """Errors by thirds of the stream: the area, with the first data, with all."""
    first, last = result.checkpoints[0], result.checkpoints[-1]
    found = [quantity for quantity in quantities(result) if quantity.name == "area"]
    found += [error_at(result, checkpoint) for checkpoint in dict.fromkeys((first, last))]
    rows = [[row.row.name, *(_thirds(row, quantity) for quantity in found)] for row in result.rows]
    bold = {
        (row, column)
        for column, quantity in enumerate(found, 1)
        for row in best([row.over_seeds(quantity.over(THIRDS[-1])).mean for row in result.rows], quantity.decimals)
    }
    note = (
        f"Means over thirds of the stream{_rounds_of_thirds(result)}, over all seeds; bold: the least in the last "
        f"third. {_area(result, 'each round')}Standard errors: leaderboard.csv."
    )
    columns = ["strategy", *(quantity.title for quantity in found)]
    return Table(f"{result.spec.name}: {result.measure} by thirds", columns, rows, [note], frozenset(bold))


def _costs(result: BenchmarkResult) -> Table:
    ruled = any(row.batch_norm for row in result.rows)
    kept = {row.row.name: row.over_seeds(lambda cell: cell.points_kept).mean for row in result.rows}
    memory = ["points kept"] if any(mean is not None for mean in kept.values()) else []
    columns = ["strategy", "steps", "gradient evaluations", *memory, "seconds", "seeds"]
    columns += ["batch norm"] if ruled else []
    rows = []
    for row in result.rows:
        seconds = row.over_seeds(lambda cell: cell.seconds).mean
        line = [row.row.name, human(row.over_seeds(lambda cell: cell.steps).mean)]
        line += [human(row.over_seeds(lambda cell: cell.gradient_evaluations).mean)]
        line += [human(kept[row.row.name])] if memory else []
        line += [NONE if seconds is None else f"{seconds:.1f}"]
        line.append(f"{len(row.cells)} of {len(result.seeds)}" if row.notes else str(len(row.cells)))
        rows.append(line + ([row.batch_norm or NONE] if ruled else []))
    notes = ["Of one run, all rounds: means over seeds."]
    notes[0] += " Points kept: the most that training could draw from at a time." if memory else ""
    return Table(f"{result.spec.name}: what it took", columns, rows, notes)


def _thirds(row: RowResult, quantity: Quantity) -> str:
    """ "149.2 → 40.1 → 12.3"."""
    means = [row.over_seeds(quantity.over(third)).mean for third in THIRDS]
    return " → ".join(NONE if mean is None else f"{mean:.{quantity.decimals}f}" for mean in means)


def _percent(row: RowResult, rounds: Callable[[CellSummary], Sequence[bool]], name: str) -> str:
    """The share of the rounds of a part, of all seeds, in percent."""
    found = [one for cell in row.cells.values() for one in rounds(cell)[part(name, len(cell.rounds))]]
    return f"{100 * sum(found) / len(found):.0f} %" if found else NONE


def _floor(result: BenchmarkResult) -> str:
    floors = {cell.first_arrival for row in result.rows for cell in row.cells.values()}
    return " or ".join(map(str, sorted(floors))) or NONE


def _area(result: BenchmarkResult, rounds: str) -> str:
    """What the area is, if the benchmark has one."""
    if all(quantity.name != "area" for quantity in quantities(result)):
        return ""
    return f"{result.measure.capitalize()} area: mean over the logarithm of datapoints, {rounds}. "


def _sums(result: BenchmarkResult) -> str:
    """What an average of a sum is, if the benchmark has one."""
    return "".join(f"{one.title.capitalize()}: that over all rounds, divided by their number. " for one in sums(result))


def _halves(result: BenchmarkResult) -> str:
    """ " (rounds 1-10 → 11-20)", if any run has finished."""
    rounds = _rounds(result)
    half = len(rounds) // 2
    return f" (rounds {_span(rounds[:half])} → {_span(rounds[half:])})" if half else ""


def _rounds_of_thirds(result: BenchmarkResult) -> str:
    """ " (rounds 1-6 → 7-13 → 14-20)", if any run has finished and has as many."""
    rounds = _rounds(result)
    thirds = [rounds[part(third, len(rounds))] for third in THIRDS]
    return f" (rounds {' → '.join(map(_span, thirds))})" if len(rounds) >= 3 else ""


def _span(rounds: list[int]) -> str:
    """Rounds by number, counted from 1."""
    return f"{rounds[0] + 1}–{rounds[-1] + 1}"


def _rounds(result: BenchmarkResult) -> list[int]:
    """Their numbers, from 0; empty if no run has finished."""
    return next((cell.rounds for row in result.rows for cell in row.cells.values()), [])
