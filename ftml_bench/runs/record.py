"""The files of one cell, and nothing else about it: `record.json`, `curve.csv`, `timing.csv`, `measures.csv`.

`record.json` holds provenance (definition, versions, commit, device, engine, command, started, finished), `protocol`,
`cost` and `status`; it is replaced as a whole. The tables are appended row by row and flushed, so that a run that was
cut off keeps what it had. Nothing in `curve.csv` depends on the clock. `measures.csv` is there if anything beside loss
and accuracy was measured (`ftml_bench.metrics.measures`). While the cell runs there is also `state.pt`, from which it
goes on if it is interrupted: the tables, and the events in `tb`, are then cut back to what they were when it was saved.
"""

from __future__ import annotations

import csv
import json
import os
import platform
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any, TextIO

from ftml_bench import __version__
from ftml_bench.errors import UsageError
from ftml_bench.files import is_there
from ftml_bench.runs import definition as definitions
from ftml_bench.runs.definition import Cell, Definition

CURVE_COLUMNS = ("round", "evaluated_round", "datapoints", "loss", "accuracy", "steps", "gradient_evaluations")
TIMING_COLUMNS = ("round", "datapoints", "seconds", "peak_memory_mb")
MEASURE_COLUMNS = ("round", "measure", "value")
STATUSES = ("running", "finished", "diverged", "failed")
SAVED_STATE = "state.pt"
_PACKAGES = ("torch", "avalanche-lib", "numpy")


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

    def __init__(self, folder: Path, record: dict[str, Any], *, mode: str) -> None:
        self.folder = folder
        self.record = record
        self._curve = _table(folder / "curve.csv", CURVE_COLUMNS, mode)
        self._timing = _table(folder / "timing.csv", TIMING_COLUMNS, mode)
        self._measures: TextIO | None = None
        if (folder / "measures.csv").is_file():
            self._measures = _table(folder / "measures.csv", MEASURE_COLUMNS, mode)
        _write_record(folder, record)

    @classmethod
    def start(cls, folder: Path, header: dict[str, Any]) -> RunWriter:
        """Begins a run in `folder` (made if missing; files of an earlier attempt are removed).

        :param header: what only the caller knows; at least "definition" (the definition's hash) and "protocol", and
            whatever else belongs in `record.json` ("device", "engine", ...). Versions, commit, command and time are
            added here.
        """
        for key in ("definition", "protocol"):
            if key not in header:
                raise KeyError(f"the header of a run needs {key!r}")
        folder.mkdir(parents=True, exist_ok=True)
        for name in (SAVED_STATE, "measures.csv", "error.txt"):
            (folder / name).unlink(missing_ok=True)
        shutil.rmtree(folder / "tb", ignore_errors=True)  # old events would be drawn beside the new ones
        return cls(folder, {"status": "running", **provenance(), **header}, mode="w")

    @classmethod
    def go_on(cls, folder: Path, header: dict[str, Any], lengths: dict[str, int]) -> RunWriter:
        """Goes on with a run that was interrupted, from where its state was saved.

        :param header: as for `start`.
        :param lengths: what `lengths` gave when the state was saved.
        :raises UsageError: if the run was one of other versions or on another machine, or has lost files. Nothing is
            changed then.
        """
        old, new = _read_record(folder), {"status": "running", **provenance(), **header}
        for key, value in json.loads(json.dumps(new)).items():
            if key not in ("status", "command", "started") and old.get(key) != value:
                raise UsageError(f"{folder}: was begun with another {key}")
        _cut_back(folder, lengths)
        (folder / "error.txt").unlink(missing_ok=True)
        times = {"started": old["started"], "resumed": [*old.get("resumed", []), new["started"]]}
        return cls(folder, {**new, **times}, mode="a")

    def lengths(self) -> dict[str, int]:
        """How long every file is that is appended to, in bytes."""
        return {str(path.relative_to(self.folder)): path.stat().st_size for path in _appended(self.folder)}

    def append(self, row: dict[str, Any], seconds: float) -> None:
        """Adds an evaluation: the columns of `curve.csv` by name, and the seconds since the run's start."""
        self._curve.write(_line("" if row[name] is None else row[name] for name in CURVE_COLUMNS))
        self._curve.flush()
        peak = _peak_memory_mb()
        self._timing.write(_line((row["round"], row["datapoints"], round(seconds, 3), "" if peak is None else peak)))
        self._timing.flush()

    def append_measure(self, round: int, measure: str, value: float) -> None:
        """Adds the value of a measure in a round to `measures.csv`; the last one of a round counts."""
        if self._measures is None:
            self._measures = _table(self.folder / "measures.csv", MEASURE_COLUMNS, "w")
        self._measures.write(_line((round, measure, float(value))))
        self._measures.flush()

    def finish(self, status: str, **fields: Any) -> None:
        """Ends the run with "finished", "diverged" or "failed"; `fields` go into the record.

        One that diverged needs the field `diverged_round`, counted from 0 as in `curve.csv`.
        """
        if status not in STATUSES:
            raise ValueError(f"status {status!r} is none of {', '.join(STATUSES)}")
        if status == "diverged" and "diverged_round" not in fields:
            raise ValueError("a run that diverged needs 'diverged_round'")
        self._curve.close()
        self._timing.close()
        if self._measures is not None:
            self._measures.close()
        self.record |= {"status": status, "finished": _now(), **fields}
        _write_record(self.folder, self.record)
        (self.folder / SAVED_STATE).unlink(missing_ok=True)


