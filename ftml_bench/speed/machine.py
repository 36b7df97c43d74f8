"""What it was measured on, and how fast that multiplies matrices."""

from __future__ import annotations

import platform
import time
from importlib.metadata import PackageNotFoundError, version

import torch
from torch.utils.flop_counter import FlopCounterMode

from ftml_bench.speed.processes import usable_cores
from ftml_bench.speed.subjects import Gradient

_SIZE = 2048


def description() -> str:
    """CPU, cores and versions, in a line."""
    versions = [f"Python {platform.python_version()}"]
    for package in ("torch", "higher", "torchopt"):
        try:
            versions.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            continue
    return f"{_cpu()}, {usable_cores()} usable cores, {platform.system()}; {', '.join(versions)}"


def _cpu() -> str:
    try:
        with open("/proc/cpuinfo") as file:
            return next(line.split(":", 1)[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def matmul_rate(clock=time.perf_counter) -> float:
    """FLOP a second of a large float32 matrix product with the threads of this process; the best of ten."""
    a, b = torch.rand(_SIZE, _SIZE), torch.rand(_SIZE, _SIZE)
    best = float("inf")
    for _ in range(10):
        start = clock()
        a @ b
        best = min(best, clock() - start)
    return 2 * _SIZE**3 / best


def flop(gradient: Gradient) -> int:
    """Floating-point operations of the convolutions and matrix products (2 a multiply-add)."""
    with FlopCounterMode(display=False) as counter:
        gradient()
    return counter.get_total_flops()
