"""Slopes by finite differences of several lengths, and whether they contradict one that is claimed."""

from __future__ import annotations

from dataclasses import dataclass

LENGTHS = (1e-6, 1e-7, 1e-8, 1e-9)  # of the differences along a direction, one after the other
LENGTHS_OF_SINGLE = (3e-3, 1e-3, 3e-4)


@dataclass(frozen=True)
class Differences:
    """A slope that an engine claims, and those that differences of one length show before and behind a point."""

    claimed: float
    before: float
    behind: float
    rounding: float  # of the two

    @property
    def central(self) -> float:
        return (self.before + self.behind) / 2

    @property
    def error(self) -> float:
        return abs(self.claimed - self.central)


def are_settled(tried: list[Differences]) -> bool:
    """Whether differences, the finest last, contradict the claim: the finest that rounding leaves agree with each other
    far better than with it, and have no kink (ReLU, max) between them."""
    for coarser, finer in zip(tried[-2::-1], tried[:0:-1], strict=True):
        unsettled = max(abs(finer.central - coarser.central), abs(finer.before - finer.behind))
        if finer.error > 10 * unsettled:
            return True
        if unsettled > 100 * finer.rounding:
            return False
    return False
