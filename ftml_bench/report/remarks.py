"""What a reader has to know of the cells of a report before comparing them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ftml_bench.runs.definition import Cell
from ftml_bench.runs.record import Run

_NAMED = 3  # cells of the fewer kind that are named; of more, the rest are counted

#: What was run with: of two kinds, numbers may differ for that alone.
RUN_WITH: dict[str, Callable[[dict[str, Any]], Any]] = {
    "version of the suite": lambda record: record.get("versions", {}).get("ftml-bench"),
    "version of torch": lambda record: record.get("versions", {}).get("torch"),
    "device": lambda record: str(record.get("device", "not said")).partition(":")[0],  # cuda:0 and cuda:1 are alike
}


def remarks(runs: list[tuple[Cell, Run]]) -> list[str]:
    """A sentence for everything in which the cells that have ended differ, and for those that cannot be checked."""
    ended = [(cell, run.record) for cell, run in runs if run.ended]
    found = []
    for what, of in RUN_WITH.items():
        kinds: dict[str, list[Cell]] = {}
        for cell, record in ended:
            kinds.setdefault(str(of(record)), []).append(cell)
        if len(kinds) > 1:
            most, *others = sorted(kinds.items(), key=lambda kind: -len(kind[1]))
            fewer = "; ".join(f"{kind} in {_cells(cells)}" for kind, cells in others)
            found.append(f"Not all cells are of the same {what}: {most[0]} in {len(most[1])}; {fewer}.")
    unchecked = [cell for cell, record in ended if "tables" not in record]
    if unchecked:
        found.append(
            f"No hashes in the records of {_cells(unchecked)}: whether their tables are those of the runs cannot be "
            "checked."
        )
    return found


def _cells(cells: list[Cell]) -> str:
    """ "4 (a/b/seed-0, a/b/seed-1, a/b/seed-2 and 1 more)"."""
    more = len(cells) - _NAMED
    return f"{len(cells)} ({', '.join(map(str, cells[:_NAMED]))}{f' and {more} more' if more > 0 else ''})"
