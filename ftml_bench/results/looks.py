"""How a learner looks wherever it is drawn: its colour, and the dash and marker of its variants."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from ftml_bench.runs.definition import BenchmarkSpec

# Okabe and Ito (2008), told apart with any kind of colour vision; on white with Tol's wine for their yellow. On dark
# with white for their black, and lighter where names in these colours could not be read.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#000000", "#CC79A7", "#E69F00", "#56B4E9", "#882255")
ON_DARK = ("#5A89DA", "#DA6E22", "#3EB78E", "#FFFFFF", "#CC79A7", "#E69F00", "#8FD8F5", "#F0E442")
GREY, GREY_ON_DARK = "#9A9A9A", "#7F858C"
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
DASHES: tuple[tuple[float, ...], ...] = ((), (4, 1.5), (1, 1.3), (4, 1.3, 1, 1.3))
MOST = 8  # rows in colours

# Ours are the same in every leaderboard: a learner's place in the lists above, and a variant's dash.
LEARNERS = {"FTML": 0, "FollowTheLeader": 1, "TrainOnEverything": 2, "FromScratch": 3}
VARIANTS = {
    "FTML last layer": 1,
    "FollowTheLeader Adam": 1,
    "FollowTheLeader round end": 2,
    "FollowTheLeader gd": 3,
    "TrainOnEverything groups": 1,
    "TrainOnEverything heads": 2,
    "FromScratch x10": 1,
    "FromScratch anew": 2,
}


@dataclass(frozen=True)
class Look:
    """How a row is drawn.

    :param color: on white; `on_dark` on a dark page.
    :param dash: lengths of strokes and gaps, in widths of the line; empty: solid.
    :param marker: as Matplotlib calls it; empty: none.
    :param grey: whether the row is one of those that have no colour left: thin, behind the others.
    """

    color: str
    on_dark: str
    dash: tuple[float, ...]
    marker: str
    grey: bool = False

    @property
    def linestyle(self) -> str | tuple[int, tuple[float, ...]]:
        """The dash as Matplotlib takes it."""
        return (0, self.dash) if self.dash else "solid"


def looks(benchmarks: Iterable[BenchmarkSpec]) -> dict[str, Look]:
    """Row name -> look, for all benchmarks of a leaderboard; see `of_rows`."""
    return of_rows({row.name: row.strategy for spec in benchmarks for row in spec.rows})


def of_rows(strategies: Mapping[str, str]) -> dict[str, Look]:
    """Row name -> look, of the rows' strategies by name; that of our own learners is the same everywhere.

    A learner's rows share its colour. Ours have theirs by name; others take the rest in the definition's order, and
    those of ours only where none of ours is. Rows without a colour, and those beyond eight, ours first, are grey.
    """
    rows = {name: strategy.split(":")[-1] for name, strategy in strategies.items()}
    learners = dict.fromkeys(rows.values())
    taken = {learner: LEARNERS[learner] for learner in learners if learner in LEARNERS}
    left = [*range(len(LEARNERS), len(COLORS)), *(() if taken else LEARNERS.values())]
    taken |= dict(zip((learner for learner in learners if learner not in taken), left, strict=False))
    colored = sorted((name for name in rows if rows[name] in taken), key=lambda name: rows[name] not in LEARNERS)[:MOST]
    found = dict.fromkeys(rows, Look(GREY, GREY_ON_DARK, (), "", grey=True))
    for learner, place in taken.items():
        for name, number in _variants([name for name in rows if rows[name] == learner], learner).items():
            marker = MARKERS[(place + number // len(DASHES)) % len(MARKERS)]
            if name in colored:
                found[name] = Look(COLORS[place], ON_DARK[place], DASHES[number % len(DASHES)], marker)
    return found


def _variants(names: list[str], learner: str) -> dict[str, int]:
    """Of the rows of a learner which variant each is: 0 the one that has its name, ours by name, others in order."""
    known = {name: VARIANTS.get(name, 0) for name in names if name == learner or name in VARIANTS}
    free = iter(number for number in range(len(names) + len(known) + 1) if number not in known.values())
    return {name: known[name] if name in known else next(free) for name in names}
