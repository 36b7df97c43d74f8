"""From cold start to the report: what of a whole leaderboard's time is imports, streams, cells and report."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

from ftml_bench.speed.machine import description, load
from ftml_bench.speed.measuring import at, row, spread, table

JOBS = (1, 2)
SHOWN = 12  # packages


def report(*, repeats: int, definition: str = "quick", jobs: tuple[int, ...] = JOBS) -> Iterator[str]:
    """Lines of Markdown: what the imports of a cell consist of; parts of a run with each number of processes.

    :param repeats: of the imports; the leaderboard is run once with each number.
    :param definition: the leaderboard.
    """
    yield f"# `{definition}` from cold start"
    yield ""
    yield f"Machine: {description()}."
    yield ""
    yield "## Imports of a cell"
    yield ""
    yield f"CPU seconds, one after the other in a new process; median of {repeats} (least to most)."
    yield ""
    yield from _stages(repeats)
    yield ""
    yield "The packages that take most of it, as shares of the wall time of all modules (`python -X importtime`):"
    yield ""
    at("imports by package")
    packages = by_package(_python("-X", "importtime", "-c", "import ftml_bench.runs.cell").stderr)
    total = sum(packages.values())
    yield ", ".join(f"{name} {seconds / total:.0%}" for name, seconds in list(packages.items())[:SHOWN]) + "."
    yield ""
    yield "## By part"
    yield ""
    runs, loads = [], []
    for count in jobs:
        at(f"{definition} with --jobs {count}")
        runs.append(_run(definition, count))
        loads.append(load())
    yield "Wall seconds of a run in new processes, into an empty folder."
    yield ""
    yield from table(["", *(f"--jobs {count} (load {found})" for count, found in zip(jobs, loads, strict=True))])
    for part in runs[0]:
        yield row([part, *(f"{seconds[part]:.1f}" for seconds in runs)])


def _stages(repeats: int) -> Iterator[str]:
    found = []
    for repeat in range(repeats):
        at("imports", f", repeat {repeat + 1} of {repeats}")
        found.append(json.loads(_cold("imports")))
    yield from table(["", "CPU seconds"])
    for stage in found[0]:
        yield row([stage, spread([seconds[stage] for seconds in found])])
    yield row(["all", spread([sum(seconds.values()) for seconds in found])])


def _run(definition: str, jobs: int) -> dict[str, float]:
    with TemporaryDirectory() as folder:
        return json.loads(_cold("run", definition, str(jobs), str(Path(folder, "run")), str(time.time())))


def _cold(*arguments: str) -> str:
    """The last line that a new process prints."""
    return _python("-m", "ftml_bench.speed.cold", *arguments).stdout.splitlines()[-1]


def _python(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-W", "ignore", *arguments], capture_output=True, text=True, check=True)


def by_package(importtime: str) -> dict[str, float]:
    """Seconds by top-level package, the most first.

    :param importtime: what `python -X importtime` has printed.
    """
    seconds: dict[str, float] = defaultdict(float)
    for own, module in re.findall(r"^import time:\s+(\d+) \|\s+\d+ \|\s+(\S+)$", importtime, re.M):
        seconds[module.partition(".")[0]] += int(own) / 1e6
    return dict(sorted(seconds.items(), key=lambda item: -item[1]))
