"""Records -> tables, statistics, figures, HTML: from the files of runs alone, at any time, without torch."""

from __future__ import annotations

from pathlib import Path

from ftml_bench.errors import printable
from ftml_bench.report import figures, measures, page, statistics, tables
from ftml_bench.runs import record


def write(root: Path, width: int | None = None) -> str:
    """Makes a leaderboard's `leaderboard.md`, `leaderboard.csv`, `report.html` and `figures/` anew.

    The same records give the same bytes.

    :param root: the leaderboard's folder.
    :param width: columns of the terminal; None: tables are as wide as they get.
    :return: the tables as text for the terminal.
    :raises UsageError: no leaderboard there, or a damaged file.
    """
    definition, runs, missing = record.read_runs(root)
    found = statistics.results(definition, runs, root)
    problems = statistics.open_cells(runs, missing)
    style = figures.styles(definition)
    # The SVG goes into the page, the PNG beside the Markdown: hosting sites show it there.
    drawn = [
        [figures.draw(result, style, root / "figures"), measures.draw(result, style, root / "figures")]
        for result in found
    ]
    made = [tables.of_benchmark(result) + [t for t in [measures.table(result)] if t] for result in found]
    lines = [f"# {definition.name}\n"] + (
        [f"{tables.markdown(definition.description)}\n"] if definition.description else []
    )
    lines += (
        ["Cells without a result:\n", *(f"- {tables.markdown(problem)}" for problem in problems), ""]
        if problems
        else []
    )
    for result, some, files in zip(found, made, drawn, strict=True):
        lines.append(f"## {result.spec.name}\n")
        for png, _ in filter(None, files):
            lines.append(f"![{png.stem}](figures/{png.name.replace(' ', '%20')})\n")
        lines += [table.markdown() for table in some]
    record.write_whole(root / "leaderboard.md", "\n".join(lines))
    record.write_whole(root / "leaderboard.csv", tables.to_csv(found))
    sections = [(some, [svg for _, svg in filter(None, files)]) for some, files in zip(made, drawn, strict=True)]
    record.write_whole(root / "report.html", page.render(definition, [run for _, run in runs], problems, sections))
    text = [table.text(width) for some in made for table in some]
    if problems:
        text.append("Cells without a result:\n" + "".join(f"* {printable(problem)}\n" for problem in problems))
    return "\n".join(text)
