"""Numbers -> tables: as Markdown, as aligned text for a terminal, and as CSV for other programs."""

from __future__ import annotations

import csv
import io
import re
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from html import escape

from ftml_bench.errors import printable
from ftml_bench.report.statistics import BenchmarkResult, CellSummary, Estimate, RowResult, halves, measured, paired

NONE = "–"  # no number: no finished seed, or no standard error of one


_MARKS = re.compile(r"[\\\\`*\[\]|]|(?<!\w)_|_(?!\w)|^[#+>-]|^\d+(?=[.)])")


def markdown(text: str) -> str:
    """A text that definitions or errors gave, in one line, so that Markdown shows it and does nothing else."""
    return _MARKS.sub(r"\\\g<0>", escape(printable(text), quote=False))


@dataclass(frozen=True)
class Table:
    """A heading, names of columns, cells of text (the first column names the row), and remarks below."""

    heading: str
    columns: list[str]
    rows: list[list[str]]
    notes: list[str]

    def markdown(self) -> str:
        """The table in Markdown."""
        lines = [self.columns, ["---"] + ["--:"] * (len(self.columns) - 1), *self.rows]
        table = "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
        notes = "".join(f"- {note}\n" for note in self.notes)
        return f"### {self.heading}\n\n{table}\n" + (f"\n{notes}" if notes else "")

    def text(self, width: int | None = None) -> str:
        """The table aligned for a terminal. One wider than `width` characters goes on in further blocks below."""
        columns = list(zip(self.columns, *self.rows, strict=True))
        widths = [max(map(len, column)) for column in columns]
        blocks: list[list[int]] = [[]]
        for index in range(1, len(columns)):
            used = widths[0] + sum(2 + widths[i] for i in blocks[-1])
            if width is not None and blocks[-1] and used + 2 + widths[index] > width:
                blocks.append([])
            blocks[-1].append(index)
        lines = [self.heading]
        for block in blocks:
            lines.append("")
            for row in [self.columns, *self.rows]:
                cells = [row[0].ljust(widths[0])] + [row[index].rjust(widths[index]) for index in block]
                lines.append("  ".join(cells).rstrip())
        return "\n".join([*lines, *([""] if self.notes else []), *(f"* {note}" for note in self.notes)]) + "\n"


def of_benchmark(result: BenchmarkResult) -> list[Table]:
    """The tables of one benchmark: results, differences to the first row, fall over rounds (where there is a γ)."""
    found = [_results(result)]
    if len(result.rows) > 1:
        found.append(_differences(result))
    return found if result.threshold is None else [*found, _falls(result)]


