"""Runs a leaderboard's cells, and goes on where an earlier run stopped: decides what runs and what its end means."""

from __future__ import annotations

import shlex
import shutil
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import yaml

from ftml_bench.errors import UsageError, encodable, unknown
from ftml_bench.files import is_there, remove_temporary
from ftml_bench.runs import definition as definitions
from ftml_bench.runs import locking, record, versions
from ftml_bench.runs.definition import Cell, Definition
from ftml_bench.runs.pool import LocalPool, Pool, ThisProcess
from ftml_bench.runs.progress import Progress, say
from ftml_bench.runs.reading import FILE, HEADER
from ftml_bench.runs.tasks import RUN_CELL, RUN_TOGETHER, STOPPED, Outcome, Task, status_of
from ftml_bench.runs.worker import Death

MOST_TOGETHER = 4  # seeds of a row that a GPU runs at once: with four it is as busy as it gets
TRIES = 3  # of a cell whose process dies, or that the disk stops

Group = list[Cell]  # what is run at once in a process
Place = Callable[[int, bool], Pool]  # where so many tasks can run, and whether one of them was cut off before


def run_cells(
    definition: Definition,
    root: Path,
    *,
    jobs: int = 1,
    place: Place | None = None,
    data: str | None,
    quiet: bool,
    device: str = "cpu",
    redo: Collection[Cell] = (),
) -> list[Outcome]:
    """Runs all cells that `root` does not hold yet, in `jobs` processes; one thread each, so that no number depends on
    `jobs`. On a GPU the seeds of a row of FTML are run together in one process.

    Cells that finished or diverged are kept. One that was interrupted goes on from its saved state, others are run
    from the start. A cell that fails is recorded, and the others go on; one whose process dies, or that the disk stops,
    is tried again after the others, `TRIES` times in all.

    :param root: the leaderboard's folder; made if missing.
    :param place: where to run instead of in processes of this machine.
    :param data: folder of data sets, or None for the usual places.
    :param quiet: no progress bar.
    :param device: that learners train on, as PyTorch names it.
    :param redo: cells that are done again from their start, whatever they have come to.
    :return: cell, status ("finished", "diverged" or "failed") and message, in the definition's order.
    :raises UsageError: `root` holds something else, another process runs it, or there is no such place. Nothing in it
        is changed.
    :raises KeyboardInterrupt: at Ctrl-C, when every cell has stopped.
    """
    check_free(definition, root)
    todo = to_run(definition, root, redo)
    tried = any(record.has_record(root / cell.folder) for cell in todo)
    # Before anything is written: there may be no such place.
    pool = (place if place and todo else _here(jobs))(len(_groups(definition, todo, device)), tried)
    try:
        with _written(root):
            root.mkdir(parents=True, exist_ok=True)
        with locking.alone(root) as holder:
            return _run_cells(definition, root, holder, pool, data, quiet, device, redo)
    finally:
        pool.cancel()


def _run_cells(
    definition: Definition,
    root: Path,
    holder: str,
    pool: Pool,
    data: str | None,
    quiet: bool,
    device: str,
    redo: Collection[Cell],
) -> list[Outcome]:
    with _written(root):
        check_folder(definition, root)  # again: another run may have begun, and ended, since
        _claim(definition, root)
        outcomes = {cell: Outcome(cell, status, "") for cell, status in _kept(definition, root, redo)}
        for cell in outcomes:
            record.tidy(root / cell.folder)
        todo = to_run(definition, root, redo)
        for cell in todo:
            if (root / cell.folder).exists() and not goes_on(definition, root, cell, redo):
                _remove(root / cell.folder)
    groups = _groups(definition, todo, device)
    runners = RUN_CELL, RUN_TOGETHER
    tasks = [Task(definition, tuple(group), root, data, device, runners, holder) for group in groups]
    if tasks:
        progress = Progress(definition, todo, kept=len(outcomes), quiet=quiet)
        try:
            outcomes |= {outcome.cell: outcome for outcome in _run_all(tasks, pool, progress)}
        finally:
            pool.cancel()  # while the folder is held
            progress.close()
    return [outcomes[cell] for cell in definition.cells()]


def _remove(folder: Path) -> None:
    """Removes a cell's folder, its record first, which would speak of tables that are gone if this were cut off."""
    if (folder / "record.json").is_file():
        (folder / "record.json").unlink()
    shutil.rmtree(folder)


