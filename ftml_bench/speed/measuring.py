"""How things are timed: by turns, so that what else the machine does falls on all alike; and the tables of it."""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from ftml_bench import bars

Clock = Callable[[], float]
_place = ""


def at(place: str, detail: str = "") -> None:
    """Say where it is: on a terminal in a line that the next one overwrites, an empty one clears it; elsewhere in a
    line for every new place, since details, such as repeats, are many."""
    global _place
    if bars.watched():
        print(f"\r\x1b[K{f'{place}{detail}'[:78]}", end="", file=sys.stderr, flush=True)
    elif place and place != _place:
        print(place, file=sys.stderr, flush=True)
    _place = place or _place


def interleaved(
    ways: Mapping[str, Callable[[], Any]], repeats: int, clock: Clock, place: str, *, warm_ups: int = 1
) -> dict[str, list[float]]:
    """Seconds of each way in each repeat; `warm_ups` rounds before are not counted.

    :param place: what is timed, for who watches.
    """
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    for repeat in range(-warm_ups, repeats):
        for way, call in ways.items():
            at(place, f": {way}, {f'repeat {repeat + 1} of {repeats}' if repeat >= 0 else 'warming up'}")
            start = clock()
            call()
            if repeat >= 0:
                seconds[way].append(clock() - start)
    return seconds


def table(header: Iterable[str]) -> Iterator[str]:
    """The head of a table in Markdown."""
    header = list(header)
    yield row(header)
    yield row(["---", *["--:"] * (len(header) - 1)])


def row(cells: Iterable[str]) -> str:
    """A line of a table in Markdown."""
    return f"| {' | '.join(cells)} |"


def spread(values: list[float]) -> str:
    """Median and range."""
    return f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"