def provenance() -> dict[str, Any]:
    """Versions, commit, machine, command and time: what every record says about how it came about."""
    return {
        "versions": {
            "python": platform.python_version(),
            "ftml-bench": __version__,
            **{package: version(package) for package in _PACKAGES},
        },
        "commit": _commit(),
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "started": _now(),
    }


def may_go_on(folder: Path, definition_hash: str) -> bool:
    """Whether a cell that did not come to its end has left a saved state of this definition."""
    if not (folder / SAVED_STATE).is_file() or not (folder / "record.json").is_file():
        return False
    return _read_record(folder).get("definition") == definition_hash


def mark_failed(folder: Path, definition_hash: str, reason: str, trace: str) -> None:
    """Records that a cell failed: `reason`, one line, in `record.json`, and the traceback in `error.txt`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "error.txt").write_text(trace, encoding="utf-8")
    try:
        record = _read_record(folder)
    except UsageError:  # it failed before anything was recorded
        record = {**provenance(), "definition": definition_hash}
    _write_record(folder, {**record, "status": "failed", "reason": reason, "finished": _now()})


def read(folder: Path) -> Run:
    """The files of one cell. Of one that did not come to its end, only the record.

    :raises UsageError: a missing or damaged file; names the file and the line.
    """
    record = _read_record(folder)
    if record["status"] in ("running", "failed"):  # cut off at any moment: nothing is asked of its tables
        return Run(record, [], 0.0)
    if "protocol" not in record:
        raise UsageError(f"{folder / 'record.json'}: damaged: no 'protocol'")
    if record["status"] == "diverged" and not isinstance(record.get("diverged_round"), int):
        raise UsageError(f"{folder / 'record.json'}: damaged: no 'diverged_round'")
    curve = [_curve_row(row, where) for row, where in _read_table(folder / "curve.csv", CURVE_COLUMNS)]
    seconds = 0.0
    for row, where in _read_table(folder / "timing.csv", TIMING_COLUMNS):
        seconds = _cell(row, "seconds", float, where)
    measures: dict[str, dict[int, float]] = {}
    if (folder / "measures.csv").is_file():
        for row, where in _read_table(folder / "measures.csv", MEASURE_COLUMNS):
            measures.setdefault(row["measure"], {})[_cell(row, "round", int, where)] = _cell(row, "value", float, where)
    return Run(record, curve, seconds, measures)


def read_runs(root: Path) -> tuple[Definition, list[tuple[Cell, Run]], list[Cell]]:
    """A leaderboard's folder: its definition, the cells that have a record, and those that have none.

    :raises UsageError: no leaderboard there, or a damaged file.
    """
    file = root / "leaderboard.yaml"
    if not is_there(file):
        raise UsageError(f"{root} is no leaderboard's folder: there is no {file.name} in it")
    definition = definitions.load(str(file))
    runs, missing = [], []
    for cell in definition.cells():
        if is_there(root / cell.folder / "record.json"):
            runs.append((cell, read(root / cell.folder)))
        else:
            missing.append(cell)
    return definition, runs, missing


def write_whole(path: Path, text: str) -> None:
    """Writes a file so that a reader sees the old content or the new, never a part."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


