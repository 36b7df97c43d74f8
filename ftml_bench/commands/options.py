"""Options that commands share, and how their values are read."""

from __future__ import annotations

import argparse
import math
from contextlib import suppress
from pathlib import Path
from typing import Any

from ftml_bench.errors import UsageError, unknown


def add_data(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--data", metavar="DIR", help="folder of data sets (default: $FTML_BENCH_DATA, else the user's cache)"
    )


def add_running(parser: argparse.ArgumentParser, default: str) -> None:
    parser.add_argument("--out", type=Path, metavar="DIR", help=f"folder of the results (default {default})")
    parser.add_argument(
        "--jobs", type=size, metavar="N", help="cells at a time (default: the cores that are usable; 1 on a GPU)"
    )
    parser.add_argument("--device", default="cpu", metavar="NAME", help="to train on: cpu (default), cuda, cuda:1 ...")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    add_data(parser)


def check_device(name: str) -> None:
    if name == "cpu":
        return
    import torch

    gpus = [f"cuda:{i}" for i in range(torch.cuda.device_count())]
    usable = ["cpu", *(["cuda"] if gpus else []), *gpus]
    if name in usable:
        return
    if not gpus:
        raise UsageError(f"--device {name}: PyTorch finds no GPU here: expected cpu")
    raise unknown("--device", name, usable, {"gpu": "cuda"})


def key_values(option: str, texts: list[str]) -> dict[str, Any]:
    """{"rounds": 10} of ["rounds=10"]: values are read as in a definition."""
    from ftml_bench.runs.values import parse_yaml

    values: dict[str, Any] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not key or not equals:
            raise UsageError(f"{option}: expected key=value, got {text!r}")
        if key in values:
            raise UsageError(f"{option}: {key!r} is set twice")
        values[key] = parse_yaml(value, f"{option} {key}")
    return values


def integers(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected whole numbers with commas between them, got {text!r}") from None


def size(text: str) -> int:
    return _whole(text, least=1)


def seed(text: str) -> int:
    return _whole(text, least=0)


def rate(text: str) -> float:
    with suppress(ValueError):
        if 0 < float(text) < math.inf:
            return float(text)
    raise argparse.ArgumentTypeError(f"expected a finite number above 0, got {text!r}")


def _whole(text: str, least: int) -> int:
    with suppress(ValueError):  # of more digits than Python reads
        if text.isdecimal() and int(text) >= least:
            return int(text)
    raise argparse.ArgumentTypeError(f"expected a whole number of at least {least}, got {text!r}")
