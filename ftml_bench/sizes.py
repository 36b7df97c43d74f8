"""How many datapoints of a round have arrived after each arrival. Plain Python: verifying a result needs no PyTorch."""

from __future__ import annotations

from collections.abc import Sequence

from ftml_bench.errors import unknown

#: What a round is scored on after an arrival: "held_out", data that never arrive, the same every time; or
#: "next_arrival", what is about to arrive, as the authors' released code does. Then nothing is trained on the last
#: arrival of a round, which only scores the one before.
SCORES = ("held_out", "next_arrival")


def cumulative(n: int, each: Sequence[int]) -> list[int]:
    """The number of datapoints seen after each arrival of a round of `n`; the last size repeats.

    >>> cumulative(100, [5, 15, 40])
    [5, 20, 60, 100]
    """
    seen: list[int] = []
    while not seen or seen[-1] < n:
        size = each[min(len(seen), len(each) - 1)]
        seen.append(min((seen[-1] if seen else 0) + size, n))
    return seen


def scored(sizes: list[int], score: str) -> list[int]:
    """Those of a round's `cumulative` sizes after which the learner is scored, on held-out data or the next arrival.

    :raises UsageError: an unknown score.

    >>> scored([5, 20, 60, 100], "next_arrival")
    [5, 20, 60]
    """
    if score not in SCORES:
        raise unknown("score", score, SCORES)
    return sizes[:-1] if score == "next_arrival" else sizes
