"""`ftml-bench verify`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from ftml_bench.errors import UsageError

if TYPE_CHECKING:
    from ftml_bench.runs.verify import Fault


def verify(options: argparse.Namespace) -> int:
    from ftml_bench.runs.packed import unpacked

    wrong = False
    for path in options.folders:
        with unpacked(path) as root:
            wrong |= print_faults(root, path, options.rerun, options.data)
    return 1 if wrong else 0


def print_faults(root: Path, name: Path, rerun: int = 0, data: str | None = None) -> bool:
    """Prints what is wrong with a leaderboard's folder, called `name`; whether anything is."""
    from ftml_bench.report.tables import Table

    found = faults(root, rerun, data)
    if found:
        print(Table(f"{name}: {len(found)} wrong", ["where", "what"], [list(fault) for fault in found], []).text())
    else:
        print(f"{name}: verified")
    return bool(found)


def faults(root: Path, rerun: int = 0, data: str | None = None) -> list[Fault]:
    """Everything that is wrong with a leaderboard's folder; `rerun` of its cells are run again.

    :raises UsageError: there is no leaderboard in it.
    """
    from ftml_bench.report import standing
    from ftml_bench.runs import verify as files
    from ftml_bench.runs.reading import read_runs

    found = files.faults(root)
    try:
        found += standing.faults(root)
        if rerun:
            from ftml_bench.runs.rerun import rerun as run_again

            definition, runs, _ = read_runs(root)
            found += run_again(definition, [(cell, run) for cell, run in runs if run.ended], root, rerun, data)
    except UsageError as error:
        if not found:
            raise
        found.append(files.Fault("report", f"cannot be made: {str(error).replace(f'{root}/', '')}"))
    return found
