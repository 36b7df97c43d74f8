"""Measurements in processes of their own: peak memory, and `higher` with a process a core."""

from __future__ import annotations

import multiprocessing
import os
import time
from typing import Any

from ftml_bench.memory import keep_freed_memory


def _gradient_of(way: str, inner_steps: int, device: str = "cpu") -> Any:
    from ftml_bench.speed.subjects import ALONE, subject

    rainbow = subject("RainbowNet").to(device)
    name, _, memory = way.partition(", ")
    if way == ALONE:
        return rainbow.higher_alone(inner_steps=inner_steps)
    return rainbow.by_engine(name, inner_steps=inner_steps, memory=memory or "auto", graphs=device == "cpu")


def _peak_of(way: str, inner_steps: int) -> float:
    """Runs in a new process: MiB that one meta-gradient of RainbowNet adds to it at most; nan outside of Linux."""
    import torch

    torch.set_num_threads(1)
    keep_freed_memory()
    gradient = _gradient_of(way, inner_steps)
    if not os.path.exists("/proc/self/clear_refs"):
        return float("nan")
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # the peak so far was that of the imports
    before = _status("VmRSS")
    gradient()
    return (_status("VmHWM") - before) / 2**10


def _status(field: str) -> int:
    """A line of /proc/self/status, in KiB."""
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith(field))


def _context() -> Any:
    if "forkserver" not in multiprocessing.get_all_start_methods():  # Windows
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["ftml_bench.speed.subjects"])
    return context


def peak_memory(ways: list[str], steps: tuple[int, ...]) -> dict[str, list[float]]:
    """MiB at each number of inner steps, every figure in a process of its own (Linux)."""
    with _context().Pool(1, maxtasksperchild=1) as pool:
        return {way: [pool.apply(_peak_of, (way, k)) for k in steps] for way in ways}


def peak_memory_on_gpu(device: str, ways: list[str], steps: tuple[int, ...]) -> dict[str, list[float]]:
    """MiB of tensors at each number of inner steps, without CUDA graphs, which keep theirs."""
    import torch

    def peak(way: str, inner_steps: int) -> float:
        gradient = _gradient_of(way, inner_steps, device)
        gradient()
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        gradient()
        return (torch.cuda.max_memory_allocated(device) - before) / 2**20

    return {way: [peak(way, k) for k in steps] for way in ways}


def _share(name: str, tasks: int, repeats: int, barrier: Any, results: Any) -> None:
    import torch

    from ftml_bench.speed.subjects import subject

    torch.set_num_threads(1)
    keep_freed_memory()
    gradient = subject(name, tasks).higher_alone()
    gradient()
    for _ in range(repeats):
        barrier.wait()
        start = time.perf_counter()
        gradient()
        barrier.wait()  # the slowest counts
        results.put(time.perf_counter() - start)


def higher_by_processes(name: str, tasks: int, processes: int, repeats: int) -> list[float]:
    """Wall seconds of `higher` alone on a meta-batch that is shared out among processes of one thread each."""
    context = _context()
    barrier, results = context.Barrier(processes), context.Queue()
    shares = [tasks // processes + (i < tasks % processes) for i in range(processes)]
    workers = [context.Process(target=_share, args=(name, share, repeats, barrier, results)) for share in shares]
    for worker in workers:
        worker.start()
    seconds = [results.get() for _ in range(processes * repeats)]
    for worker in workers:
        worker.join()
    # every process reports each repeat, within the time that a barrier takes
    return sorted(seconds)[::processes]


def usable_cores() -> int:
    """The cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
