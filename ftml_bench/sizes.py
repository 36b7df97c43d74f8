"""How many datapoints of a round have arrived after each arrival. Plain Python: verifying a result needs no PyTorch."""

from __future__ import annotations

from collections.abc import Sequence


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
