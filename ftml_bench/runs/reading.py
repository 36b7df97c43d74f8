"""A leaderboard's folder as a whole, read: its definition, and of every cell what it has left."""

from __future__ import annotations

from pathlib import Path

from ftml_bench.errors import UsageError
from ftml_bench.files import is_there
from ftml_bench.runs import definition as definitions
from ftml_bench.runs.definition import Cell, Definition
from ftml_bench.runs.record import Run, has_record, read

FILE = "leaderboard.yaml"
HEADER = "# The definition as run, defaults written out; hash "  # its first line, followed by the hash


def read_runs(root: Path) -> tuple[Definition, list[tuple[Cell, Run]], list[Cell]]:
    """A leaderboard's folder: its definition, the cells that have a record, and those that have none.

    :raises UsageError: no leaderboard there, a damaged or changed file, or a record of another definition or cell.
    """
    definition = read_definition(root)
    runs, missing = [], []
    for cell in definition.cells():
        if has_record(root / cell.folder):
            run = read(root / cell.folder)
            check_belongs(definition, cell, run, root)
            runs.append((cell, run))
        else:
            missing.append(cell)
    return definition, runs, missing


def read_definition(root: Path) -> Definition:
    """The definition that a folder's cells were run by.

    :raises UsageError: there is none, it is damaged, or it was changed after the run.
    """
    file = root / FILE
    if root.is_file():
        raise UsageError(f"{root} is no leaderboard's folder: it is a file")
    if not is_there(file):
        raise UsageError(f"{root} is no leaderboard's folder: there is no {file.name} in it")
    definition = definitions.load(str(file))
    first = file.read_text(encoding="utf-8").partition("\n")[0]
    said = first.removeprefix(HEADER)
    if first != said and said != definition.hash:
        raise UsageError(f"{file} was changed after the run: its hash is {definition.hash}, that of the run was {said}")
    return definition


def check_belongs(definition: Definition, cell: Cell, run: Run, root: Path) -> None:
    """Sees that a record is that of this cell in this definition, or in that of before seeds were added.

    :raises UsageError: it is not.
    """
    file = root / cell.folder / "record.json"
    found = run.record.get("definition")
    if not definition.includes(found):
        raise UsageError(f"{file} is of another definition (hash {found}) than {root / FILE} (hash {definition.hash})")
    check_cell(cell, run, root)


def check_cell(cell: Cell, run: Run, root: Path) -> None:
    """Sees that a record is that of this cell; those of before do not say it.

    :raises UsageError: it is another cell's.
    """
    if run.record.get("cell", str(cell)) != str(cell):
        raise UsageError(f"{root / cell.folder / 'record.json'} is of another cell: {run.record['cell']}")
