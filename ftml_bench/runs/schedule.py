"""Runs a leaderboard's cells on one machine, in parallel processes, and goes on where an earlier run stopped."""

from __future__ import annotations

import importlib
import multiprocessing
import os
import queue
import shutil
import signal
import sys
import traceback
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from pathlib import Path
from typing import Any

import yaml
from tqdm import tqdm

from ftml_bench.errors import UsageError
from ftml_bench.runs import definition as definitions
from ftml_bench.runs import record, versions
from ftml_bench.runs.definition import Cell, Definition

# The function that runs one cell: (definition, cell, folder, data, on_evaluation, device) -> "finished" or "diverged".
# By name, because it is imported where it runs: this module and the command line stay free of torch.
RUN_CELL = "ftml_bench.runs.cell:run_cell"
# The same for several seeds of a row at once, on a GPU; and how many at most: with four it is as busy as it gets.
RUN_TOGETHER = "ftml_bench.runs.cell:run_together"
MOST_TOGETHER = 4
KEPT = ("finished", "diverged")
SECONDS_IN_A_LOG = 10  # between two states of the progress bar where nobody watches it move

Group = list[Cell]  # what is run at once in a process
Where = tuple[str | None, str]  # folder of data sets, device
Outcome = tuple[Cell, str, str]  # cell, status, message (why it failed; empty otherwise)


def run_cells(
    definition: Definition, root: Path, *, jobs: int, data: str | None, quiet: bool, device: str = "cpu"
) -> list[Outcome]:
    """Runs all cells that `root` does not hold yet, in `jobs` processes; one thread each, so that no number depends on
    `jobs`. On a GPU the seeds of a row of FTML are run together in one process.

    Cells that finished or diverged are kept. One that was interrupted goes on from its saved state, others are run
    from the start. A cell that fails is recorded, and the others go on.

    :param root: the leaderboard's folder; made if missing.
    :param data: folder of data sets, or None for the usual places.
    :param quiet: no progress bar.
    :param device: that learners train on, as PyTorch names it.
    :return: cell, status ("finished", "diverged" or "failed") and message, in the definition's order.
    :raises UsageError: `root` holds something else. Nothing in it is changed.
    :raises KeyboardInterrupt: at Ctrl-C, when every cell has stopped.
    """
    _claim(definition, root)
    outcomes = {cell: (cell, status, "") for cell, status in _kept(definition, root)}
    todo = sorted((cell for cell in definition.cells() if cell not in outcomes), key=lambda c: _cost(definition, c))
    for cell in todo:
        if (root / cell.folder).exists() and not record.may_go_on(root / cell.folder, definition.hash):
            shutil.rmtree(root / cell.folder)
    progress = _Progress(definition, todo, kept=len(outcomes), quiet=quiet)
    groups = _groups(definition, todo, device)
    try:
        # One job needs no second process, which would import avalanche (seconds) once more.
        run = _run_here if min(jobs, len(groups)) <= 1 else _run_in_pool
        for outcome in run(definition, root, groups, jobs, (data, device), progress):
            outcomes[outcome[0]] = outcome
    finally:
        progress.close()
    return [outcomes[cell] for cell in definition.cells()]


def check_free(definition: Definition, root: Path) -> None:
    """Sees that `root` is missing, empty, or the folder of this definition's results; changes nothing.

    :raises UsageError: it holds another definition's results, or files of something else.
    """
    file = root / "leaderboard.yaml"
    if file.is_file():
        found = definitions.load(str(file)).hash
        if found != definition.hash:
            raise UsageError(
                f"{root} holds the results of another definition (hash {found}, this one is {definition.hash}): "
                "choose another --out or move it away"
            )
    elif root.exists() and (not root.is_dir() or any(root.iterdir())):
        raise UsageError(f"{root} exists and is no leaderboard's folder: choose another --out or move it away")


