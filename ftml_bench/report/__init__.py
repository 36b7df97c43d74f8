"""Records -> tables, statistics, figures, HTML: from the files of runs alone, at any time, without torch."""

from __future__ import annotations

from pathlib import Path

from ftml_bench.report import figures, measures, overview, page
from ftml_bench.report.contents import compute
from ftml_bench.results.looks import looks
from ftml_bench.runs import record
from ftml_bench.runs.appended import event_files


def write(root: Path, width: int | None = None) -> str:
    """Makes a leaderboard's `leaderboard.md`, `leaderboard.csv`, `seeds.csv`, `report.html` and `figures/` anew.

    The same records give the same bytes. Where cells have left events for TensorBoard, also what it shows beside them.

    :param root: the leaderboard's folder.
    :param width: columns of the terminal; None: tables are as wide as they get.
    :return: the tables as text for the terminal.
    :raises UsageError: no leaderboard there, or a damaged or changed file.
    """
    contents = compute(root)
    look = looks(contents.definition.benchmarks)
    for result in contents.results:
        figures.draw(result, look, root / "figures")
        measures.draw(result, look, root / "figures")
    if contents.results:
        overview.draw(contents.results, look, root / "figures")
    record.write_whole(root / "leaderboard.md", contents.markdown())
    record.write_whole(root / "leaderboard.csv", contents.csv())
    record.write_whole(root / "seeds.csv", contents.seeds_csv())
    record.write_whole(root / "report.html", page.render(contents, root / "figures"))
    if any(event_files(root / cell.folder) for cell, _ in contents.runs):
        from ftml_bench.report import tensorboard  # only here: it imports a lot

        tensorboard.write(contents, root)
    return contents.text(width)
