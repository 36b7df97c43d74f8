"""Measurements in processes of their own: peak memory, and `higher` with a process a core."""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from ftml_bench.memory import keep_freed_memory


def gradient_of(way: str, device: str = "cpu", **sizes: Any) -> Any:
    """The meta-gradient of RainbowNet by a way: `ALONE`, or an engine, with its memory behind a comma.

    :param sizes: as `subject` takes them.
    """
    from ftml_bench.speed.peers import ALONE, higher_alone
    from ftml_bench.speed.subjects import subject

    rainbow = subject("RainbowNet", **sizes).to(device)
    name, _, memory = way.partition(", ")
    if way == ALONE:
        return partial(higher_alone(rainbow), rainbow.x, rainbow.y)
    return rainbow.by_engine(name, memory=memory or "auto", graphs=device == "cpu")


def _peak_of(prepared: Callable[..., Callable[[], Any]], arguments: dict[str, Any]) -> float:
    """Runs in a new process: MiB that one call of what is prepared adds to it at most; nan outside of Linux."""
    import torch

    torch.set_num_threads(1)
    keep_freed_memory()
    torch.ones(1)  # what the first operation of a process loads is not the call's
    call = prepared(**arguments)
    if not os.path.exists("/proc/self/clear_refs"):
        return float("nan")
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # the peak so far was that of the imports
    before = _status("VmRSS")
    call()
    return (_status("VmHWM") - before) / 2**10


def _status(field: str) -> int:
    """A line of /proc/self/status, in KiB."""
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith(field))


def _context() -> Any:
    if "forkserver" not in multiprocessing.get_all_start_methods():  # Windows
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["ftml_bench.speed.peers"])
    return context


def peaks(prepared: Callable[..., Callable[[], Any]], arguments: list[dict[str, Any]]) -> list[float]:
    """MiB that a call adds for each set of arguments, every figure in a process of its own (Linux).

    :param prepared: gives what is called; what it takes itself does not count.
    """
    with _context().Pool(1, maxtasksperchild=1) as pool:
        return [pool.apply(_peak_of, (prepared, each)) for each in arguments]


def peak_memory(way: str, sizes: list[dict[str, Any]]) -> list[float]:
    """MiB that a meta-gradient of RainbowNet adds to a process of its own, at each of `sizes`."""
    return peaks(partial(gradient_of, way), sizes)


def peak_memory_on_gpu(device: str, way: str, sizes: list[dict[str, Any]]) -> list[float]:
    """MiB of tensors at each of `sizes`, without CUDA graphs, which keep theirs."""
    import torch

    def peak(**size: Any) -> float:
        gradient = gradient_of(way, device, **size)
        gradient()
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        gradient()
        return (torch.cuda.max_memory_allocated(device) - before) / 2**20

    return [peak(**size) for size in sizes]


def _share(name: str, tasks: int, repeats: int, barrier: Any, results: Any) -> None:
    import torch

    from ftml_bench.speed.peers import higher_alone
    from ftml_bench.speed.subjects import subject

    torch.set_num_threads(1)
    keep_freed_memory()
    it = subject(name, tasks)
    gradient = partial(higher_alone(it), it.x, it.y)
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
