"""All that a report says, computed from the files of the runs; `ftml_bench.report.write` puts it into files."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from urllib.parse import quote

from ftml_bench.errors import printable
from ftml_bench.report import benchmark, figures, measures, numbers, overview, tables
from ftml_bench.report.remarks import remarks
from ftml_bench.report.tables import Table
from ftml_bench.results import statistics
from ftml_bench.results.looks import looks
from ftml_bench.results.statistics import BenchmarkResult
from ftml_bench.runs.definition import Cell, Definition
from ftml_bench.runs.reading import read_runs
from ftml_bench.runs.record import Run


@dataclass(frozen=True)
class Contents:
    """What a report says. Make one with `compute`.

    :param results: the numbers of every benchmark that has any.
    :param problems: a line for every cell without a result.
    :param remarks: what has to be known before cells are compared.
    """

    definition: Definition
    runs: list[tuple[Cell, Run]]
    results: list[BenchmarkResult]
    problems: list[str]
    remarks: list[str]

    @cached_property
    def tables(self) -> list[list[Table]]:
        """Of every benchmark, the table of results first."""
        return [
            benchmark.tables(result) + [table for table in [measures.table(result)] if table] for result in self.results
        ]

    def figures(self) -> Iterator[list[str]]:
        """Of every benchmark the names of its figures, without folder and ending."""
        for result in self.results:
            name = result.spec.name
            yield [name, f"{name}-measures"] if statistics.measured(result) else [name]

    def markdown(self) -> str:
        """`leaderboard.md`."""
        definition = self.definition
        lines = [f"# {tables.heading(definition.name)}\n"]
        lines += [f"{tables.markdown(definition.description)}\n"] if definition.description else []
        lines += [f"{tables.markdown(remark)}\n" for remark in self.remarks]
        if self.problems:
            lines += ["Cells without a result:\n", *(f"- {tables.markdown(problem)}" for problem in self.problems), ""]
        if self.results:
            lines += [f"![{overview.NAME}](figures/{overview.NAME}.png)\n", f"{overview.caption(self.results)}\n"]
        for result, some, names in zip(self.results, self.tables, self.figures(), strict=True):
            lines.append(f"## {tables.heading(result.spec.name)}\n")
            lines += [f"![{name}](figures/{quote(name, safe='+=')}.png)\n" for name in names]
            lines.append(f"{figures.caption(result, looks(definition.benchmarks))}\n")
            lines += [table.markdown() for table in some]
        return "\n".join(lines)

    def csv(self) -> str:
        """`leaderboard.csv`."""
        return numbers.of_rows(self.results)

    def seeds_csv(self) -> str:
        """`seeds.csv`."""
        return numbers.of_seeds(self.results)

    def text(self, width: int | None) -> str:
        """The tables for a terminal of so many columns; None: as wide as they get."""
        text = [table.text(width) for some in self.tables for table in some]
        text += [f"{printable(remark)}\n" for remark in self.remarks]
        if self.problems:
            text.append("Cells without a result:\n" + "".join(f"* {printable(problem)}\n" for problem in self.problems))
        return "\n".join(text)


def compute(root: Path) -> Contents:
    """What the report of a leaderboard's folder says.

    :raises UsageError: no leaderboard there, or a damaged or changed file.
    """
    definition, runs, missing = read_runs(root)
    results = statistics.results(definition, runs, root)
    return Contents(definition, runs, results, statistics.open_cells(runs, missing), remarks(runs))
