"""What is wrong with a leaderboard's folder, found from its files alone, without torch: `faults`.

Nothing here asks whether the numbers are right, which only running a cell again does (`ftml_bench.runs.rerun`), but
whether they are what the runs left, all that the definition asks for, and possible.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from ftml_bench.errors import UsageError
from ftml_bench.metrics.measures import CURVES, MEASURES
from ftml_bench.runs import versions
from ftml_bench.runs.definition import BenchmarkSpec, Cell, Definition, Row
from ftml_bench.runs.reading import FILE, check_belongs, read_definition
from ftml_bench.runs.record import CurveRow, Run, has_record, read, read_times
from ftml_bench.sizes import cumulative

_MOST_EVALUATIONS = 10_000_000  # of a run; a record that says more is not believed


class Fault(NamedTuple):
    """Something that is wrong: where (a file or cell, relative to the folder), and what."""

    where: str
    what: str


def faults(root: Path) -> list[Fault]:
    """Everything that is wrong with what lies in a leaderboard's folder, tables and figures left out.

    :raises UsageError: there is no leaderboard in it.
    """
    if not (root / FILE).is_file():
        raise UsageError(f"{root} is no leaderboard's folder: there is no {FILE} in it")
    try:
        definition = read_definition(root)
    except UsageError as error:
        return [Fault(FILE, _within(root, error))]
    found: list[Fault] = []
    runs: dict[Cell, Run] = {}
    for cell in definition.cells():
        try:
            if has_record(root / cell.folder):
                run = read(root / cell.folder)
                check_belongs(definition, cell, run, root)
                runs[cell] = run
            else:
                found.append(Fault(str(cell), "not run"))
        except UsageError as error:
            found.append(Fault(str(cell), _within(root, error)))
    for cell, run in runs.items():
        found += [Fault(str(cell), what) for what in _of_cell(definition, cell, run, root / cell.folder)]
    found += _of_others(definition, runs, root)
    return found


def expected_keys(protocol: dict[str, Any], *, comparator: bool) -> list[tuple[int, int, int]]:
    """The evaluations of a whole run, in order, as its record's `protocol` has them: (round, evaluated round,
    datapoints).

    :raises KeyError, TypeError, ValueError: it does not say that.
    """
    n, rounds, arrivals = protocol["datapoints_per_round"], protocol["rounds"], protocol["arrivals"]
    each = [arrivals] if isinstance(arrivals, int) else arrivals
    if min(each) < 1 or n / min(each) * rounds > _MOST_EVALUATIONS:
        raise ValueError("not the sizes of a run")
    sizes = [n] if comparator else cumulative(n, each)
    first = (protocol.get("warmup") or {"rounds": 0})["rounds"]
    return [(round, round, size) for round in range(first, first + rounds) for size in sizes]


def _within(root: Path, error: UsageError) -> str:
    """An error without the folder that it names."""
    return str(error).replace(f"{root}/", "")


def _of_cell(definition: Definition, cell: Cell, run: Run, folder: Path) -> Iterator[str]:
    if run.status == "failed":
        yield f"failed: {run.record.get('reason', 'no reason is given')}"
    elif not run.ended:
        yield "not finished"
    else:
        if "tables" not in run.record:
            yield "record.json holds no hashes of the tables: they cannot be checked"
        protocol = run.record["protocol"]
        spec = definition.benchmark(cell.benchmark)
        row = spec.row(cell.row)
        yield from _of_protocol(spec, row, protocol)
        yield from _of_measures(spec, row, run)
        try:
            keys = expected_keys(protocol, comparator=row.comparator)
        except (KeyError, TypeError, ValueError):
            yield "record.json: its protocol does not say which evaluations a run makes"
            return
        yield from _of_keys(run, keys, folder)
        yield from _of_values(run)


def _of_protocol(spec: BenchmarkSpec, row: Row, protocol: dict[str, Any]) -> Iterator[str]:
    """What the definition says and the record's protocol says otherwise."""
    said = {
        "benchmark": spec.benchmark,
        "strategy": row.strategy,
        "steps": spec.steps,
        "optimizer": row.optimizer,
        "arrivals": list(spec.arrivals) if isinstance(spec.arrivals, tuple) else spec.arrivals,
        "threshold": None if spec.threshold is None else list(spec.threshold),
        "checkpoints": None if spec.checkpoints is None else list(spec.checkpoints),
        "score": spec.score,
    }
    for key, value in said.items():
        if value is not None and protocol.get(key) != value:
            yield f"record.json: its protocol's {key!r} is {protocol.get(key)}, the definition's {value}"
    warmup = None  # no benchmark has one of its own
    if spec.warmup_rounds is not None:
        warmup = {"rounds": spec.warmup_rounds, "datapoints": spec.warmup_datapoints, "steps": spec.warmup_steps}
    if protocol.get("warmup") != warmup:
        yield f"record.json: its protocol's 'warmup' is {protocol.get('warmup')}, the definition's {warmup}"
    yield from _of_settings("settings", row.settings, protocol)
    yield from _of_settings("benchmark_settings", spec.settings, protocol)


