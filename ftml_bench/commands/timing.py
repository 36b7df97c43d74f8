"""`ftml-bench speed`."""

from __future__ import annotations

import argparse
import errno
import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from ftml_bench.commands.options import check_device
from ftml_bench.errors import UsageError
from ftml_bench.files import replacing

TABLES = ("growth", "baselines", "start")  # instead of the engines'; on a CPU, with as many threads as they say


def speed(options: argparse.Namespace) -> int:
    check_device(options.device)
    if options.run or options.buffer is not None:
        if options.out is not None:
            raise UsageError(f"{'--run' if options.run else '--buffer'} prints its table: expected no --out")
        _print_text(options)
        return 0
    chosen = next((name for name in TABLES if getattr(options, name)), "engines")
    if chosen != "engines" and (options.device != "cpu" or options.threads):
        raise UsageError(f"--{chosen}: is measured on a CPU with a thread a process: expected no --device or --threads")
    from ftml_bench.speed.measuring import at

    with _table(options.out, f"{chosen}.md") as file:  # opened before the minutes that it takes
        for line in _lines(chosen, options):
            at("")
            print(line, flush=True)
            file.write(f"{line}\n".encode())
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

    from ftml_bench.speed.measuring import at

    torch.set_num_threads(options.threads[0] if options.threads else 1)
    if options.run:
        from ftml_bench.speed import arrivals

        text = arrivals.report(repeats=options.repeats, device=options.device)
    else:
        from ftml_bench.speed import buffers

        text = buffers.report(options.buffer, repeats=options.repeats)
    at("")
    print(text)


@contextmanager
def _table(folder: Path | None, name: str) -> Iterator[BinaryIO]:
    """A file in a folder, to write; without a folder, what is written is lost.

    :raises UsageError: it cannot be written.
    """
    if folder is None:
        yield io.BytesIO()
        return
    path = folder / name
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        with replacing(path) as file:
            yield file
    except OSError as error:
        raise UsageError(f"{path} cannot be written: {error.strerror or error}") from error
