"""Two rows on the same streams, paired by seed and round: how far they are apart, and whether that can be told.

The rule for words stands in `verdict`; tables, `ftml-bench compare` and texts follow it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import permutation_test

LEVEL = 0.05  # of tests; intervals leave out as much
MARGIN = 0.05  # of the other's mean: differences within it are none that matter
RESAMPLES = 5_000
EXACT = 16  # seeds, up to which all sign flips are counted; of more, as many are drawn
_ROUNDING = 1e-9  # of the larger value: differences below are those of sums in another order


@dataclass(frozen=True)
class Pair:
    """One row minus another in a quantity of which less is better.

    :param mean: of the differences, over rounds and then over seeds; `standard_error`: over seeds, None for one.
    :param low, high: the 95 % interval of the mean; None for one seed.
    :param p: two-sided, of the sign-flip test over seeds.
    :param seeds: pairs; `leads`: on how many the first row is ahead.
    :param wins, ties, losses: rounds of all seeds in which the first row has less, the same, more.
    :param other: the other row's mean.
    """

    mean: float
    standard_error: float | None
    low: float | None
    high: float | None
    p: float
    seeds: int
    leads: int
    wins: int
    ties: int
    losses: int
    other: float

    @property
    def improvement(self) -> float:
        """Probability of improvement: that in a round the first row has less, ties counted half."""
        return (self.wins + self.ties / 2) / (self.wins + self.ties + self.losses)


def paired(first: ArrayLike, other: ArrayLike) -> Pair:
    """Compares two rows.

    :param first, other: (seeds, rounds), the same seeds and rounds in both; what has one number a seed is (seeds, 1).
    :raises ValueError: other shapes, or nothing to compare.
    """
    a, b = np.asarray(first, dtype=float), np.asarray(other, dtype=float)
    if a.shape != b.shape or a.ndim != 2 or not a.size:
        raise ValueError(f"expected two arrays (seeds, rounds) of one shape, got {a.shape} and {b.shape}")
    differences = _without_rounding(a - b, np.maximum(abs(a), abs(b)))
    # Of the seeds' means and not of the rounds' differences: as the means of tables are computed.
    of_seeds = _without_rounding(a.mean(axis=1) - b.mean(axis=1), np.maximum(abs(a), abs(b)).mean(axis=1))
    seeds = len(of_seeds)
    interval = interval_of(differences) if seeds > 1 else (None, None)
    return Pair(
        mean=float(of_seeds.mean()),
        standard_error=float(of_seeds.std(ddof=1) / np.sqrt(seeds)) if seeds > 1 else None,
        low=interval[0],
        high=interval[1],
        p=sign_flip_p(of_seeds),
        seeds=seeds,
        leads=int((of_seeds < 0).sum()),
        wins=int((differences < 0).sum()),
        ties=int((differences == 0).sum()),
        losses=int((differences > 0).sum()),
        other=float(b.mean()),
    )


def sign_flip_p(differences: ArrayLike) -> float:
    """How often flipping the signs of the differences at random gives a mean as far from zero as this one, two-sided.

    Exact for up to 16 differences, one a seed.

    >>> sign_flip_p([-1.0, -2.0, -3.0])  # of 8 ways to flip signs, 2 are as far from zero
    0.25
    """
    values = np.asarray(differences, dtype=float)
    if len(values) == 1 or not values.any():  # both signs are as far
        return 1.0
    flips: int | float = np.inf if len(values) <= EXACT else 2**EXACT
    found = permutation_test(
        (values,),
        lambda x, axis: x.mean(axis=axis),
        permutation_type="samples",  # of one sample: the signs
        vectorized=True,
        n_resamples=flips,
        batch=2**12,
        random_state=np.random.RandomState(0),  # the same files give the same p
    )
    return float(found.pvalue)


def least_p(seeds: int) -> float:
    """The smallest p that so many seeds can give: all differences of one sign.

    >>> least_p(3)
    0.25
    """
    return 2 / 2**seeds


def holm(ps: Sequence[float]) -> list[float]:
    """Holm's correction of the p of a family: each is as large as if it were the only question asked.

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    corrected = [0.0] * len(ps)
    most = 0.0
    for rank, index in enumerate(sorted(range(len(ps)), key=ps.__getitem__)):
        most = max(most, min(1.0, (len(ps) - rank) * ps[index]))
        corrected[index] = most
    return corrected


def interval_of(differences: NDArray[np.float64]) -> tuple[float, float]:
    """The 95 % bootstrap interval (percentiles) of the mean of differences (seeds, rounds): seeds are drawn anew, and
    of each the rounds.

    To draw the rounds alone, or the seeds of each round apart, would take a run's rounds as independent of each other.
    """
    means = np.sort(_weights(*differences.shape) @ differences.ravel())
    cut = int(len(means) * LEVEL / 2)
    low, high = float(means[cut]), float(means[-1 - cut])
    return (0.0, 0.0) if not differences.any() else (low, high)


def verdict(pair: Pair, p: float) -> str:
    """What can be said of two rows, by one rule.

    - "level": the interval lies within 5 % of the other row's mean, on both sides;
    - "ahead", "behind": `p`, corrected for all rows of the table, is at most 0.05, and the interval leaves out 0;
    - "cannot be told apart with n seeds": neither.

    :param p: the pair's, after `holm`.
    """
    if pair.low is not None and pair.high is not None:
        if max(-pair.low, pair.high) <= MARGIN * abs(pair.other):
            return "level"
        if p <= LEVEL and not pair.low <= 0 <= pair.high:
            return "ahead" if pair.mean < 0 else "behind"
    return f"cannot be told apart with {pair.seeds} seed{'s' if pair.seeds > 1 else ''}"


def seeds_needed(rows: int) -> int:
    """How many seeds it takes to tell rows apart, if on all of them the same one is ahead: Holm's correction multiplies
    the smallest p by the number of comparisons.

    >>> [seeds_needed(rows) for rows in (1, 4, 6)]
    [6, 8, 8]
    """
    seeds = 1
    while least_p(seeds) * rows > LEVEL:
        seeds += 1
    return seeds


@lru_cache(maxsize=4)
def _weights(seeds: int, rounds: int) -> NDArray[np.float64]:
    """Of every resample (RESAMPLES, seeds * rounds), the weight that a round of a seed has in the mean."""
    draws = np.random.RandomState(0)  # whose numbers no version of NumPy changes
    chosen = draws.randint(seeds, size=(RESAMPLES, seeds, 1))
    cells = chosen * rounds + draws.randint(rounds, size=(RESAMPLES, seeds, rounds))
    size = seeds * rounds
    flat = (np.arange(RESAMPLES)[:, None] * size + cells.reshape(RESAMPLES, size)).ravel()
    return np.bincount(flat, minlength=RESAMPLES * size).reshape(RESAMPLES, size) / size


def _without_rounding(differences: NDArray[np.float64], scale: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.where(abs(differences) <= _ROUNDING * scale, 0.0, differences)
