"""Learners over many streams: mean ranks with Friedman's test and Nemenyi's critical difference, performance profiles.

Demšar, *Statistical comparisons of classifiers over multiple data sets*, JMLR 2006; Dolan and Moré, *Benchmarking
optimization software with performance profiles*, 2002. Ranks, test and quantile are SciPy's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import friedmanchisquare, rankdata, studentized_range

from ftml_bench.errors import UsageError
from ftml_bench.results.frames import Results, load
from ftml_bench.results.pairs import LEVEL


@dataclass(frozen=True)
class Ranks:
    """Where learners stand on every stream: 1 is the best, ties share the mean of their places.

    :param of_streams: (streams, learners).
    :param means: (learners,), over streams.
    :param p: of Friedman's test that all learners are alike; NaN for two learners.
    :param critical_difference: mean ranks that are closer cannot be told apart (Nemenyi, at 5 %).
    """

    of_streams: NDArray[np.float64]
    means: NDArray[np.float64]
    p: float
    critical_difference: float

    def groups(self) -> list[list[int]]:
        """Learners, best first, that cannot be told apart: every longest run within the critical difference."""
        order = [int(i) for i in np.argsort(self.means, kind="stable")]
        found: list[list[int]] = []
        for start, learner in enumerate(order):
            run = [i for i in order[start:] if self.means[i] - self.means[learner] <= self.critical_difference]
            if len(run) > 1 and not (found and set(run) <= set(found[-1])):
                found.append(run)
        return found


@dataclass(frozen=True)
class Overall:
    """Several leaderboards together, by the area under the learning curve over all rounds.

    :param learners: rows that every stream has, by name; `left_out`: those that some stream has not.
    :param streams: "leaderboard: benchmark".
    :param scores: (streams, learners), means over the seeds that all learners have finished on the stream.
    :param by_seed: (streams and seeds, learners): the same of each of these seeds.
    :param seeds_left_out: of every stream those that only some of the learners have finished.
    """

    learners: list[str]
    left_out: list[str]
    streams: list[str]
    scores: NDArray[np.float64]
    by_seed: NDArray[np.float64]
    seeds_left_out: list[list[int]]

    @property
    def ranks(self) -> Ranks:
        """The learners' ranks over the streams."""
        return rank(self.scores)


def rank(scores: ArrayLike) -> Ranks:
    """Ranks of scores (streams, learners) of which less is better; at least two of both.

    >>> rank([[1, 2, 3], [1, 3, 2], [1, 2, 2]]).means.tolist()
    [1.0, 2.5, 2.5]
    """
    values = np.asarray(scores, dtype=float)
    streams, learners = values.shape
    ranks = rankdata(values, axis=1)
    alike = bool((ranks == ranks[:, :1]).all())  # then the test is not defined
    p = float(friedmanchisquare(*values.T).pvalue) if learners > 2 and not alike else float("nan")
    quantile = studentized_range.ppf(1 - LEVEL, learners, np.inf) / np.sqrt(2)
    return Ranks(ranks, ranks.mean(axis=0), p, float(quantile * np.sqrt(learners * (learners + 1) / (6 * streams))))


def profile(scores: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Performance profiles of scores (problems, learners), none below zero, of which less is better.

    :return: factors τ (increasing, from 1), and (learners, τ) the share of problems on which a learner's score is at
        most τ times that of the best.
    """
    values = np.asarray(scores, dtype=float)
    best = values.min(axis=1, keepdims=True)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = np.where(values == best, 1.0, values / best)  # where the best is 0, others are at no factor of it
    factors = np.unique(ratios[np.isfinite(ratios)])
    return factors, (ratios.T[:, :, None] <= factors).mean(axis=1)


def overall(folders: Sequence[str | Path]) -> Overall:
    """Reads leaderboards' folders or archives.

    :raises UsageError: fewer than two streams, or than two learners that all of them have; or what `load` refuses.
    """
    return combine(load(*folders))


def combine(results: Results) -> Overall:
    """Several leaderboards together: see `overall`."""
    areas: dict[str, dict[str, dict[int, float]]] = {}  # stream -> row -> seed -> area
    for board in results.boards:
        for result in board.results:
            rows = {row.row.name: row.cells for row in result.rows if row.cells}
            areas[f"{board.name}: {result.spec.name}"] = {
                name: {seed: float(np.mean(cell.area)) for seed, cell in cells.items()} for name, cells in rows.items()
            }
    everywhere = [name for name in next(iter(areas.values()), {}) if all(name in rows for rows in areas.values())]
    if len(areas) < 2 or len(everywhere) < 2:
        streams, names = ", ".join(areas) or "none has finished runs", ", ".join(everywhere) or "none"
        raise UsageError(f"expected two streams and two rows that all of them have, got {streams}; {names}")
    left_out = sorted({name for rows in areas.values() for name in rows} - set(everywhere))
    # The seeds that all have finished: a row that diverges where it is hard would be ranked by what is easy.
    shared = [set.intersection(*(set(rows[name]) for name in everywhere)) for rows in areas.values()]
    for stream, seeds in zip(areas, shared, strict=True):
        if not seeds:
            raise UsageError(f"{stream}: expected a seed that all of {', '.join(everywhere)} have finished, got none")
    by_stream = [
        np.array([[rows[name][seed] for name in everywhere] for seed in sorted(seeds)])
        for rows, seeds in zip(areas.values(), shared, strict=True)
    ]
    return Overall(
        everywhere,
        left_out,
        list(areas),
        np.array([scores.mean(axis=0) for scores in by_stream]),
        np.concatenate(by_stream),
        [
            sorted({seed for name in everywhere for seed in rows[name]} - seeds)
            for rows, seeds in zip(areas.values(), shared, strict=True)
        ],
    )
