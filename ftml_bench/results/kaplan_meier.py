"""How many rounds have not reached γ yet, over datapoints: Kaplan-Meier, by SciPy."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import CensoredData, ecdf


@dataclass(frozen=True)
class Survival:
    """A Kaplan-Meier curve of datapoints to γ: a step function, 1 before the first of `datapoints`.

    :param datapoints: where the curve falls or a round is censored, increasing.
    :param open: the share of rounds that have not reached γ after so many datapoints, S(n).
    :param low, high: its 95 % band (Greenwood's formula on the log-log scale), which takes rounds as independent; NaN
        where SciPy has none (at 1 and at 0).
    :param median: the fewest datapoints after which at most half of the rounds are open; None: more than half never get
        there.
    :param restricted_mean: the area under the curve up to the most datapoints of a round, N.
    """

    datapoints: tuple[int, ...]
    open: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    median: int | None
    restricted_mean: float

    @property
    def reached(self) -> float:
        """The share of rounds that reach γ, in [0, 1]."""
        return 1 - self.open[-1]


def survival(datapoints: Sequence[int], censored: Sequence[bool]) -> Survival:
    """The curve of rounds that are taken together, as those of all seeds in a part of the stream.

    :param datapoints: datapoints to γ; of a censored round the last number of datapoints that it had.
    :param censored: whether γ was not reached.
    :raises ValueError: no rounds.

    >>> curve = survival([10, 20, 20, 40], [False, False, False, True])
    >>> curve.open, curve.median, curve.restricted_mean
    ((0.75, 0.25, 0.25), 20, 22.5)
    """
    n, never = np.asarray(datapoints, dtype=float), np.asarray(censored, dtype=bool)
    if not n.size:
        raise ValueError("no rounds: expected the datapoints of at least one")
    curve = ecdf(CensoredData(uncensored=n[~never], right=n[never])).sf
    times, share = curve.quantiles, curve.probabilities
    with warnings.catch_warnings(), np.errstate(divide="ignore", invalid="ignore"):
        warnings.simplefilter("ignore", RuntimeWarning)  # SciPy says that at 1 and at 0 the band is not defined
        band = curve.confidence_interval(method="log-log")
    half = np.flatnonzero(share <= 0.5 + 1e-12)
    steps = np.diff(times, prepend=0.0) * np.concatenate([[1.0], share[:-1]])
    return Survival(
        datapoints=tuple(int(t) for t in times),
        open=tuple(share.tolist()),
        low=tuple(band.low.probabilities.tolist()),
        high=tuple(band.high.probabilities.tolist()),
        median=int(times[half[0]]) if half.size else None,
        restricted_mean=float(steps.sum()),
    )
