"""How far a leaderboard has come, from its files: `ftml-bench leaderboard NAME --status` and `--dry-run`."""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from ftml_bench.errors import UsageError
from ftml_bench.runs import locking, record
from ftml_bench.runs.definition import Cell, Definition
from ftml_bench.runs.verify import expected_keys


@dataclass(frozen=True)
class CellStatus:
    """How far a cell has come.

    :param state: "finished", "diverged", "running", "failed" or "interrupted" (both go on from a saved state, if there
        is one), "changed" (its files are not what it left) or "open".
    :param since: when it was begun, or gone on with; empty if it was not.
    :param done: evaluations made; `total`: of how many, None if that is not known.
    :param seconds: that it has worked.
    :param note: why it failed or is refused.
    """

    cell: Cell
    state: str
    since: str = ""
    done: int = 0
    total: int | None = None
    seconds: float = 0.0
    note: str = ""


def of_cells(definition: Definition, root: Path) -> list[CellStatus]:
    """The status of every cell, in the definition's order. Nothing is written."""
    in_use = locking.holder(root) is not None
    return [_of_cell(definition, cell, root / cell.folder, in_use) for cell in definition.cells()]


def seconds_left(found: list[CellStatus]) -> float | None:
    """How long what is left takes one process, by the speed so far: of a cell that has begun, its own; of one that has
    not, the mean of its row, or else of its benchmark. None if there is nothing to go by."""
    whole = {status.cell: _whole(status) for status in found}
    left = 0.0
    for status in found:
        if status.state in ("finished", "diverged"):
            continue
        known = whole[status.cell]
        for alike in (_row_of, _benchmark_of):
            if known is None:
                known = _mean(s for cell, s in whole.items() if alike(cell) == alike(status.cell))
        if known is None:
            return None
        # What was interrupted, or has failed, may have no saved state.
        left += known - (status.seconds if status.state == "running" else 0.0)
    return left


def duration(seconds: float) -> str:
    """For people: "40 s", "12 min", "3.5 h"."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _whole(status: CellStatus) -> float | None:
    """The seconds of the whole cell, by its own speed."""
    if status.state == "finished":
        return status.seconds
    if status.state not in ("running", "interrupted") or not status.done or status.total is None:
        return None
    return status.seconds * status.total / status.done


def _mean(seconds: Iterable[float | None]) -> float | None:
    known = [number for number in seconds if number is not None]
    return statistics.fmean(known) if known else None


def _row_of(cell: Cell) -> tuple[str, ...]:
    return cell.benchmark, cell.row


def _benchmark_of(cell: Cell) -> tuple[str, ...]:
    return (cell.benchmark,)


def _of_cell(definition: Definition, cell: Cell, folder: Path, in_use: bool) -> CellStatus:
    if not record.has_record(folder):
        return CellStatus(cell, "open")
    try:
        run = record.read(folder)
    except UsageError as error:
        return CellStatus(cell, "changed", note=str(error))
    if not definition.includes(run.record.get("definition")):
        return CellStatus(cell, "open")
    done, seconds = _progress(folder)
    try:
        row = definition.benchmark(cell.benchmark).row(cell.row)
        total = len(expected_keys(run.record["protocol"], comparator=row.comparator))
    except (KeyError, TypeError, ValueError):
        total = None
    state = run.status if run.status != "running" or in_use else "interrupted"
    since = [run.record.get("started", ""), *run.record.get("resumed", [])][-1]
    return CellStatus(cell, state, since, done, total, seconds, run.record.get("reason", ""))


def _progress(folder: Path) -> tuple[int, float]:
    """Evaluations and seconds so far; a row that is just being written does not count yet."""
    try:
        *whole, _ = (folder / "timing.csv").read_bytes().split(b"\n")
        return max(len(whole) - 1, 0), float(whole[-1].split(b",")[2]) if len(whole) > 1 else 0.0
    except (OSError, ValueError, IndexError):
        return 0, 0.0
