"""Cells run again, to see whether they come to the same curves."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from ftml_bench.errors import UsageError
from ftml_bench.runs.definition import Cell, Definition
from ftml_bench.runs.progress import say
from ftml_bench.runs.record import Run, read
from ftml_bench.runs.tasks import RUN_CELL, one_thread
from ftml_bench.runs.verify import Fault


def rerun(
    definition: Definition, runs: list[tuple[Cell, Run]], root: Path, count: int, data: str | None
) -> Iterator[Fault]:
    """Runs cells again, in a temporary folder and on the device that their records name, and compares.

    :param runs: the cells that have ended; `count` of them, spread evenly, are run.
    :param data: folder of data sets, or None for the usual places.
    :return: a fault for each that comes to other rows of `curve.csv` or `measures.csv`, or cannot be run.
    """
    one_thread()
    module, function = RUN_CELL.split(":")
    run_cell = getattr(import_module(module), function)
    count = min(count, len(runs))
    for number in range(count):
        cell, then = runs[number * len(runs) // count]
        say(f"{cell} is run again ({number + 1} of {count})")
        with TemporaryDirectory() as temporary:
            folder = Path(temporary, cell.folder)
            try:
                run_cell(definition, cell, folder, data, lambda done, total: None, device=then.record["device"])
                now = read(folder)
            except (Exception, SystemExit) as error:
                reason = str(error) if isinstance(error, UsageError) else f"{type(error).__name__}: {error}"
                yield Fault(str(cell), f"cannot be run again: {' '.join(reason.split())}")
                continue
            for name in ("curve.csv", "measures.csv"):
                before, after = (_content(place / name) for place in (root / cell.folder, folder))
                if before != after:
                    yield Fault(
                        str(cell), f"run again, {name} is another from {_where(before, after)}; {_others(then, now)}"
                    )


def _content(file: Path) -> list[bytes]:
    """The rows of a table; what its columns are called, `read` has seen to, and it was something else before."""
    return file.read_bytes().splitlines()[1:] if file.is_file() else []


def _where(before: list[bytes], after: list[bytes]) -> str:
    pairs = zip(before, after, strict=False)
    line = next((i for i, (a, b) in enumerate(pairs, 2) if a != b), min(len(before), len(after)) + 2)
    return f"line {line} of {len(before) + 1}"


def _others(then: Run, now: Run) -> str:
    """Which versions differ: what may explain it."""
    differ = [
        f"{name} {before or 'unknown'}, here {after or 'unknown'}"
        for name, before, after in _pairs(then.record, now.record)
        if before != after
    ]
    return f"other versions: {'; '.join(differ)}" if differ else "all versions are the same"


def _pairs(then: dict[str, Any], now: dict[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    for package in sorted({*then["versions"], *now["versions"]}):
        yield package, then["versions"].get(package), now["versions"].get(package)
    for key, name in (("version", "protocol"), ("benchmark_version", "stream")):
        yield name, then["protocol"].get(key) or 1, now["protocol"].get(key) or 1
    for key in ("commit", "machine", "device", "engine"):
        yield key, then.get(key), now.get(key)
