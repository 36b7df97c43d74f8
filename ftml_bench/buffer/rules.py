"""What a bounded buffer keeps of earlier rounds. The current round is there whole while it lasts.

The paper keeps everything and names limited memory as future work (section 8). A rule is asked when a round begins; it
draws from generators of its own, so that a learner with a bound that is never reached is the learner without one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from ftml_bench.buffer.round import Round
from ftml_bench.errors import UsageError, at_least, shown
from ftml_bench.seeding import generator


class Rule(Protocol):
    """Which points of earlier rounds stay."""

    def keep(self, rounds: Mapping[int, Round], seed: int) -> dict[int, Tensor]:
        """The rows that stay of each round, sorted int64; an empty one is let go of.

        :param rounds: by number, in the order of their arrival.
        """
        ...


def see_that_it_is_one(rule: object) -> None:
    """
    :raises UsageError: for what is neither a rule nor None, such as the class of one, or a number.
    """
    if rule is not None and (isinstance(rule, type) or not hasattr(rule, "keep")):
        raise UsageError(f"buffer={shown(rule)}: expected a rule, such as Reservoir(1000), or None, which keeps all")


@dataclass(frozen=True)
class LastRounds:
    """The last rounds, whole: those that began last, where data of earlier ones come again.

    :param rounds: how many; 0: nothing of earlier rounds.
    """

    rounds: int

    def __post_init__(self) -> None:
        at_least(0, rounds=self.rounds)

    def keep(self, rounds: Mapping[int, Round], seed: int) -> dict[int, Tensor]:
        """See `Rule.keep`."""
        last = list(rounds)[max(0, len(rounds) - self.rounds) :]
        return {number: torch.arange(len(r) if number in last else 0) for number, r in rounds.items()}


@dataclass(frozen=True)
class FirstInFirstOut:
    """The points that came last, round by round: of data that come to an earlier round again its beginning counts.

    :param points: how many.
    """

    points: int

    def __post_init__(self) -> None:
        at_least(1, points=self.points)

    def keep(self, rounds: Mapping[int, Round], seed: int) -> dict[int, Tensor]:
        """See `Rule.keep`."""
        kept, left = {}, self.points
        for number, r in reversed(list(rounds.items())):
            kept[number] = torch.arange(max(0, len(r) - left), len(r))
            left = max(0, left - len(r))
        return {number: kept[number] for number in rounds}


@dataclass(frozen=True)
class Reservoir:
    """A uniform sample of all points so far (Vitter 1985), by random keys of which the smallest stay.

    :param points: how many.
    """

    points: int

    def __post_init__(self) -> None:
        at_least(1, points=self.points)

    def keep(self, rounds: Mapping[int, Round], seed: int) -> dict[int, Tensor]:
        """See `Rule.keep`."""
        keys = _keys(rounds, seed)
        return _smallest(keys, torch.zeros(sum(map(len, keys.values())), dtype=torch.int64), [self.points])


@dataclass(frozen=True)
class ShareOfClasses:
    """As many points of each class, each class a uniform sample of its points so far.

    :param points: how many of all classes; what a class does not fill is left empty, as in Avalanche's
        `ClassBalancedBuffer`.
    """

    points: int

    def __post_init__(self) -> None:
        at_least(1, points=self.points)

    def keep(self, rounds: Mapping[int, Round], seed: int) -> dict[int, Tensor]:
        """See `Rule.keep`.

        :raises UsageError: if points have no classes, or several.
        """
        of_points = torch.cat([r.class_of_each for r in rounds.values()])
        classes, places = of_points.unique(return_inverse=True)
        share, more = divmod(self.points, len(classes))
        return _smallest(_keys(rounds, seed), places, [share + (i < more) for i in range(len(classes))])


CURRENT_ROUND = LastRounds(0)  # for learners that draw from no other
RULES: dict[str, type] = {kind.__name__: kind for kind in (LastRounds, FirstInFirstOut, Reservoir, ShareOfClasses)}


def _keys(rounds: Mapping[int, Round], seed: int) -> dict[int, Tensor]:
    return {number: r.draw_keys(generator(seed, "kept", number, r.arrived)) for number, r in rounds.items()}


def _smallest(keys: dict[int, Tensor], groups: Tensor, sizes: list[int]) -> dict[int, Tensor]:
    """The rows of each round whose keys are among the smallest of their group.

    :param groups: of all points, round by round, (N,); numbers into `sizes`, how many of each stay.
    """
    joined = torch.cat(list(keys.values()))
    kept = torch.zeros(len(joined), dtype=torch.bool)
    for group, size in enumerate(sizes):
        rows = (groups == group).nonzero().flatten()
        kept[rows[joined[rows].argsort(stable=True)[:size]]] = True
    parts = kept.split([len(k) for k in keys.values()])
    return {number: part.nonzero().flatten() for number, part in zip(keys, parts, strict=True)}
