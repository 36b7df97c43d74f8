"""How fast the engines are: meta-gradients of every engine, interleaved in one process, as ratios to `higher`.

With one thread, CPU time of the process, so that other work on the machine disturbs little; with several, wall time,
which wants a quiet machine. Before anything is timed all gradients are compared: an engine that computed another
gradient would be worth nothing.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator

import torch

from ftml_bench.memory import keep_freed_memory
from ftml_bench.speed.machine import description, flop, matmul_rate
from ftml_bench.speed.processes import higher_by_processes, peak_memory, usable_cores
from ftml_bench.speed.subjects import (
    ALONE,
    INNER_STEPS,
    QUERY,
    SUBJECTS,
    SUPPORT,
    TASKS,
    Gradient,
    check_agreement,
    subject,
)

MEMORY_WAYS = [ALONE, "higher", "batched, unroll", "batched, adjoint", "vmap"]
MEMORY_STEPS = (1, 5, 20, 50)


def report(*, repeats: int, threads: list[int] | None = None) -> Iterator[str]:
    """Lines of Markdown: peak memory, then for each number of threads every engine on every network.

    :param repeats: interleaved rounds, after one that is not counted.
    :param threads: of PyTorch; None: one, and all usable cores.
    """
    keep_freed_memory()
    yield "# Speed of the engines"
    yield ""
    yield f"Meta-gradients, second order: {TASKS} tasks of {SUPPORT} + {QUERY} points, {INNER_STEPS} inner steps."
    yield f"Machine: {description()}."
    yield ""
    yield "## Peak memory"
    yield ""
    yield "MiB that a meta-gradient of RainbowNet adds to a process of its own, by inner steps."
    yield ""
    yield from _table(["", *map(str, MEMORY_STEPS)])
    for way, peaks in peak_memory(MEMORY_WAYS, MEMORY_STEPS).items():
        yield _row([way, *(f"{peak:.0f}" for peak in peaks)])
    for count in threads or sorted({1, usable_cores()}):
        yield from _times(repeats, count)


def _times(repeats: int, threads: int) -> Iterator[str]:
    torch.set_num_threads(threads)
    clock = time.process_time if threads == 1 else time.perf_counter
    rate = matmul_rate(clock)
    yield ""
    yield f"## {threads} thread{'s' if threads > 1 else ''}"
    yield ""
    yield (
        f"{'CPU' if threads == 1 else 'Wall'} time, {repeats} interleaved repeats: median (min to max). "
        f"Matrix products (2048, float32) run at {rate / 1e9:.0f} GFLOP/s."
    )
    yield ""
    yield from _table(["network", "engine", "ms a task and step", f"times `{ALONE}`", "share of the matmul rate"])
    for name in SUBJECTS:
        check_agreement(name)
        ways = subject(name).all()
        work = flop(ways[ALONE])
        seconds = _interleaved(ways, repeats, clock)
        if threads > 1:
            seconds[f"{ALONE}, {threads} processes"] = higher_by_processes(name, TASKS, threads, repeats)
        for way, times in seconds.items():
            ratios = [a / b for a, b in zip(seconds[ALONE], times, strict=True)]
            share = work / statistics.median(times) / rate
            yield _row([name, way, _spread([1e3 * t / TASKS for t in times]), _spread(ratios), f"{share:.0%}"])


def _interleaved(ways: dict[str, Gradient], repeats: int, clock: Callable[[], float]) -> dict[str, list[float]]:
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    for repeat in range(repeats + 1):
        for way, gradient in ways.items():
            start = clock()
            gradient()
            if repeat:  # the first one warms up
                seconds[way].append(clock() - start)
    return seconds


def _table(header: list[str]) -> Iterator[str]:
    yield _row(header)
    yield _row(["---"] * len(header))


def _row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _spread(values: list[float]) -> str:
    return f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"
