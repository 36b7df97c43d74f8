"""A buffer in a file against one in memory, on a made-up stream of a million images of 32 x 32: memory and time."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from avalanche.benchmarks import DatasetExperience
from torch import Tensor

from ftml_bench.benchmarks.stacked import StackedDataset
from ftml_bench.benchmarks.stream import avalanche_dataset
from ftml_bench.buffer import TaskBuffer
from ftml_bench.memory import keep_freed_memory
from ftml_bench.seeding import generator
from ftml_bench.speed.measuring import at

ROUND = 1_000  # images of a round
SHAPE = (3, 32, 32)
BATCH = 20  # draws that are timed together

Draw = Callable[[TaskBuffer, torch.Generator], tuple[Tensor, ...]]


def report(folder: str | os.PathLike[str], *, rounds: int = 1_000, repeats: int = 10) -> str:
    """Fill both buffers with the same stream, compare their draws, time them by turns; a table as text.

    The memory figures are of the buffer in a file, taken while the other was not there yet.

    :param folder: where the file goes; a million images take 3.1 GB there, and as much memory for the comparison.
    :param rounds: of a thousand images each.
    :param repeats: timings of `BATCH` draws of each kind.
    """
    keep_freed_memory()  # as in every cell
    file, memory = TaskBuffer(folder=folder), TaskBuffer()
    images = torch.empty((ROUND, *SHAPE), dtype=torch.uint8)  # one round at a time
    before, _ = megabytes()
    for t in range(rounds):
        at("filling the buffer in a file", f", round {t + 1} of {rounds}")
        file.add(_experience(t, StackedDataset(images, _fill(images, t), torch.arange(ROUND))))
    (filled, _), most, mapped = megabytes(), 0.0, 0.0
    rng = torch.Generator().manual_seed(0)
    for repeat in range(repeats):
        at("memory while it is drawn from", f", repeat {repeat + 1} of {repeats}")
        for draw in DRAWS.values():
            for _ in range(BATCH):
                draw(file, rng)
            own, of_files = megabytes()
            most, mapped = max(most, own), max(mapped, of_files)

    base = torch.empty((rounds * ROUND, *SHAPE), dtype=torch.uint8)
    at("filling the buffer in memory")
    for t, rows in enumerate(torch.arange(rounds * ROUND).split(ROUND)):
        memory.add(_experience(t, StackedDataset(base, _fill(base[t * ROUND : (t + 1) * ROUND], t), rows)))
    lines = [
        f"a buffer of {rounds * ROUND:,} images of {' x '.join(map(str, SHAPE))} bytes in {rounds:,} rounds, "
        f"{base.numel() / 1e9:.2f} GB",
        f"memory of the process's own with the buffer in a file: {before:.0f} MB before, {filled:.0f} MB when it was "
        f"filled, {most:.0f} MB at most while it was drawn from",
        f"beside it pages of files, which the system takes back when it needs them: {mapped:.0f} MB at most",
        f"{'ms of CPU time a draw':40} {'in memory':>12} {'in a file':>12} {'ratio':>8}",
    ]
    for name, draw in DRAWS.items():
        at(f"timing a {name}")
        pairs = [draw(buffer, torch.Generator().manual_seed(1)) for buffer in (memory, file)]
        if not all(torch.equal(a, b) for a, b in zip(*pairs, strict=True)):
            raise RuntimeError(f"{name}: the buffers draw different points")
        times = [[_milliseconds(draw, buffer, seed) for buffer in (memory, file)] for seed in range(repeats)]
        one, other = (statistics.median(column) for column in zip(*times, strict=True))
        ratio = statistics.median(b / a for a, b in times)
        lines.append(f"{name:40} {one:12.2f} {other:12.2f} {ratio:8.2f}")
    return "\n".join(lines)


def _meta_batch(buffer: TaskBuffer, rng: torch.Generator) -> tuple[Tensor, ...]:
    rounds = torch.randint(len(buffer.rounds), (25,), generator=rng).tolist()
    support, query, _ = buffer.split(rounds, 10, 10, rng)
    return *support, *query


def _groups(buffer: TaskBuffer, rng: torch.Generator) -> tuple[Tensor, ...]:
    return buffer.groups(torch.randint(len(buffer.rounds), (25,), generator=rng).tolist(), 20, rng)[0]


def _mixed(buffer: TaskBuffer, rng: torch.Generator) -> tuple[Tensor, ...]:
    return buffer.mixed(list(buffer.rounds), 500, rng, equal_tasks=False)[0]


DRAWS: dict[str, Draw] = {
    "meta-batch: 25 tasks of 10 + 10": _meta_batch,
    "minibatch of 25 groups of 20": _groups,
    "minibatch of 500, all datapoints alike": _mixed,
}


def _milliseconds(draw: Draw, buffer: TaskBuffer, seed: int) -> float:
    rng = torch.Generator().manual_seed(seed)
    start = time.process_time()
    for _ in range(BATCH):
        draw(buffer, rng)
    return 1e3 * (time.process_time() - start) / BATCH


def _fill(images: Tensor, t: int) -> Tensor:
    """Write the images of round t; their classes."""
    rng = generator(0, "stream", "made", t)
    images.view(torch.int64).random_(generator=rng)  # eight bytes at a time
    return torch.randint(10, (ROUND,), generator=rng)


def _experience(t: int, data: StackedDataset) -> DatasetExperience:
    experience = DatasetExperience(dataset=avalanche_dataset(t, data), current_experience=t)
    experience.stacked, experience.task_labels = data, [t]
    return experience


def megabytes() -> tuple[float, float]:
    """Memory of this process's own, and pages of files in it (programs, too); nan where the system does not say."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    except OSError:
        return float("nan"), float("nan")
    kilobytes = {name: int(value.split()[0]) for name, value in (line.split(":", 1) for line in lines if "Rss" in line)}
    own, of_files = (kilobytes.get(name, float("nan")) * 1024 / 1e6 for name in ("RssAnon", "RssFile"))
    return own, of_files
