"""`ftml-bench speed`."""

from __future__ import annotations

import argparse
from collections.abc import Iterator

from ftml_bench.commands.options import check_device
from ftml_bench.errors import UsageError

TABLES = ("growth", "baselines", "start")  # instead of the engines'; on a CPU, with as many threads as they say


def speed(options: argparse.Namespace) -> int:
    for name, counts in {"repeats": [options.repeats], "threads": options.threads or []}.items():
        for count in counts:
            if count < 1:
                raise UsageError(f"--{name}: expected a whole number of at least 1, got {count}")
    check_device(options.device)
    if options.run or options.buffer is not None:
        _print_text(options)
        return 0
    chosen = next((name for name in TABLES if getattr(options, name)), "engines")
    if chosen != "engines" and (options.device != "cpu" or options.threads):
        raise UsageError(f"--{chosen}: is measured on a CPU with a thread a process: expected no --device or --threads")
    from ftml_bench.speed.measuring import at

    lines = []
    for line in _lines(chosen, options):
        at("")
        print(line, flush=True)
        lines.append(f"{line}\n")
    if options.out is not None:
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / f"{chosen}.md").write_text("".join(lines), encoding="utf-8")
    return 0


def _lines(chosen: str, options: argparse.Namespace) -> Iterator[str]:
    if chosen == "growth":
        from ftml_bench.speed import growth

        return growth.report(options.out, repeats=options.repeats)
    if chosen == "baselines":
        from ftml_bench.speed import baselines

        return baselines.report(repeats=options.repeats)
    if chosen == "start":
        from ftml_bench.speed import start

        return start.report(repeats=options.repeats)
    from ftml_bench.speed import engines

    return engines.report(repeats=options.repeats, threads=options.threads, device=options.device)


def _print_text(options: argparse.Namespace) -> None:
    import torch

    torch.set_num_threads(options.threads[0] if options.threads else 1)
    if options.run:
        from ftml_bench.speed import arrivals

        print(arrivals.report(repeats=options.repeats, device=options.device))
    else:
        from ftml_bench.speed import buffers

        print(buffers.report(options.buffer, repeats=options.repeats))
