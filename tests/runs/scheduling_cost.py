"""What it costs to have cells run, without the cells: seconds of 10, 100 and 1,000 that do nothing, here and with Ray.

python tests/runs/scheduling_cost.py
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

from ftml_bench.runs import schedule
from ftml_bench.runs.cluster import HERE, RayPool
from ftml_bench.runs.definition import from_dict
from ftml_bench.runs.pool import LocalPool, Pool


def nothing(definition, cell, folder, data, on_evaluation, device="cpu") -> str:
    """Stands for a cell."""
    return "finished"


def measure(pool: Pool, cells: int) -> tuple[float, float]:
    """Seconds until all cells have ended, and until the pool has."""
    entry = {"benchmark": "Sinusoids", "steps": 1, "optimizer": {"name": "Adam"}, "strategies": {"FTML": {}}}
    board = from_dict({"name": "cost", "seeds": list(range(cells)), "benchmarks": {"waves": entry}}, "cost")
    ended = []
    cancel = pool.cancel

    def end() -> None:
        ended.append(time.perf_counter())
        cancel()
        ended.append(time.perf_counter())

    pool.cancel = end  # type: ignore[method-assign]
    with tempfile.TemporaryDirectory() as folder:
        begun = time.perf_counter()
        schedule.run_cells(board, Path(folder, "out"), place=lambda *_: pool, data=None, quiet=True)
    return ended[0] - begun, ended[1] - ended[0]


def main() -> int:
    schedule.RUN_CELL = f"{Path(__file__).stem}:nothing"
    for name, make in {"two processes": lambda: LocalPool(2), "Ray, two cores": lambda: RayPool(HERE, 2)}.items():
        for cells in (1, 10, 100, 1000, 2000):
            begun = time.perf_counter()
            pool = make()
            started = time.perf_counter() - begun
            run, end = measure(pool, cells)
            speed = cells / run
            print(f"{name}: {cells} cells: {started:.1f} s to start, {run:.2f} s, {end:.1f} s to end: {speed:.0f}/s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