def to_csv(results: list[BenchmarkResult]) -> str:
    """Every number of every table, a line each, unrounded.

    Columns: benchmark, row, minus (the row that was subtracted, seed by seed; empty: none), quantity, mean,
    standard_error (empty for one seed), seeds, smaller (on how many seeds `row` is smaller than `minus`).
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["benchmark", "row", "minus", "quantity", "mean", "standard_error", "seeds", "smaller"])
    for result in results:
        compared = _compared(result)
        for row in result.rows:
            for quantity, value in _quantities(result).items():
                writer.writerow([result.spec.name, row.row.name, "", quantity, *_fields(row.over_seeds(value)), ""])
        for first, other, quantity, value in compared:
            pair = paired(first, other, value)
            fields = [*_fields(pair.difference), pair.leads]
            writer.writerow([result.spec.name, first.row.name, other.row.name, quantity, *fields])
    return text.getvalue()


def plus_minus(value: Estimate, decimals: int, sign: str = "") -> str:
    """ "0.153 ± 0.008"; "0.153 ± –" for one seed, "–" for none. `sign` is "+" to show that of a difference."""
    if value.mean is None:
        return NONE
    error = NONE if value.standard_error is None else f"{value.standard_error:.{decimals}f}"
    return f"{value.mean:{sign}.{decimals}f} ± {error}"


def human(value: float | None) -> str:
    """A count in three digits or so: 950, 12.3k, 1.2M."""
    if value is None:
        return NONE
    for unit in ("", "k", "M", "G"):
        # Compared as printed, so that 999,960 becomes 1.0M and not 1000.0k.
        if round(value, 1 if unit else 0) < 1000:
            break
        value /= 1000
    else:
        unit = "T"
    return f"{value:.1f}{unit}" if unit else f"{value:.0f}"


def _results(result: BenchmarkResult) -> Table:
    ruled = any(row.batch_norm for row in result.rows)
    columns = ["strategy"] + ([] if result.threshold is None else ["datapoints to γ", "censored"])
    columns += [f"{result.measure} at {checkpoint}" for checkpoint in result.checkpoints]
    columns += ["steps", "gradient evaluations", "seconds", "seeds"] + (["batch norm"] if ruled else [])
    rows = []
    for row in result.rows:
        seconds = row.over_seeds(_seconds).mean
        line = [row.row.name + (" *" if row.notes else "")]
        line += [] if result.threshold is None else _efficiency(row)
        line += [plus_minus(row.over_seeds(_error_at(checkpoint)), 3) for checkpoint in result.checkpoints]
        line += [human(row.over_seeds(_steps).mean), human(row.over_seeds(_gradient_evaluations).mean)]
        line += [NONE if seconds is None else f"{seconds:.1f}"]
        line.append(f"{len(row.cells)} of {len(result.seeds)}" if row.notes else str(len(row.cells)))
        rows.append(line + ([row.batch_norm or NONE] if ruled else []))
    half = _halves(result)
    notes = [f"{row.row.name}: {note}" for row in result.rows for note in row.notes]
    if result.threshold is not None:
        notes.append(
            f"γ = {result.gamma}. Datapoints to γ: mean over the first half of the rounds → mean over the second half"
            f"{half}; rounds that do not reach γ count as {result.checkpoints[-1]} (restricted mean); "
            "censored: their share of the second half."
        )
    notes.append(
        f"{result.measure.capitalize()} on held-out data over the second half of the rounds"
        f"{half if result.threshold is None else ''}. Means ± standard errors "
        "over seeds. Steps, gradient evaluations and seconds are those of one run, all rounds."
    )
    return Table(f"{result.spec.name}: {result.spec.benchmark}", columns, rows, notes)


def _efficiency(row: RowResult) -> list[str]:
    """Datapoints to γ over both halves, and the share censored."""
    if not row.cells:
        return [NONE, NONE]
    first, second = row.over_seeds(CellSummary.first_half), row.over_seeds(CellSummary.second_half)
    censored = statistics.fmean(cell.censored_share() for cell in row.cells.values())
    return [f"{plus_minus(first, 1)} → {plus_minus(second, 1)}", f"{100 * censored:.0f} %"]


def _differences(result: BenchmarkResult) -> Table:
    first = result.rows[0]
    quantities = compared_quantities(result)
    rows = []
    for other in result.rows[1:]:
        line = [other.row.name]
        for _, decimals, value in quantities.values():
            pair = paired(first, other, value)
            seeds = pair.difference.seeds
            leads = f" ({pair.leads} of {seeds})" if seeds else ""
            line.append(plus_minus(pair.difference, decimals, "+") + leads)
        rows.append(line)
    note = (
        f"{first.row.name} minus the row, seed by seed, over the second half of the rounds: mean ± standard error. "
        f"Below zero {first.row.name} leads; in brackets on how many seeds it does."
    )
    columns = ["strategy", *(title for title, _, _ in quantities.values())]
    return Table(f"{result.spec.name}: {first.row.name} minus the others", columns, rows, [note])


def _falls(result: BenchmarkResult) -> Table:
    control = result.control
    columns = ["strategy", "fall"] + ([f"minus {control.row.name}'s"] if control else [])
    rows = []
    for row in result.rows:
        line = [row.row.name, plus_minus(row.over_seeds(CellSummary.fall), 1, "+")]
        if control is row:
            line.append(NONE)
        elif control:
            line.append(plus_minus(paired(row, control, CellSummary.fall).difference, 1, "+"))
        rows.append(line)
    notes = ["Datapoints to γ, first half of the rounds minus second half: mean ± standard error over seeds."]
    if control:
        notes.append(
            f"{control.row.name} cannot learn across rounds: its fall is the luck of the order, and only what exceeds "
            "it (paired by seed) is learning to learn."
        )
    return Table(f"{result.spec.name}: fall over rounds", columns, rows, notes)


def _halves(result: BenchmarkResult) -> str:
    """ " (rounds 1-10 → 11-20)", if any run has finished."""
    cells = [cell for row in result.rows for cell in row.cells.values()]
    if not cells:
        return ""
    half, rounds = cells[0].half, len(cells[0].rounds)
    return f" (rounds 1–{half} → {half + 1}–{rounds})" if half else ""


def _quantities(result: BenchmarkResult) -> dict[str, Callable[[CellSummary], float | None]]:
    """The columns of the tables of results and of what was measured, as `to_csv` names them."""
    efficiency: dict[str, Callable[[CellSummary], float | None]] = {
        "datapoints_to_threshold_first_half": CellSummary.first_half,
        "datapoints_to_threshold_second_half": CellSummary.second_half,
        "fall": CellSummary.fall,
        "censored_share_second_half": CellSummary.censored_share,
    }
    return {
        **({} if result.threshold is None else efficiency),
        **{f"{result.measure}_at_{checkpoint}": _error_at(checkpoint) for checkpoint in result.checkpoints},
        **{
            f"{name.lower()}_{half}": value
            for name, curve in measured(result).items()
            for half, value in halves(name, curve).items()
        },
        "steps": _steps,
        "gradient_evaluations": _gradient_evaluations,
        "seconds": _seconds,
    }


def compared_quantities(result: BenchmarkResult) -> dict[str, tuple[str, int, Callable[[CellSummary], float]]]:
    """Quantity -> (title, decimals, value): what rows are compared in. Of each, less is better."""
    first, last = result.checkpoints[0], result.checkpoints[-1]
    # Without γ the checkpoints between are all there is to see how fast a learner learns.
    shown = result.checkpoints if result.threshold is None else dict.fromkeys((first, last))
    errors = {
        f"{result.measure}_at_{checkpoint}": (f"{result.measure} at {checkpoint}", 3, _error_at(checkpoint))
        for checkpoint in shown
    }
    if result.threshold is None:
        return errors
    return {"datapoints_to_threshold_second_half": ("datapoints to γ", 1, CellSummary.second_half), **errors}


def _compared(result: BenchmarkResult) -> list[tuple[RowResult, RowResult, str, Callable[[CellSummary], float]]]:
    """All paired differences: (row, row that is subtracted, quantity, value)."""
    first, control = result.rows[0], result.control
    quantities = compared_quantities(result).items()
    found = [(first, other, name, value) for other in result.rows[1:] for name, (_, _, value) in quantities]
    if control and result.threshold is not None:
        found += [(row, control, "fall", CellSummary.fall) for row in result.rows if row is not control]
    return found


def _fields(value: Estimate) -> list[str]:
    """Mean, standard error and seeds for a line of CSV."""
    return [
        *("" if number is None else repr(number) for number in (value.mean, value.standard_error)),
        str(value.seeds),
    ]


def _error_at(checkpoint: int) -> Callable[[CellSummary], float]:
    return lambda cell: cell.error_at(checkpoint)


def _steps(cell: CellSummary) -> float:
    return cell.steps


def _gradient_evaluations(cell: CellSummary) -> float:
    return cell.gradient_evaluations


def _seconds(cell: CellSummary) -> float:
    return cell.seconds
