"""The files of one cell, and nothing else about it: `record.json`, `curve.csv`, `timing.csv`, `measures.csv`.

`record.json` holds provenance (definition, cell, versions, commit, device, engine, command, started, finished),
`protocol`, `cost` and `status`, and at the end `tables`: rows and SHA-256 of each, so that a change is seen. It is
replaced as a whole. The tables are appended row by row and flushed, so that a run that was cut off keeps what it had.
Nothing in `curve.csv` depends on the clock. `measures.csv` is there if anything beside loss and accuracy was measured
(`ftml_bench.metrics.measures`). While the cell runs there is also `state.pt`, from which it goes on if it is
interrupted: the tables, and TensorBoard's events, are then cut back to what they were when it was saved. All are on the
disk before the record says that the run has ended.

People count rounds from 1, Avalanche its experiences from 0, and so do these tables: their columns say so
(`round_from_0`). In tables of before they are called `round`, and hold the same.
"""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ftml_bench.errors import UsageError, encodable
from ftml_bench.files import is_there, remove_temporary, replacing
from ftml_bench.runs import shape
from ftml_bench.runs.appended import TABLES, Contents, Table, contents, cut_back, table_hash
from ftml_bench.runs.locking import LOCK
from ftml_bench.runs.provenance import now, peak_memory_mb, provenance
from ftml_bench.runs.storage import StorageError, storing

CURVE_COLUMNS = ("round", "evaluated_round", "datapoints", "loss", "accuracy", "steps", "gradient_evaluations")
TIMING_COLUMNS = ("round", "datapoints", "seconds", "peak_memory_mb")
MEASURE_COLUMNS = ("round", "measure", "value")
_FROM_0 = {name: f"{name}_from_0" for name in ("round", "evaluated_round")}  # as files call it
STATUSES = ("running", "finished", "diverged", "failed")
SAVED_STATE = "state.pt"


@dataclass(frozen=True)
class CurveRow:
    """One evaluation.

    :param round: the round that was being learned, counted from 0 as Avalanche's experiences (for people, from 1).
    :param evaluated_round: the round whose held-out data were predicted.
    :param datapoints: how many datapoints of `round` had arrived.
    :param accuracy: share of targets, in [0, 1]; None where they are no classes.
    :param steps: training steps since the start of the cell; `gradient_evaluations` likewise.
    """

    round: int
    evaluated_round: int
    datapoints: int
    loss: float
    accuracy: float | None
    steps: int
    gradient_evaluations: int


@dataclass(frozen=True)
class Run:
    """A cell's files as read: the record, every evaluation in order, seconds from start to end, and what was measured
    beside loss and accuracy: name -> round -> value."""

    record: dict[str, Any]
    curve: list[CurveRow]
    seconds: float
    measures: dict[str, dict[int, float]] = field(default_factory=dict)

    @property
    def status(self) -> str:
        """running, finished, diverged or failed."""
        return self.record["status"]

    @property
    def ended(self) -> bool:
        """Whether its numbers count: it finished or diverged."""
        return self.status in ("finished", "diverged")


