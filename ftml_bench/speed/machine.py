"""What it was measured on, and how fast that multiplies matrices."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version

import torch
from torch.utils.flop_counter import FlopCounterMode

from ftml_bench.cores import usable_cores
from ftml_bench.speed.subjects import Gradient

_SIZE, _SIZE_ON_GPU = 2048, 8192  # of matrices that keep it busy


def description(device: str = "cpu") -> str:
    """Processor, cores and versions, in a line."""
    versions = [f"Python {platform.python_version()}"]
    for package in ("torch", "higher", "torchopt", "learn2learn", "jax", "avalanche-lib"):
        try:
            versions.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            continue
    gpu = "" if device == "cpu" else f"{torch.cuda.get_device_name(device)}; "
    return f"{gpu}{_cpu()}, {usable_cores()} usable cores, {platform.system()}; {', '.join(versions)}"


def _cpu() -> str:
    try:
        with open("/proc/cpuinfo") as file:
            return next(line.split(":", 1)[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def load() -> str:
    """How many processes wanted a core, this one included, on average over the last minute."""
    return f"{os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else "unknown"


def matmul_rate(clock=time.perf_counter, device: str = "cpu") -> float:
    """FLOP a second of a large float32 matrix product with the threads of this process; the best of ten."""
    size = _SIZE if device == "cpu" else _SIZE_ON_GPU
    a, b = torch.rand(size, size, device=device), torch.rand(size, size, device=device)
    best = float("inf")
    for _ in range(10):
        start = clock()
        a @ b
        best = min(best, clock() - start)
    return 2 * size**3 / best


def clock_of(device: str) -> Callable[[], float]:
    """Wall seconds, read when a GPU has done all that it was asked to."""

    def clock() -> float:
        torch.cuda.synchronize(device)
        return time.perf_counter()

    return clock


def flop(gradient: Gradient) -> int:
    """Floating-point operations of the convolutions and matrix products (2 a multiply-add)."""
    with FlopCounterMode(display=False) as counter:
        gradient()
    return counter.get_total_flops()
