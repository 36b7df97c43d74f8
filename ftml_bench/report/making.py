"""How the rows of a leaderboard were made: settings, engine, versions, and a definition that makes a row again."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

import yaml

from ftml_bench.runs.definition import Cell, Definition
from ftml_bench.runs.record import Run

_OF_RUN = ("command", "commit", "device", "machine", "engine", "engine_memory", "engine_note")
_OF_PROTOCOL = (
    "strategy",
    "optimizer",
    "steps",
    "batch_norm",
    "parameters",
    "version",
    "benchmark_version",
    "renderer",
    "image_set",
)

Facts = dict[str, str]


def of_all(definition: Definition, runs: list[tuple[Cell, Run]]) -> Facts:
    """What holds for the leaderboard: several values where its runs were not made alike."""
    records = [run.record for _, run in runs]
    facts = {"definition": definition.hash, "seeds": ", ".join(map(str, definition.seeds))}
    facts |= {name: _distinct(record.get(name) for record in records) for name in _OF_RUN}
    facts |= _versions(records)
    started = [record["started"] for record in records if record.get("started")]
    finished = [record["finished"] for record in records if record.get("finished")]
    if started and finished:
        facts["run"] = f"{min(started)} to {max(finished)}"
    return _said(facts)


def of_row(definition: Definition, benchmark: str, row: str, runs: list[tuple[Cell, Run]]) -> dict[str, Any]:
    """A row's `facts`, its `settings`, and `text`, a definition of this row alone that makes its cells again."""
    records = [run.record for cell, run in runs if (cell.benchmark, cell.row) == (benchmark, row)]
    protocols = [record.get("protocol", {}) for record in records]
    facts = {name: _distinct(record.get(name) for record in records) for name in _OF_RUN}
    facts |= {name: _distinct(_as_given(one[name]) for one in protocols if one.get(name)) for name in _OF_PROTOCOL}
    facts |= _versions(records)
    names = dict.fromkeys(name for one in protocols for name in one.get("settings", {}))
    settings = {
        name: _distinct(_as_given(one["settings"][name]) for one in protocols if name in one.get("settings", {}))
        for name in names
    }
    return {"name": row, "facts": _said(facts), "settings": settings, "text": alone(definition, benchmark, row)}


def alone(definition: Definition, benchmark: str, row: str) -> str:
    """The definition of one row, as YAML; a comparator, which cannot stand alone, with the first that is none."""
    content = definition.to_dict()
    spec = content["benchmarks"][benchmark]
    rows = spec["strategies"]
    beside = next(name for name, own in rows.items() if not own.get("comparator"))
    names = [beside, row] if rows[row].get("comparator") else [row]
    spec = {**spec, "strategies": {name: rows[name] for name in names}}
    content |= {"name": f"{definition.name}-row", "description": "", "benchmarks": {benchmark: spec}}
    return yaml.safe_dump(content, sort_keys=False, allow_unicode=True)


def _versions(records: list[dict[str, Any]]) -> Facts:
    packages = sorted({package for record in records for package in record.get("versions", {})})
    return {package: _distinct(record.get("versions", {}).get(package) for record in records) for package in packages}


def _as_given(value: Any) -> str:
    """A setting as a definition has it."""
    return value if isinstance(value, str) else json.dumps(value)


def _said(facts: Facts) -> Facts:
    return {name.replace("_", " "): value for name, value in facts.items() if value}


def _distinct(values: Iterable[Any]) -> str:
    """The different values among those of all runs: more than one means that the runs were not made alike."""
    return "; ".join(sorted({str(value) for value in values if value is not None}))