def _of_settings(key: str, said: dict[str, Any], protocol: dict[str, Any]) -> Iterator[str]:
    """Settings that the record says otherwise than the definition; records of before leave out mappings."""
    recorded = protocol.get(key, {})
    for name, value in said.items():
        left_out = isinstance(value, dict) and name not in recorded
        if not left_out and recorded.get(name) != value:
            found = recorded.get(name, "missing")
            yield f"record.json: {name!r} of its protocol's {key!r} is {found}, the definition's {value}"


def _of_measures(spec: BenchmarkSpec, row: Row, run: Run) -> Iterator[str]:
    """Measures that the definition asks for, and of which a run to the end has left nothing."""
    if row.comparator or run.status != "finished":
        return
    for name in spec.measures or ():
        # That one says nothing where every first arrival has several classes.
        if name != "only_class" and not MEASURES[name].keys() & run.measures.keys():
            yield f"measures.csv: there is no {name}, which the definition asks for"


def _of_keys(run: Run, keys: list[tuple[int, int, int]], folder: Path) -> Iterator[str]:
    found = [(row.round, row.evaluated_round, row.datapoints) for row in run.curve]
    if run.status == "diverged":
        keys = keys[: len(found)]
    if found != keys:
        same = next((i for i, (a, b) in enumerate(zip(found, keys, strict=False)) if a != b), None)
        line = 2 + (min(len(found), len(keys)) if same is None else same)
        yield f"curve.csv: {len(found)} evaluations, expected {len(keys)}; from line {line} they are not the protocol's"
    times = read_times(folder)
    if [(round, datapoints) for round, datapoints, _ in times] != [(round, n) for round, _, n in found]:
        yield "timing.csv: other evaluations than in curve.csv"
    seconds = [seconds for _, _, seconds in times]
    if not all(math.isfinite(s) and s >= 0 for s in seconds) or any(b < a for a, b in pairwise(seconds)):
        yield "timing.csv: seconds that are negative, not finite or run backwards"


def _of_values(run: Run) -> Iterator[str]:
    curve = run.curve
    for line, row in enumerate(curve, 2):
        last = line == len(curve) + 1
        if not math.isfinite(row.loss) and not (run.status == "diverged" and last):
            yield f"curve.csv: line {line}: a loss of {row.loss:g} in a run that {run.status} {_where(run)}"
        if row.accuracy is not None and not 0 <= row.accuracy <= 1:
            yield f"curve.csv: line {line}: an accuracy of {row.accuracy:g}, expected 0 to 1"
        if row.steps < 0 or row.gradient_evaluations < 0:
            yield f"curve.csv: line {line}: a negative count"
    for line, (before, row) in enumerate(pairwise(curve), 3):
        if (row.round, row.datapoints) <= (before.round, before.datapoints):
            yield f"curve.csv: line {line}: datapoints do not increase"
        if row.steps < before.steps or row.gradient_evaluations < before.gradient_evaluations:
            yield f"curve.csv: line {line}: steps or gradient evaluations run backwards"
    if run.status == "diverged" and (not curve or math.isfinite(curve[-1].loss)):
        yield "curve.csv: the run diverged, but its last loss is finite"
    if curve:
        yield from _of_cost(run, curve[-1])
    rounds = run.record["protocol"]["rounds"]
    for name, values in run.measures.items():
        if name not in CURVES:
            yield f"measures.csv: there is no measure {name!r}"
        if not all(0 <= round < rounds for round in values):
            yield f"measures.csv: {name} of a round that there is not"
        if run.status == "finished" and not all(map(math.isfinite, values.values())):
            yield f"measures.csv: {name} is not finite"


def _of_cost(run: Run, last: CurveRow) -> Iterator[str]:
    """The record says what the run has cost in all, the curve what it had cost at each evaluation."""
    cost = run.record.get("cost", {})
    for key, value in (("steps", last.steps), ("gradient_evaluations", last.gradient_evaluations)):
        if cost.get(key, value) != value:
            yield f"record.json: {cost[key]} {key.replace('_', ' ')}, curve.csv ends with {value}"


def _where(run: Run) -> str:
    return f"in round {run.record['diverged_round'] + 1}" if run.status == "diverged" else "to its end"


def _of_others(definition: Definition, runs: dict[Cell, Run], root: Path) -> Iterator[Fault]:
    """What only shows when cells are seen together."""
    known = {root / cell.folder for cell in definition.cells()}
    for file in sorted(root.rglob("record.json")):
        if file.parent not in known:
            yield Fault(file.relative_to(root).as_posix(), "belongs to no cell of the definition")
    ended = {cell: run for cell, run in runs.items() if run.ended}
    try:
        versions.refuse_mixed(
            (definition.benchmark(cell.benchmark).benchmark, run.record["protocol"], cell)
            for cell, run in ended.items()
        )
    except UsageError as error:
        yield Fault("versions", str(error))
    first: dict[tuple[str, str, str], Cell] = {}
    for cell, run in ended.items():
        if "cell" not in run.record and "tables" in run.record:  # it does not say whose it is
            other = first.setdefault((cell.benchmark, cell.row, run.record["tables"]["curve.csv"]["sha256"]), cell)
            if other != cell:
                yield Fault(str(cell), f"the same curve as {other}")
