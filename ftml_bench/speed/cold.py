"""Runs in a process of its own (`python -m`), which has imported nothing: says on its output what took how long."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

OF_CELL = "cold.json"  # in a cell's folder


def main(arguments: list[str]) -> None:
    """Prints a dictionary of seconds.

    :param arguments: "imports"; or "run", definition, number of processes, folder, and the wall time of the start.
    """
    if arguments[0] == "imports":
        print(json.dumps(imports()))
    else:
        _, definition, jobs, folder, began = arguments
        print(json.dumps(run(definition, int(jobs), Path(folder), float(began))))


def imports() -> dict[str, float]:
    """CPU seconds of what a cell imports, one thing after the other."""
    marks = [time.process_time()]
    import torch

    marks.append(time.process_time())
    torch.optim.SGD([torch.zeros(1)], 0.1)  # the first optimiser imports torch._dynamo
    marks.append(time.process_time())
    import avalanche  # noqa: F401

    marks.append(time.process_time())
    import ftml_bench.runs.cell  # noqa: F401

    marks.append(time.process_time())
    titles = ["PyTorch", "its first optimiser (torch._dynamo)", "Avalanche, with what it imports", "the suite itself"]
    return {title: b - a for title, a, b in zip(titles, marks[:-1], marks[1:], strict=True)}


def run(definition: str, jobs: int, folder: Path, began: float) -> dict[str, float]:
    """A leaderboard into an empty folder, as `ftml-bench leaderboard` does it: wall seconds by part."""
    from ftml_bench import report
    from ftml_bench.runs import cell, schedule
    from ftml_bench.runs import definition as definitions

    seconds = {"imports": time.time() - began}
    start = time.perf_counter()
    loaded = definitions.load(definition)
    cell.check(loaded, None)
    seconds["building every stream and row once, to check them"] = time.perf_counter() - start
    start = time.perf_counter()
    schedule.RUN_CELL = f"ftml_bench.speed.cold:{timed_cell.__name__}"
    schedule.run_cells(loaded, folder, jobs=jobs, data=None, quiet=True)
    wall = time.perf_counter() - start
    seconds["cells"] = wall
    start = time.perf_counter()
    report.write(folder)
    seconds["report: tables, figures, page"] = time.perf_counter() - start
    seconds["all"] = time.time() - began
    of_cells = [json.loads(path.read_text()) for path in folder.rglob(OF_CELL)]
    sums = {part: sum(each[part] for each in of_cells) for part in of_cells[0]}
    seconds |= {f"of cells, all processes together: {part}": sum_ for part, sum_ in sums.items()}
    seconds["of cells, all processes together: starting processes, waiting"] = jobs * wall - sum(sums.values())
    return seconds


def timed_cell(definition: Any, cell: Any, folder: Path, *arguments: Any, **keywords: Any) -> str:
    """`run_cell`, which leaves in its folder how long its parts took."""
    marks = [time.perf_counter()]
    from ftml_bench.runs import cell as cells

    marks.append(time.perf_counter())
    build, making = cells.build_benchmark, []

    def timed_build(spec: Any, seed: int, data: str | None) -> Any:
        start = time.perf_counter()
        benchmark = build(spec, seed, data)
        making.append(time.perf_counter() - start)
        return benchmark

    cells.build_benchmark = timed_build
    try:
        status = cells.run_cell(definition, cell, folder, *arguments, **keywords)
    finally:
        cells.build_benchmark = build
    rest = time.perf_counter() - marks[1] - sum(making)
    parts = {"imports": marks[1] - marks[0], "making the streams": sum(making), "training and evaluating": rest}
    (folder / OF_CELL).write_text(json.dumps(parts), encoding="utf-8")
    return status


if __name__ == "__main__":
    main(sys.argv[1:])