def _here(jobs: int) -> Place:
    """In processes of this machine, or in this one alone."""

    def place(tasks: int, cut_off: bool) -> Pool:
        # A cell that was cut off may have ended the process that it ran in: not this one.
        return ThisProcess() if min(jobs, tasks) <= 1 and not cut_off else LocalPool(min(jobs, tasks))

    return place


def _run_all(tasks: list[Task], pool: Pool, progress: Progress) -> list[Outcome]:
    """Runs tasks to their end; what was cut off by something else than itself is run again, after the others.

    What goes on further each time, as on machines that are lent for a while, is not given up.
    """
    tries: Counter[Cell] = Counter()
    furthest: Counter[Cell] = Counter()
    outcomes: list[Outcome] = []
    said = set()

    def evaluated(cell: Cell, done: int, total: int) -> None:
        if done > furthest[cell]:
            furthest[cell] = done
            del tries[cell]
        progress.evaluated(cell, done, total)

    for task in tasks:
        pool.submit(task)
    open_tasks = len(tasks)
    while open_tasks:
        ended = pool.outcome(evaluated)
        if ended is None:
            progress.wait()
            continue
        task, found = ended
        open_tasks -= 1
        again = []
        for outcome in _of_death(task, found) if isinstance(found, Death) else found:
            progress.stopped(outcome.cell)
            if outcome.status == STOPPED:
                reason = outcome.message.rpartition(": ")[2]
                if reason not in said:
                    say(f"{outcome.cell}: {outcome.message}; what this stops is tried again after the others")
                said.add(reason)
                tries[outcome.cell] += 1
                if tries[outcome.cell] < TRIES:
                    again.append(outcome.cell)
                    continue
                outcome = task.fail(outcome.cell, f"{outcome.message} ({TRIES} times)", f"{outcome.message}\n")
            outcomes.append(outcome)
            progress.ended(outcome.cell)
        if again:
            pool.submit(replace(task, cells=tuple(again)))
            open_tasks += 1
    return outcomes


def _of_death(task: Task, death: Death) -> list[Outcome]:
    """What came of the cells of a process that died: some may have ended before the others."""
    found = []
    for cell in task.cells:
        try:
            status = status_of(task.definition, task.root, cell)
            if status:
                record.tidy(task.root / cell.folder)  # it was about to
        except UsageError:  # it wrote something that it could not end
            status = ""
        found.append(Outcome(cell, status or STOPPED, "" if status else f"its process was ended {death.how}"))
    return found


@contextmanager
def _written(root: Path) -> Iterator[None]:
    """What the system refuses of the folder as a whole ends the run in one line; of a cell's, it is its outcome."""
    try:
        yield
    except OSError as error:
        raise UsageError(f"{root} cannot be written: {error.strerror or error}") from error


def check_free(definition: Definition, root: Path) -> None:
    """Sees that `root` is missing, empty, or the folder of this definition's results; changes nothing.

    :raises UsageError: it holds another definition's results, or files of something else, or another process runs it.
    """
    if root.is_dir():
        locking.refuse_in_use(root)
    check_folder(definition, root)


def check_folder(definition: Definition, root: Path) -> None:
    """Sees that `root` is missing, empty, or the folder of this definition's results, perhaps of its first seeds only;
    changes nothing.

    :raises UsageError: it holds another definition's results, or files of something else, or its name is no UTF-8.
    """
    if encodable(str(root)) != str(root):  # TensorBoard's writer, for one, does not take it
        raise UsageError(f"{encodable(str(root))}: expected a name in UTF-8: choose another --out")
    if is_there(root) and not root.is_dir():  # a link that leads nowhere is there, too
        raise UsageError(f"{root} exists and is no leaderboard's folder: choose another --out or move it away")
    if _holds_nothing(root):
        return
    file = root / FILE
    if not file.is_file():
        raise UsageError(f"{root} exists and is no leaderboard's folder: choose another --out or move it away")
    found = definitions.load(str(file))
    if definition.includes(found.hash):
        return
    if definitions.with_seeds(found, list(definition.seeds)).hash == definition.hash:
        there, here = (",".join(map(str, one.seeds)) for one in (found, definition))
        raise UsageError(
            f"{root} holds the results of the same definition with other seeds ({there}; here {here}): give "
            f"--seeds {there}, to which more can be added at the end, or choose another --out or move it away"
        )
    raise UsageError(
        f"{root} holds the results of another definition (hash {found.hash}, this one is {definition.hash}): "
        "choose another --out or move it away"
    )