class RunWriter:
    """Writes one cell's files. Make one with `start` or `go_on`, `append` every evaluation, then `finish`."""

    def __init__(self, folder: Path, record: dict[str, Any], *, new: bool) -> None:
        self.folder = folder
        self.record = record
        self._curve = Table(folder / "curve.csv", _as_written(CURVE_COLUMNS), new=new)
        self._timing = Table(folder / "timing.csv", _as_written(TIMING_COLUMNS), new=new)
        self._measures: Table | None = None
        if (folder / "measures.csv").is_file():
            self._measures = Table(folder / "measures.csv", _as_written(MEASURE_COLUMNS), new=new)
        with storing(folder):
            _write_record(folder, record)

    @classmethod
    def start(cls, folder: Path, header: dict[str, Any]) -> RunWriter:
        """Begins a run in `folder` (made if missing; files of an earlier attempt are removed).

        :param header: what only the caller knows; at least "definition" (the definition's hash) and "protocol", and
            whatever else belongs in `record.json` ("device", "engine", ...). Versions, commit, command and time are
            added here.
        :raises StorageError: the files cannot be written; so does everything else here.
        """
        for key in ("definition", "protocol"):
            if key not in header:
                raise KeyError(f"the header of a run needs {key!r}")
        with storing(folder):
            folder.mkdir(parents=True, exist_ok=True)
            events = [path.name for path in folder.glob("*tfevents*")]  # old ones would be drawn beside the new ones
            _forget(folder, SAVED_STATE, "measures.csv", "error.txt", *events)
        shutil.rmtree(folder / "tb", ignore_errors=True)  # where they lay before
        return cls(folder, {"status": "running", **provenance(), **header}, new=True)

    @classmethod
    def go_on(
        cls, folder: Path, header: dict[str, Any], then: Contents, is_ours: Callable[[str | None], bool]
    ) -> RunWriter:
        """Goes on with a run that was interrupted, from where its state was saved.

        :param header: as for `start`.
        :param then: what `contents` gave when the state was saved.
        :param is_ours: whether the hash of the definition that it was begun with is one of ours.
        :raises UsageError: if the run was one of other versions or on another machine, or its files are not those that
            the state was saved with. Nothing is changed then.
        """
        old, new = _read_record(folder), {"status": "running", **provenance(), **header}
        for key, value in json.loads(json.dumps(new)).items():
            before = old.get(key)
            if key == "machine":  # the kind; how many cores it has is the same to a process of one thread
                before, value = str(before).split(",")[0], value.split(",")[0]
            if key == "definition" and is_ours(before):  # seeds may have been added since
                continue
            if key not in ("status", "command", "started") and before != value:
                raise UsageError(f"{folder}: was begun with another {key}")
        with storing(folder):
            cut_back(folder, then)
            _forget(folder, "error.txt")
            remove_temporary(folder / SAVED_STATE)
        times = {"started": old["started"], "resumed": [*old.get("resumed", []), new["started"]]}
        return cls(folder, {**new, **times}, new=False)

    def contents(self) -> Contents:
        """What every file holds that is appended to; on the disk when this returns."""
        with storing(self.folder):
            return contents(self.folder)

    def append(self, row: dict[str, Any], seconds: float) -> None:
        """Adds an evaluation: what is in a `CurveRow`, by name, and the seconds since the run's start."""
        self._curve.append("" if row[name] is None else row[name] for name in CURVE_COLUMNS)
        peak = peak_memory_mb()
        self._timing.append((row["round"], row["datapoints"], round(seconds, 3), "" if peak is None else peak))

    def append_measure(self, round: int, measure: str, value: float) -> None:
        """Adds the value of a measure in a round to `measures.csv`; the last one of a round counts."""
        if self._measures is None:
            self._measures = Table(self.folder / "measures.csv", _as_written(MEASURE_COLUMNS), new=True)
        self._measures.append((round, measure, float(value)))

    def check(self, expected: Sequence[tuple[int, int, int]]) -> None:
        """Sees that the tables on the disk hold these evaluations and no other.

        :param expected: (round, evaluated round, datapoints) of each, in order.
        :raises StorageError: they do not.
        """
        rows = [row for row, _ in self._read("curve.csv", CURVE_COLUMNS)]
        keys = [(row["round"], row["evaluated_round"], row["datapoints"]) for row in rows]
        if keys != [tuple(map(str, key)) for key in expected]:
            # Nobody knows whether the table or the state that it was continued from is wrong.
            (self.folder / SAVED_STATE).unlink(missing_ok=True)
            raise StorageError(
                self.folder / "curve.csv", f"holds others than the {len(expected)} evaluations of this run"
            )
        times = [(row["round"], row["datapoints"]) for row, _ in self._read("timing.csv", TIMING_COLUMNS)]
        if times != [(round, datapoints) for round, _, datapoints in keys]:
            raise StorageError(self.folder / "timing.csv", "holds other evaluations than curve.csv")

    def check_tables(self) -> None:
        """Sees that the tables hold what was appended to them and nothing else.

        :raises StorageError: they do not.
        """
        for table in self._tables():
            table.check()

    def _tables(self) -> list[Table]:
        return [table for table in (self._curve, self._timing, self._measures) if table is not None]

    def _read(self, name: str, columns: tuple[str, ...]) -> list[tuple[dict[str, str], str]]:
        try:
            return _read_table(self.folder / name, columns)
        except UsageError as error:
            raise StorageError(self.folder / name, str(error).removeprefix(f"{self.folder / name}: ")) from error

    def finish(self, status: str, **fields: Any) -> None:
        """Ends the run with "finished", "diverged" or "failed"; `fields` go into the record.

        One that diverged needs the field `diverged_round`, counted from 0 as in `curve.csv`.
        """
        if status not in STATUSES:
            raise ValueError(f"status {status!r} is none of {', '.join(STATUSES)}")
        if status == "diverged" and "diverged_round" not in fields:
            raise ValueError("a run that diverged needs 'diverged_round'")
        for table in self._tables():
            table.close()
        held = {table.path.name: {"rows": table.rows, "sha256": table.digest} for table in self._tables()}
        self.record |= {"status": status, "finished": now(), "tables": held, **fields}
        with storing(self.folder):
            _write_record(self.folder, self.record)
        tidy(self.folder)


