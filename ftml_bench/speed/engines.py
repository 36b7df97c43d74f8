"""How fast the engines are: meta-gradients of every engine and of other libraries, interleaved in one process.

With one thread, CPU time of the process, so that other work on the machine disturbs little; with several, and on a
GPU, wall time, which wants a quiet machine. Before anything is timed all gradients are compared: an engine that
computed another gradient would be worth nothing, and of another library the difference is said.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from ftml_bench.cores import usable_cores
from ftml_bench.memory import keep_freed_memory
from ftml_bench.speed.machine import clock_of, description, flop, load, matmul_rate
from ftml_bench.speed.measuring import Clock, at, interleaved, row, spread, table
from ftml_bench.speed.peers import ALONE, PEERS, MetaGradient, in_a_line, peers_of
from ftml_bench.speed.processes import higher_by_processes, peak_memory, peak_memory_on_gpu
from ftml_bench.speed.subjects import INNER_STEPS, QUERY, SUBJECTS, SUPPORT, TASKS, has_native, subject

MEMORY_STEPS = (1, 5, 20, 50)
TASK_COUNTS = (1, 5, TASKS)
WARM_UPS = 1
SEEDS = 3  # whose meta-batches go through the engine in one pass, as those of a leaderboard do on a GPU


def memory_ways(device: str = "cpu") -> list[str]:
    """The ways whose peak memory is measured."""
    native = ["native"] if device == "cpu" and has_native() else []
    return [ALONE, "higher", *native, "batched, unroll", "batched, adjoint", "vmap"]


def report(*, repeats: int, threads: list[int] | None = None, device: str = "cpu") -> Iterator[str]:
    """Lines of Markdown: peak memory, then every engine on every network, for each number of threads or on a GPU.

    :param repeats: interleaved rounds, after those that are not counted.
    :param threads: of PyTorch; None: one, and all usable cores. Without meaning on a GPU.
    """
    keep_freed_memory()
    torch.backends.cudnn.allow_tf32 = False  # as in a cell
    yield "# Speed of the engines"
    yield ""
    yield f"Meta-gradients, second order: T tasks of {SUPPORT} + {QUERY} points, {INNER_STEPS} inner steps."
    yield f"Machine: {description(device)}."
    yield ""
    yield "## Peak memory"
    yield ""
    on_gpu = device != "cpu"
    place = "" if on_gpu else " to a process of its own"
    yield f"MiB that a meta-gradient of RainbowNet adds{place}, T = {TASKS}, by inner steps."
    yield ""
    yield from table(["", *map(str, MEMORY_STEPS)])
    peaks_of = partial(peak_memory_on_gpu, device) if on_gpu else peak_memory
    for way in memory_ways(device):
        at(f"peak memory of {way}")
        peaks = peaks_of(way, [{"inner_steps": steps} for steps in MEMORY_STEPS])
        yield row([way, *(f"{peak:.0f}" for peak in peaks)])
    if on_gpu:
        yield from _times(repeats, device, device, clock_of(device))
    for count in () if on_gpu else threads or sorted({1, usable_cores()}):
        torch.set_num_threads(count)
        clock = time.process_time if count == 1 else time.perf_counter
        yield from _times(repeats, device, f"{count} thread{'s' if count > 1 else ''}", clock, processes=count)


def _times(repeats: int, device: str, title: str, clock: Clock, *, processes: int = 1) -> Iterator[str]:
    rate = matmul_rate(clock, device)
    yield ""
    yield f"## {title}"
    yield ""
    yield (
        f"{'CPU' if clock is time.process_time else 'Wall'} time, median of {repeats} interleaved repeats: "
        f"milliseconds a task, and how many times as fast as `{ALONE}` (least to most). Large matrix products in "
        f"float32 run at {rate / 1e9:,.0f} GFLOP/s. The share of that rate counts the operations of `higher`, of which "
        f"others may need fewer. The last column is the relative difference of the gradient from "
        f"that of `higher` by the same rule of batch norm, over three tasks in float64 (`torch.compile`: in float32)."
    )
    for name in SUBJECTS:
        yield ""
        yield from _of_network(name, repeats, device, clock, rate, processes)


@dataclass
class _Way:
    """What is timed of a way: seconds of a meta-gradient by T, and those of `ALONE` beside it."""

    seconds: dict[int, list[float]]
    difference: float | None = None


def _of_network(name: str, repeats: int, device: str, clock: Clock, rate: float, processes: int) -> Iterator[str]:
    """The table of a network, and what there is to say about other libraries."""
    at(f"{name}: comparing gradients")
    one_thread = processes == 1 and device == "cpu"
    peers, notes = peers_of(name, subject(name).to(device), compiled=one_thread)
    found, more = differences(name, peers, device)
    notes += more
    peers = {title: peer for title, peer in peers.items() if title in found}
    ways: dict[str, _Way] = {}
    for tasks in TASK_COUNTS:
        it = subject(name, tasks).to(device)
        calls = {title: partial(peer, it.x, it.y) for title, peer in peers.items()} | it.by_engines()
        in_one_pass = f"batched, {SEEDS} seeds in one pass"
        calls[in_one_pass] = subject(name, SEEDS * tasks).to(device).by_engine("batched", memory="unroll")
        work = flop(calls[ALONE])  # of the last, the largest
        seconds = interleaved(calls, repeats, clock, f"{name}, T = {tasks}", warm_ups=WARM_UPS)
        seconds[in_one_pass] = [t / SEEDS for t in seconds[in_one_pass]]
        if processes > 1 and tasks >= processes:
            at(f"{name}, T = {tasks}: {ALONE}, {processes} processes")
            by_processes = higher_by_processes(name, tasks, processes, repeats)
            seconds[f"{ALONE}, {processes} processes"] = by_processes
        for title, times in seconds.items():
            ways.setdefault(title, _Way({}, found.get(title))).seconds[tasks] = times
    yield f"### {name}"
    yield ""
    yield f"Load of the machine (others included) at the end of these timings: {load()}."
    yield ""
    heads = [head for tasks in TASK_COUNTS for head in (f"T = {tasks}: ms", "times")]
    yield from table(["", *heads, "of the matmul rate", "differs by"])
    for title, way in ways.items():
        share = work / statistics.median(way.seconds[TASKS]) / rate
        difference = "" if way.difference is None else f"{way.difference:.0e}"
        yield row([title, *_cells(way, ways[ALONE]), f"{share:.0%}", difference])
    for note in notes:
        yield ""
        yield note


def _cells(way: _Way, alone: _Way) -> Iterator[str]:
    for tasks in TASK_COUNTS:
        if tasks in way.seconds:
            times = way.seconds[tasks]
            yield f"{1e3 * statistics.median(times) / tasks:.2f}"
            yield spread([a / b for a, b in zip(alone.seconds[tasks], times, strict=True)])
        else:
            yield from ("", "")


def differences(name: str, peers: dict[str, MetaGradient], device: str = "cpu") -> tuple[dict[str, float], list[str]]:
    """How far gradients are from that of `higher` under the same rule, relatively; and a line for each peer that
    compiles (how long that takes) or cannot.

    In double precision and of three tasks: in single precision one ReLU that rounding turns may change it by a tenth.

    :param peers: in single precision.
    :raises RuntimeError: an engine of the suite differs by more than 1e-9.
    """
    single = subject(name, tasks=3).to(device)
    double = subject(name, tasks=3).to(device).double()
    alone = _vector(PEERS[ALONE].build(double)(double.x, double.y))
    vectors = {way: _vector(gradient()) for way, gradient in double.by_engines().items()}
    found, notes = {}, []
    for way, vector in vectors.items():
        found[way] = _distance(vector, alone if "own batch" in way else vectors["higher"])
        if not found[way] <= 1e-9:
            raise RuntimeError(f"{name}: the gradient of {way!r} differs from that of higher by {found[way]:.1e}")
    for title, peer in peers.items():
        at(f"{name}: the gradient of {title}")
        try:
            if PEERS[title].compiles:
                start = time.perf_counter()
                gradient = peer(single.x, single.y)
                seconds = time.perf_counter() - start
                notes.append(
                    f"{title}: its first call, which compiles, took {seconds:.0f} s (load {load()}; less where a cache "
                    "on disk has some of it)."
                )
            if PEERS[title].in_double:
                gradient = PEERS[title].build(double)(double.x, double.y)
            found[title] = _distance(_vector(gradient).double(), alone)
        except Exception as error:  # somebody else's library may fail in any way
            notes.append(f"{title}: {in_a_line(error)}")
    return found, notes


def _vector(gradients: list[Tensor]) -> Tensor:
    return torch.cat([gradient.flatten() for gradient in gradients])


def _distance(vector: Tensor, reference: Tensor) -> float:
    return float((vector - reference).norm() / reference.norm())