def check_versions(definition: Definition, root: Path, new: dict[str, dict[str, int | None]]) -> None:
    """Sees that the cells that are kept are of the same versions as those that remain to be run; changes nothing.

    :param new: for each benchmark by name what a new record's `protocol` says of versions.
    :raises UsageError: they are not: the report would refuse them when all had been run.
    """
    kept = dict(_kept(definition, root))
    found = []
    for cell in definition.cells():
        name = definition.benchmark(cell.benchmark).benchmark
        if cell in kept:
            found.append((name, record.read(root / cell.folder).record["protocol"], str(root / cell.folder)))
        else:
            found.append((name, new[cell.benchmark], "a new cell"))
    try:
        versions.refuse_mixed(found)
    except UsageError as error:
        raise UsageError(f"{error}: choose another --out or move it away") from None


def _claim(definition: Definition, root: Path) -> None:
    """Makes `root` the folder of this definition's results, if it is not yet."""
    check_free(definition, root)
    file = root / "leaderboard.yaml"
    if not file.is_file():
        root.mkdir(parents=True, exist_ok=True)
        content = yaml.safe_dump(definition.to_dict(), sort_keys=False, allow_unicode=True, width=120)
        record.write_whole(file, f"# The definition as run, defaults written out; hash {definition.hash}\n{content}")


def _kept(definition: Definition, root: Path) -> list[tuple[Cell, str]]:
    """The cells that need not be run again, with their status."""
    found = [(cell, _end_of(definition, root, cell)) for cell in definition.cells()]
    return [(cell, status) for cell, status in found if status]


def _end_of(definition: Definition, root: Path, cell: Cell) -> str:
    """The status that a cell was kept with; empty if it has to be run."""
    if not (root / cell.folder / "record.json").is_file():
        return ""
    run = record.read(root / cell.folder)
    return run.status if run.status in KEPT and run.record.get("definition") == definition.hash else ""


def _cost(definition: Definition, cell: Cell) -> tuple[bool, float]:
    """Sorts the longest cells first, so that none of them runs alone at the end."""
    row = definition.benchmark(cell.benchmark).row(cell.row)
    return row.strategy != "FTML", -row.settings.get("step_factor", 1)


def _groups(definition: Definition, todo: list[Cell], device: str) -> list[Group]:
    """What is run at once in a process, in the order of the first cells: a cell, or on a GPU several seeds of FTML."""
    groups: list[Group] = []
    for cell in todo:
        row = definition.benchmark(cell.benchmark).row(cell.row)
        last = groups[-1] if groups else []
        same_row = any((cell.benchmark, cell.row) == (other.benchmark, other.row) for other in last)
        if device != "cpu" and row.strategy == "FTML" and not row.comparator and same_row and len(last) < MOST_TOGETHER:
            last.append(cell)
        else:
            groups.append([cell])
    return groups


def _run_here(
    definition: Definition, root: Path, groups: list[Group], jobs: int, where: Where, progress: _Progress
) -> list[Outcome]:
    if groups:
        _one_thread()
    outcomes = []
    for group in groups:
        for outcome in _run_group(_runners(), definition, group, root, where, progress.evaluated):
            outcomes.append(outcome)
            progress.ended()
    return outcomes


def _run_in_pool(
    definition: Definition, root: Path, groups: list[Group], jobs: int, where: Where, progress: _Progress
) -> list[Outcome]:
    # spawn: a forked process would inherit torch's threads in a state in which they hang.
    context = multiprocessing.get_context("spawn")
    reports: Any = context.Queue()
    outcomes: list[Outcome] = []
    with ProcessPoolExecutor(min(jobs, len(groups)), context, _start_worker, (reports,)) as pool:
        pending = {pool.submit(_run_in_worker, _runners(), definition, group, root, where): group for group in groups}
        try:
            while pending:
                ended, _ = wait(pending, timeout=0.2, return_when=FIRST_COMPLETED)
                progress.drain(reports)
                for future in ended:
                    for outcome in _outcomes(future, pending.pop(future), definition, root):
                        outcomes.append(outcome)
                        progress.ended()
        except KeyboardInterrupt:
            pool.shutdown(wait=False, cancel_futures=True)
            for process in multiprocessing.active_children():
                process.terminate()  # what it was running is recorded as running, and will go on
            raise
    return outcomes


def _outcomes(future: Future[list[Outcome]], group: Group, definition: Definition, root: Path) -> list[Outcome]:
    try:
        return future.result()
    except BrokenProcessPool as error:
        reason = "a worker process was ended from outside (out of memory?)"
        outcomes = []
        for cell in group:
            status = _end_of(definition, root, cell)  # it may have ended before the others of its group
            if not status:
                record.mark_failed(root / cell.folder, definition.hash, reason, f"{error}\n")
            outcomes.append((cell, status or "failed", "" if status else reason))
        return outcomes


