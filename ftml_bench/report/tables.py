"""Tables of text: as Markdown, and aligned for a terminal."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from ftml_bench.errors import printable
from ftml_bench.results.statistics import Estimate

NONE = "–"  # no number: no finished seed

_MARKS = r"[\\\\`*\[\]|]|(?<!\w)_|_(?!\w)"
_MARKS_OF_LINES = r"^[#+>-]|^\d+(?=[.)])"  # they do nothing in a cell


def markdown(text: str, marks: str = f"{_MARKS}|{_MARKS_OF_LINES}") -> str:
    """A text that definitions, records or errors gave, in one line, so that Markdown shows it and does nothing else."""
    return re.sub(marks, r"\\\g<0>", printable(text).replace("&", "&amp;").replace("<", "&lt;"))


def heading(text: str) -> str:
    """The same behind the sign of a heading, where what begins a line does nothing."""
    return markdown(text, _MARKS)


@dataclass(frozen=True)
class Table:
    """A heading, names of columns, cells of text (the first column names the row), and remarks below.

    :param bold: (row, column) of the cells that stand out, such as the best; of several numbers in a cell the last.
    """

    heading: str
    columns: list[str]
    rows: list[list[str]]
    notes: list[str]
    bold: frozenset[tuple[int, int]] = frozenset()

    def markdown(self) -> str:
        """The table in Markdown."""
        columns, *rows = ([unbroken(markdown(cell, _MARKS)) for cell in row] for row in [self.columns, *self.rows])
        rows = [
            [_starred(cell) if (i, j) in self.bold else cell for j, cell in enumerate(row)]
            for i, row in enumerate(rows)
        ]
        lines = [columns, ["---"] + ["--:"] * (len(columns) - 1), *rows]
        table = "\n".join("| " + " | ".join(line) + " |" for line in lines)
        notes = "".join(f"- {markdown(note)}\n" for note in self.notes)
        return f"### {heading(self.heading)}\n\n{table}\n" + (f"\n{notes}" if notes else "")

    def text(self, width: int | None = None) -> str:
        """The table aligned for a terminal. One wider than `width` characters goes on in further blocks below."""
        rows = [[printable(cell) for cell in row] for row in [self.columns, *self.rows]]
        columns = list(zip(*rows, strict=True))
        widths = [max(map(len, column)) for column in columns]
        blocks: list[list[int]] = [[]]
        for index in range(1, len(columns)):
            used = widths[0] + sum(2 + widths[i] for i in blocks[-1])
            if width is not None and blocks[-1] and used + 2 + widths[index] > width:
                blocks.append([])
            blocks[-1].append(index)
        lines = [printable(self.heading)]
        for block in blocks:
            lines.append("")
            for row in rows:
                cells = [row[0].ljust(widths[0])] + [row[index].rjust(widths[index]) for index in block]
                lines.append("  ".join(cells).rstrip())
        return (
            "\n".join([*lines, *([""] if self.notes else []), *(f"* {printable(note)}" for note in self.notes)]) + "\n"
        )


def plus_minus(value: Estimate, decimals: int, sign: str = "") -> str:
    """ "0.153 ± 0.008"; "0.153" for one seed, "–" for none. `sign` is "+" to show that of a difference."""
    if value.mean is None:
        return NONE
    error = "" if value.standard_error is None else f" ± {value.standard_error:.{decimals}f}"
    return f"{value.mean:{sign}.{decimals}f}{error}"


def best(values: Sequence[float | None], decimals: int) -> set[int]:
    """Which of the values are the least, as printed with so many decimals: ties are best together.

    >>> sorted(best([0.1204, None, 0.1196, 0.13], 3))
    [0, 2]
    """
    printed = [None if value is None else float(f"{value:.{decimals}f}") for value in values]
    least = min((value for value in printed if value is not None), default=None)
    return {index for index, value in enumerate(printed) if value is not None and value == least}


def ranked(cell: str) -> tuple[str, str]:
    """A cell in two: what stands before its last number, and that, by which rows are ranked.

    >>> ranked("149.2 → 40.1 → 12.3"), ranked("0.153")
    (('149.2 → 40.1 → ', '12.3'), ('', '0.153'))
    """
    before, arrow, last = cell.rpartition(" → ")
    return before + arrow, last


def _starred(cell: str) -> str:
    before, last = ranked(cell)
    return f"{before}**{last}**"


def unbroken(cell: str) -> str:
    """A cell that is not broken inside "0.153 ± 0.008", "-1.0 to 2.0", "3 / 2 / 1" and "12 %"."""
    return re.sub(r"(?<=\d) (±|to|/|%)( ?)", lambda found: f"\u00a0{found[1]}" + found[2].replace(" ", "\u00a0"), cell)


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