def cells_named(definition: Definition, root: Path, names: Iterable[str]) -> set[Cell]:
    """The cells that are meant by "benchmark/row/seed-0", "failed" (those that are recorded so) and "all".

    :raises UsageError: there is no such cell.
    """
    cells = {str(cell): cell for cell in definition.cells()}
    found: set[Cell] = set()
    for name in names:
        if name == "all":
            found.update(cells.values())
        elif name == "failed":
            found.update(cell for cell in cells.values() if record.has_failed(root / cell.folder))
        elif name in cells:
            found.add(cells[name])
        else:
            raise unknown("cell", name, ["all", "failed", *cells])
    return found


def to_run(definition: Definition, root: Path, redo: Collection[Cell] = ()) -> list[Cell]:
    """The cells that are not kept, in the order in which they are begun.

    :raises UsageError: one that is begun anew would be removed first, and its folder is a link.
    """
    kept = dict(_kept(definition, root, redo))
    todo = sorted((cell for cell in definition.cells() if cell not in kept), key=lambda c: _cost(definition, c))
    for cell in todo:
        folder = root / cell.folder
        if folder.is_symlink() and not goes_on(definition, root, cell, redo):
            raise UsageError(
                f"{folder} is a link, and a cell that is begun anew is removed first: remove the link, or have the "
                "folder itself there"
            )
    return todo


def goes_on(definition: Definition, root: Path, cell: Cell, redo: Collection[Cell]) -> bool:
    """Whether a cell that is not kept goes on from its saved state; else it is begun anew."""
    return cell not in redo and record.may_go_on(root / cell.folder, definition.includes)


def check_versions(
    definition: Definition, root: Path, new: dict[str, dict[str, int | None]], redo: Collection[Cell] = ()
) -> None:
    """Sees that the cells that are kept are of the same versions as those that remain to be run; changes nothing.

    :param new: for each benchmark by name what a new record's `protocol` says of versions.
    :param redo: cells that are not kept.
    :raises UsageError: they are not: the report would refuse them when all had been run.
    """
    kept = dict(_kept(definition, root, redo))
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
    """Makes `root` the folder of this definition's results, if it is not yet, or was with fewer seeds, or with what no
    hash says: the order of rows, of which the first is what the others are compared with, and the description."""
    file = root / FILE
    content = yaml.safe_dump(definition.to_dict(), sort_keys=False, allow_unicode=True, width=120)
    text = f"{HEADER}{definition.hash}\n{content}"
    if not file.is_file() or file.read_bytes() != text.encode():
        record.write_whole(file, text)
    remove_temporary(file)


def _holds_nothing(root: Path) -> bool:
    """Whether it is missing, empty, or holds nothing but what was cut off when a leaderboard was begun in it."""
    found = {path.name for path in root.iterdir()} if root.is_dir() else set()
    if not all(name in (FILE, locking.LOCK, locking.WRITERS) or name.startswith(f".{FILE}.") for name in found):
        return False
    if FILE not in found:
        return True
    text = (root / FILE).read_text(encoding="utf-8", errors="replace").strip("\0 \n")
    if not text.startswith(HEADER):
        return HEADER.startswith(text)  # nothing, or a part of our first line
    try:
        return definitions.load(str(root / FILE)).hash != text.partition("\n")[0].removeprefix(HEADER)
    except UsageError:
        return True


def _kept(definition: Definition, root: Path, redo: Collection[Cell]) -> list[tuple[Cell, str]]:
    """The cells that need not be run again, with their status. Of those that shall be, nothing is read.

    :raises UsageError: a damaged or changed record or table.
    """
    found = []
    for cell in definition.cells():
        if cell not in redo:
            try:
                found.append((cell, status_of(definition, root, cell)))
            except UsageError as error:
                raise UsageError(f"{error}; it is run again with --redo {shlex.quote(str(cell))}") from error
    return [(cell, status) for cell, status in found if status]


_SHORT = ("FollowTheLeader", "TrainOnEverything", "FromScratch")  # without a gradient of gradient steps


def _cost(definition: Definition, cell: Cell) -> tuple[bool, float]:
    """Sorts the longest cells first, so that none of them runs alone at the end."""
    row = definition.benchmark(cell.benchmark).row(cell.row)
    return row.strategy in _SHORT, -(row.settings.get("step_factor") or 1)


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
