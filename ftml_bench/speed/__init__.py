"""How fast the engines are: meta-gradients of every engine, interleaved in one process, as ratios to `higher`.

With one thread, CPU time of the process, so that other work on the machine disturbs little; with several, and on a
GPU, wall time, which wants a quiet machine. Before anything is timed all gradients are compared: an engine that
computed another gradient would be worth nothing.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from functools import partial

import torch

from ftml_bench.memory import keep_freed_memory
from ftml_bench.speed.machine import clock_of, description, flop, matmul_rate
from ftml_bench.speed.processes import higher_by_processes, peak_memory, peak_memory_on_gpu, usable_cores
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
WARM_UPS = 2
SEEDS = 3  # whose meta-batches go through the engine in one pass, as those of a leaderboard do on a GPU


def report(*, repeats: int, threads: list[int] | None = None, device: str = "cpu") -> Iterator[str]:
    """Lines of Markdown: peak memory, then every engine on every network, for each number of threads or on a GPU.

    :param repeats: interleaved rounds, after those that are not counted.
    :param threads: of PyTorch; None: one, and all usable cores. Without meaning on a GPU.
    """
    keep_freed_memory()
    torch.backends.cudnn.allow_tf32 = False  # as in a cell
    yield "# Speed of the engines"
    yield ""
    yield f"Meta-gradients, second order: {TASKS} tasks of {SUPPORT} + {QUERY} points, {INNER_STEPS} inner steps."
    yield f"Machine: {description(device)}."
    yield ""
    yield "## Peak memory"
    yield ""
    on_gpu = device != "cpu"
    yield f"MiB that a meta-gradient of RainbowNet adds{'' if on_gpu else ' to a process of its own'}, by inner steps."
    yield ""
    yield from _table(["", *map(str, MEMORY_STEPS)])
    peaks_of = partial(peak_memory_on_gpu, device) if on_gpu else peak_memory
    for way, peaks in peaks_of(MEMORY_WAYS, MEMORY_STEPS).items():
        yield _row([way, *(f"{peak:.0f}" for peak in peaks)])
    if on_gpu:
        yield from _times(repeats, device, device, clock_of(device))
    for count in () if on_gpu else threads or sorted({1, usable_cores()}):
        torch.set_num_threads(count)
        clock = time.process_time if count == 1 else time.perf_counter
        yield from _times(repeats, device, f"{count} thread{'s' if count > 1 else ''}", clock, processes=count)


def _times(repeats: int, device: str, title: str, clock: Callable[[], float], *, processes: int = 1) -> Iterator[str]:
    rate = matmul_rate(clock, device)
    yield ""
    yield f"## {title}"
    yield ""
    yield (
        f"{'CPU' if clock is time.process_time else 'Wall'} time, {repeats} interleaved repeats: median (min to max). "
        f"Large matrix products in float32 run at {rate / 1e9:,.0f} GFLOP/s."
    )
    yield ""
    yield from _table(["network", "engine", "ms a task and step", f"times `{ALONE}`", "share of the matmul rate"])
    for name in SUBJECTS:
        check_agreement(name, device)
        ways = subject(name).to(device).all()
        work = flop(ways[ALONE])
        in_one_pass = f"batched, {SEEDS} seeds in one pass"
        ways[in_one_pass] = subject(name, SEEDS * TASKS).to(device).by_engine("batched", memory="unroll")
        seconds = _interleaved(ways, repeats, clock)
        seconds[in_one_pass] = [t / SEEDS for t in seconds[in_one_pass]]
        if processes > 1:
            seconds[f"{ALONE}, {processes} processes"] = higher_by_processes(name, TASKS, processes, repeats)
        for way, times in seconds.items():
            ratios = [a / b for a, b in zip(seconds[ALONE], times, strict=True)]
            share = work / statistics.median(times) / rate
            yield _row([name, way, _spread([1e3 * t / TASKS for t in times]), _spread(ratios), f"{share:.0%}"])


def _interleaved(ways: dict[str, Gradient], repeats: int, clock: Callable[[], float]) -> dict[str, list[float]]:
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    for repeat in range(-WARM_UPS, repeats):
        for way, gradient in ways.items():
            start = clock()
            gradient()
            if repeat >= 0:
                seconds[way].append(clock() - start)
    return seconds


def _table(header: list[str]) -> Iterator[str]:
    yield _row(header)
    yield _row(["---"] * len(header))


def _row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _spread(values: list[float]) -> str:
    return f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"
