"""`ftml-bench speed`."""

from __future__ import annotations

import argparse

from ftml_bench.commands.options import check_device
from ftml_bench.errors import UsageError


def speed(options: argparse.Namespace) -> int:
    for name, counts in {"repeats": [options.repeats], "threads": options.threads or []}.items():
        for count in counts:
            if count < 1:
                raise UsageError(f"--{name}: expected a whole number of at least 1, got {count}")
    check_device(options.device)
    if options.run or options.buffer is not None:
        import torch

        torch.set_num_threads(options.threads[0] if options.threads else 1)
        if options.run:
            from ftml_bench.speed import arrivals

            print(arrivals.report(repeats=options.repeats, device=options.device))
        else:
            from ftml_bench.speed import buffers

            print(buffers.report(options.buffer, repeats=options.repeats))
        return 0
    from ftml_bench import speed

    lines = []
    for line in speed.report(repeats=options.repeats, threads=options.threads, device=options.device):
        print(line, flush=True)
        lines.append(f"{line}\n")
    if options.out is not None:
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / "engines.md").write_text("".join(lines), encoding="utf-8")
    return 0