def _runners() -> tuple[str, str]:
    return RUN_CELL, RUN_TOGETHER  # given to a worker, which imports them


def _run_group(
    runners: tuple[str, str],
    definition: Definition,
    group: Group,
    root: Path,
    where: Where,
    on_evaluation: Callable[[Cell, int, int], None],
) -> list[Outcome]:
    """Runs the cells of a group; whatever one of them raises is recorded and becomes its outcome."""
    data, device = where
    ended: dict[Cell, str | Exception] = {}
    try:
        run, together = map(_imported, runners)
        if len(group) == 1:
            (cell,) = group
            report = partial(on_evaluation, cell)
            ended[cell] = run(definition, cell, root / cell.folder, data, report, device=device)
        else:
            folders = {cell: root / cell.folder for cell in group}
            ended = together(definition, folders, data, on_evaluation, device)
    except Exception as error:
        ended = dict.fromkeys(group, error)
    return [_ended(definition, cell, root / cell.folder, ended[cell]) for cell in group]


def _imported(name: str) -> Any:
    module, function = name.split(":")
    return getattr(importlib.import_module(module), function)


def _ended(definition: Definition, cell: Cell, folder: Path, end: str | Exception) -> Outcome:
    if not isinstance(end, Exception):
        return cell, end, ""
    text = " ".join(str(end).split())
    reason = text if isinstance(end, UsageError) else f"{type(end).__name__}: {text}"
    record.mark_failed(folder, definition.hash, reason, "".join(traceback.format_exception(end)))
    (folder / record.SAVED_STATE).unlink(missing_ok=True)  # what failed is mended and then done from the start
    return cell, "failed", reason


_reports: Any = None  # in a worker: the queue to report evaluations to, set when the process starts


def _start_worker(reports: Any) -> None:
    global _reports
    _reports = reports
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches every process of a terminal; the parent decides
    _one_thread()


def _run_in_worker(
    runners: tuple[str, str], definition: Definition, group: Group, root: Path, where: Where
) -> list[Outcome]:
    def report(cell: Cell, done: int, total: int) -> None:
        _reports.put((cell, done, total))

    return _run_group(runners, definition, group, root, where, report)


def _one_thread() -> None:
    """One thread for this process: sums then have one order, and processes do not fight for cores."""
    os.environ["OMP_NUM_THREADS"] = "1"  # torch reads it when it is imported
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)


class _Progress:
    """One bar over the evaluations of all cells that are run.

    Cells of a benchmark have the same number of evaluations, so the first to tell its number tells it for all.
    """

    def __init__(self, definition: Definition, todo: list[Cell], kept: int, quiet: bool) -> None:
        self._todo = todo
        self._cells = len(definition.cells())
        self._ended = kept
        self._done: dict[Cell, int] = {}
        self._totals: dict[str, int] = {}
        every = 0.1 if sys.stderr.isatty() else SECONDS_IN_A_LOG
        hidden = quiet or not todo
        self._bar = tqdm(total=0, unit=" evaluations", disable=hidden, dynamic_ncols=True, mininterval=every)
        self._show()

    def evaluated(self, cell: Cell, done: int, total: int) -> None:
        """A cell has made `done` of its `total` evaluations."""
        self._totals[cell.benchmark] = total
        self._bar.total = sum(self._totals.get(cell.benchmark, 0) for cell in self._todo)
        self._bar.update(done - self._done.get(cell, 0))
        self._done[cell] = done

    def drain(self, reports: Any) -> None:
        """Takes in what the workers have reported since the last call."""
        while True:
            try:
                self.evaluated(*reports.get_nowait())
            except queue.Empty:
                self._bar.update(0)  # the clock goes on
                return

    def ended(self) -> None:
        """A cell has come to its end, whatever that is."""
        self._ended += 1
        self._show()

    def close(self) -> None:
        """Ends the bar's line."""
        self._bar.close()

    def _show(self) -> None:
        self._bar.set_postfix_str(f"{self._ended}/{self._cells} cells")
