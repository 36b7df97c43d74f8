"""What is run at once in a process: a cell, or on a GPU several seeds of a row; and what comes of it."""

from __future__ import annotations

import importlib
import os
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from ftml_bench.errors import UsageError
from ftml_bench.runs import record
from ftml_bench.runs.definition import Cell, Definition
from ftml_bench.runs.reading import check_cell
from ftml_bench.runs.storage import StorageError, is_passing, of_disk

# The function that runs one cell: (definition, cell, folder, data, on_evaluation, device) -> "finished" or "diverged".
# By name, because it is imported where it runs: this module and the command line stay free of torch.
RUN_CELL = "ftml_bench.runs.cell:run_cell"
# The same for several seeds of a row at once, on a GPU.
RUN_TOGETHER = "ftml_bench.runs.cell:run_together"
KEPT = ("finished", "diverged")
STOPPED = "stopped"  # by the disk: not the cell's fault, it may be run again and goes on from its saved state

OnEvaluation = Callable[[Cell, int, int], None]  # cell, how many are done, how many there will be


class Outcome(NamedTuple):
    """What came of a cell: "finished", "diverged", "failed" or `STOPPED`, and why (empty unless one of these two)."""

    cell: Cell
    status: str
    message: str


@dataclass(frozen=True)
class Task:
    """Cells that are run at once. It can be pickled, and runs wherever the folder `root` can be seen.

    :param root: the leaderboard's folder.
    :param data: folder of data sets, or None for the usual places.
    :param runners: the names of `RUN_CELL` and `RUN_TOGETHER`.
    :param holder: the run that holds `root`, by the name that `locking.alone` gives it.
    """

    definition: Definition
    cells: tuple[Cell, ...]
    root: Path
    data: str | None
    device: str
    runners: tuple[str, str]
    holder: str

    def run(self, on_evaluation: OnEvaluation) -> list[Outcome]:
        """Runs the cells; whatever one of them raises is recorded and becomes its outcome: also `SystemExit`, by which
        foreign code would end the run as a success.

        :raises KeyboardInterrupt: nothing is recorded then, so that the cells go on later.
        """
        ended: dict[Cell, str | BaseException] = {}
        begun: set[Cell] = set()

        def evaluated(cell: Cell, done: int, total: int) -> None:
            begun.add(cell)
            on_evaluation(cell, done, total)

        try:
            if not (self.root / "leaderboard.yaml").is_file():
                raise StorageError(self.root, "was removed while it was run")
            run = _imported(self.runners[len(self.cells) > 1])
            folders = {cell: self.root / cell.folder for cell in self.cells}
            if len(self.cells) == 1:
                ((cell, folder),) = folders.items()
                report = partial(evaluated, cell)
                ended[cell] = run(self.definition, cell, folder, self.data, report, device=self.device)
            else:
                ended = run(self.definition, folders, self.data, evaluated, self.device)
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            ended = dict.fromkeys(self.cells, error)
        return [self._ended(cell, ended[cell], cell in begun) for cell in self.cells]

    def fail(self, cell: Cell, reason: str, trace: str) -> Outcome:
        """Records that a cell failed, if that can be written."""
        with suppress(OSError):
            if self.root.is_dir():  # one that was removed is not made anew
                record.mark_failed(self.root / cell.folder, self.definition.hash, reason, trace)
        return Outcome(cell, "failed", reason)

    def _ended(self, cell: Cell, end: str | BaseException, begun: bool) -> Outcome:
        if isinstance(end, str):
            return Outcome(cell, end, "")
        disk = of_disk(end, self.root / cell.folder)
        if disk is not None:
            return Outcome(cell, STOPPED, str(disk))
        text = _said(end)
        if begun and not is_passing(end):  # what failed is mended and then done from the start
            with suppress(OSError):
                (self.root / cell.folder / record.SAVED_STATE).unlink(missing_ok=True)
        reason = text if isinstance(end, UsageError) else f"{type(end).__name__}: {text}"
        return self.fail(cell, reason, "".join(traceback.format_exception(end)))


def status_of(definition: Definition, root: Path, cell: Cell) -> str:
    """The status that a cell was kept with; empty if it has to be run.

    :raises UsageError: a damaged or changed record or table.
    """
    if not record.has_record(root / cell.folder):
        return ""
    run = record.read(root / cell.folder)
    check_cell(cell, run, root)
    return run.status if run.status in KEPT and definition.includes(run.record.get("definition")) else ""


def one_thread() -> None:
    """One thread for this process: sums then have one order, and processes do not fight for cores."""
    os.environ["OMP_NUM_THREADS"] = "1"  # torch reads it when it is imported
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)


def _said(error: BaseException) -> str:
    """What an error says, in one line."""
    try:
        return " ".join(str(error).split())
    except Exception:  # of foreign code
        return "cannot be shown"


def _imported(name: str) -> Any:
    module, function = name.split(":")
    return getattr(importlib.import_module(module), function)