def _write_record(folder: Path, record: dict[str, Any]) -> None:
    write_whole(folder / "record.json", json.dumps(record, indent=2, sort_keys=True) + "\n")


def _read_record(folder: Path) -> dict[str, Any]:
    file = folder / "record.json"
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UsageError(f"{file} is missing") from error
    except json.JSONDecodeError as error:
        raise UsageError(f"{file}: damaged: line {error.lineno}: {error.msg}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{file}: cannot be read: {error}") from error
    if not isinstance(record, dict) or record.get("status") not in STATUSES:
        raise UsageError(f"{file}: damaged: no 'status' that is one of {', '.join(STATUSES)}")
    return record


def _table(path: Path, columns: tuple[str, ...], mode: str) -> TextIO:
    """A table to append to: a new one (mode "w"), or one that is there ("a")."""
    table: Any = path.open(mode, encoding="utf-8", newline="")
    if mode == "w":
        table.write(_line(columns))
        table.flush()
    return table


def _appended(folder: Path) -> list[Path]:
    """The files that grow while a cell runs."""
    tables = [folder / name for name in ("curve.csv", "timing.csv", "measures.csv")]
    return [path for path in (*tables, *sorted(folder.glob("tb/**/*"))) if path.is_file()]


def _cut_back(folder: Path, lengths: dict[str, int]) -> None:
    for name, length in lengths.items():
        if not (folder / name).is_file() or (folder / name).stat().st_size < length:
            raise UsageError(f"{folder / name} is shorter than when the state was saved")
    for path in _appended(folder):
        name = str(path.relative_to(folder))
        if name in lengths:
            os.truncate(path, lengths[name])
        else:
            path.unlink()


def _line(values: Any) -> str:
    """A line of CSV; floats by repr, so that they are read back bit for bit."""
    return ",".join(repr(float(value)) if isinstance(value, float) else str(value) for value in values) + "\n"


def _read_table(path: Path, columns: tuple[str, ...]) -> list[tuple[dict[str, str], str]]:
    """The rows of a CSV file by column, each with "file: line n" for errors."""
    try:
        text = path.read_text(encoding="utf-8")
        lines = list(csv.reader(text.splitlines()))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise UsageError(f"{path}: cannot be read: {reason}") from error
    if not lines or tuple(lines[0]) != columns:
        raise UsageError(f"{path}: damaged: line 1 must be {','.join(columns)}")
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


def _commit() -> str | None:
    """The commit of the checkout that the package is run from, if it is one, with "+" if files differ from it."""
    folder = Path(__file__).resolve().parent.parent
    if not (folder / ".git").exists():
        return None
    try:
        commit = _git(folder, "rev-parse", "--short=12", "HEAD")
        return commit + ("+" if _git(folder, "status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.SubprocessError):
        return None


def _git(folder: Path, *arguments: str) -> str:
    command = ["git", "-C", str(folder), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def _peak_memory_mb() -> float | None:
    """The largest resident size of this process so far, in MB; None on Windows, which has no such module."""
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (1e6 if sys.platform == "darwin" else 1e3), 1)  # macOS counts bytes, Linux kB