def may_go_on(folder: Path, is_ours: Callable[[str | None], bool]) -> bool:
    """Whether a cell that did not come to its end has left a saved state of our definition, told by its hash."""
    if not (folder / SAVED_STATE).is_file() or not has_record(folder):
        return False
    return is_ours(_read_record(folder).get("definition"))


def has_record(folder: Path) -> bool:
    """Whether a cell has begun. An empty record is none: a power cut has left it of the first write."""
    file = folder / "record.json"
    return is_there(file) and (not file.is_file() or bool(file.read_bytes().strip(b"\0 \n")))


def has_failed(folder: Path) -> bool:
    """Whether the record says that the cell failed.

    :raises UsageError: a damaged record.
    """
    return has_record(folder) and _read_record(folder)["status"] == "failed"


def tidy(folder: Path) -> None:
    """Removes from the folder of a cell that has ended what it needed until then, if that can be removed."""
    with suppress(OSError):
        _forget(folder, SAVED_STATE, "error.txt", LOCK)


def _forget(folder: Path, *names: str) -> None:
    """Removes files, and what is left of their writing and of the record's."""
    for name in names:
        (folder / name).unlink(missing_ok=True)
    for name in (SAVED_STATE, "record.json"):
        remove_temporary(folder / name)


def mark_failed(folder: Path, definition_hash: str, reason: str, trace: str) -> None:
    """Records that a cell failed: `reason`, one line, in `record.json`, and the traceback in `error.txt`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "error.txt").write_text(encodable(trace), encoding="utf-8")
    try:
        record = _read_record(folder)
    except UsageError:  # it failed before anything was recorded
        record = {**provenance(), "definition": definition_hash}
    _write_record(folder, {**record, "status": "failed", "reason": encodable(reason), "finished": now()})


def read(folder: Path) -> Run:
    """The files of one cell. Of one that did not come to its end, only the record.

    :raises UsageError: a missing or damaged file, or a table that is not the one that the run has left; names the file,
        and the line of what cannot be read.
    """
    record = _read_record(folder)
    shape.check(record, folder / "record.json")
    if record["status"] in ("running", "failed"):  # cut off at any moment: nothing is asked of its tables
        return Run(record, [], 0.0)
    for key in ("protocol", "versions"):
        if key not in record:
            raise UsageError(f"{folder / 'record.json'}: damaged: no {key!r}")
    if record["status"] == "diverged" and record.get("diverged_round") is None:
        raise UsageError(f"{folder / 'record.json'}: damaged: no 'diverged_round'")
    curve = [_curve_row(row, where) for row, where in _read_table(folder / "curve.csv", CURVE_COLUMNS)]
    times = read_times(folder)
    seconds = times[-1][2] if times else 0.0
    measures: dict[str, dict[int, float]] = {}
    if (folder / "measures.csv").is_file():
        for row, where in _read_table(folder / "measures.csv", MEASURE_COLUMNS):
            measures.setdefault(row["measure"], {})[_cell(row, "round", int, where)] = _cell(row, "value", float, where)
    _check_hashes(folder, record)
    return Run(record, curve, seconds, measures)


def read_times(folder: Path) -> list[tuple[int, int, float]]:
    """Of every evaluation of a cell: round, datapoints, seconds since the start.

    :raises UsageError: a missing or damaged `timing.csv`.
    """
    return [
        (_cell(row, "round", int, where), _cell(row, "datapoints", int, where), _cell(row, "seconds", float, where))
        for row, where in _read_table(folder / "timing.csv", TIMING_COLUMNS)
    ]


def _check_hashes(folder: Path, record: dict[str, Any]) -> None:
    """Refuses tables that are not those of the record; one from before records held hashes says nothing of them."""
    if "tables" not in record:
        return
    held = record["tables"]
    try:
        expected = {name: (table["rows"], table["sha256"]) for name, table in held.items()}
    except (AttributeError, KeyError, TypeError):
        raise UsageError(f"{folder / 'record.json'}: damaged: no rows and hashes in 'tables'") from None
    if not {"curve.csv", "timing.csv"} <= set(expected):
        raise UsageError(f"{folder / 'record.json'}: damaged: 'tables' lacks curve.csv or timing.csv")
    for name in TABLES:
        path = folder / name
        if name not in expected and not path.exists():
            continue
        if name not in expected or not path.is_file():
            raise UsageError(f"{path} {'is not of the run' if path.exists() else 'is missing'}: see its record.json")
        rows, digest = expected[name]
        found = table_hash(path.read_bytes())
        if found["sha256"] != digest:
            what = (
                "it has other values" if found["rows"] == rows else f"it has {found['rows']} rows, the run left {rows}"
            )
            raise UsageError(f"{path} was changed after the run: {what}")


def write_whole(path: Path, text: str) -> None:
    """Writes a file so that a reader sees the old content or the new, never a part; it is on the disk then."""
    with replacing(path) as file:
        file.write(text.encode())


def _write_record(folder: Path, record: dict[str, Any]) -> None:
    write_whole(folder / "record.json", json.dumps(record, indent=2, sort_keys=True) + "\n")


def _read_record(folder: Path) -> dict[str, Any]:
    file = folder / "record.json"
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
        json.dumps(record, ensure_ascii=False).encode()
    except FileNotFoundError:
        raise UsageError(f"{file} is missing") from None
    except json.JSONDecodeError as error:
        raise UsageError(f"{file}: damaged: line {error.lineno}: {error.msg}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{file}: cannot be read: {error}") from error
    except UnicodeEncodeError:  # "\ud83d", which no report could show
        raise UsageError(f"{file}: damaged: a text in it holds half a character") from None
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, lists within lists without end
        raise UsageError(f"{file}: damaged: {error}") from error
    if not isinstance(record, dict) or record.get("status") not in STATUSES:
        raise UsageError(f"{file}: damaged: no 'status' that is one of {', '.join(STATUSES)}")
    return record


def _as_written(columns: tuple[str, ...]) -> tuple[str, ...]:
    """The columns as the file calls them."""
    return tuple(_FROM_0.get(column, column) for column in columns)


def _read_table(path: Path, columns: tuple[str, ...]) -> list[tuple[dict[str, str], str]]:
    """The rows of a CSV file by column, each with "file: line n" for errors."""
    try:
        text = path.read_text(encoding="utf-8")
        lines = list(csv.reader(text.splitlines()))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise UsageError(f"{path}: cannot be read: {reason}") from error
    if not lines or tuple(lines[0]) not in (_as_written(columns), columns):
        raise UsageError(f"{path}: damaged: line 1 must be {','.join(_as_written(columns))}")
    rows = []
    for number, line in enumerate(lines[1:], start=2):
        if len(line) != len(columns):
            raise UsageError(f"{path}: damaged: line {number} has {len(line)} values, expected {len(columns)}")
        rows.append((dict(zip(columns, line, strict=True)), f"{path}: damaged: line {number}"))
    if not text.endswith("\n"):
        raise UsageError(f"{path}: damaged: line {len(lines)} is cut off")
    return rows


def _curve_row(row: dict[str, str], where: str) -> CurveRow:
    return CurveRow(
        round=_cell(row, "round", int, where),
        evaluated_round=_cell(row, "evaluated_round", int, where),
        datapoints=_cell(row, "datapoints", int, where),
        loss=_cell(row, "loss", float, where),
        accuracy=_cell(row, "accuracy", float, where) if row["accuracy"] else None,
        steps=_cell(row, "steps", int, where),
        gradient_evaluations=_cell(row, "gradient_evaluations", int, where),
    )


def _cell(row: dict[str, str], column: str, kind: Any, where: str) -> Any:
    try:
        return kind(row[column])
    except ValueError:
        raise UsageError(f"{where}: {column} is {row[column]!r}, expected a number") from None
