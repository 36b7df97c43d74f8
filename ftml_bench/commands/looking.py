"""`ftml-bench leaderboard NAME --status` and `--dry-run`: what is there and what would be done; nothing is written."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from pathlib import Path

from ftml_bench.errors import printable
from ftml_bench.report.tables import NONE, Table
from ftml_bench.runs import locking, schedule, status
from ftml_bench.runs.definition import Cell, Definition


def show_status(definition: Definition, root: Path) -> int:
    """Prints what is done, running and open, since when, and how long what is left will take."""
    schedule.check_folder(definition, root)
    found = status.of_cells(definition, root)
    counts = Counter(one.state for one in found)
    print(f"{root}: {len(found)} cells: {', '.join(f'{n} {state}' for state, n in counts.items())}")
    holder = locking.holder(root)
    print(f"run by {printable(holder)}" if holder else "nobody runs it")
    rows = []
    for one in found:
        if one.state in ("finished", "diverged", "open"):
            continue
        done = f"{one.done} of {one.total or '?'}"
        rows.append([str(one.cell), one.state, one.since or NONE, done, status.duration(one.seconds), one.note or NONE])
    if rows:
        columns = ["cell", "state", "since", "evaluations", "worked", "note"]
        print("\n" + Table("Begun and not done:", columns, rows, []).text(), end="")
    left = status.seconds_left(found)
    if left is None:
        print("how long the rest takes is not known yet")
    elif left:
        jobs = counts["running"]
        each = f", {status.duration(left / jobs)} with the {jobs} that run" if jobs > 1 else ""
        print(f"left, by the speed so far: {status.duration(left)} one at a time{each}")
    return 0


def dry_run(definition: Definition, root: Path, redo: Collection[Cell]) -> None:
    """Prints which cells would be run, and from where.

    :param redo: those that are done again whatever they have come to.
    """
    todo = schedule.to_run(definition, root, redo)
    print(f"{root}: {len(todo)} of {len(definition.cells())} cells would be run")
    for cell in todo:
        goes_on = schedule.goes_on(definition, root, cell, redo)
        print(f"  {cell}{' (from its saved state)' if goes_on else ''}")
