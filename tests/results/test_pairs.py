"""Paired comparisons against counts by hand."""

import itertools
import random

import numpy as np
import pytest

from ftml_bench.results.pairs import MARGIN, holm, least_p, paired, seeds_needed, sign_flip_p, verdict


def by_hand(differences):
    """Every way to flip the signs, in whole numbers."""
    sums = [sum(d * s for d, s in zip(differences, signs, strict=True)) for signs in _flips(len(differences))]
    return sum(abs(one) >= abs(sum(differences)) for one in sums) / len(sums)


def _flips(n):
    return list(itertools.product((1, -1), repeat=n))


@pytest.mark.parametrize(
    ("differences", "p"),
    [
        ([-1.0], 1.0),  # both signs are as far
        ([-1.0, -2.0, -3.0], 2 / 8),
        ([-1.0, -2.0, 3.0], 1.0),  # a sum of 0: every flip is as far
        ([-1.0, -1.0, -4.0, 1.0], 8 / 16),  # sums of at least 5: where two of the 1s or all go with the 4, 4 of 8 ways
        ([-1.0] * 6, 2 / 64),
        ([0.0, 0.0], 1.0),
        ([0.1, 0.2, 0.3], 2 / 8),
    ],
)
def test_the_sign_flip_test_by_hand(differences, p):
    assert sign_flip_p(differences) == p


def test_it_is_exact_up_to_sixteen_seeds_and_drawn_beyond():
    draws = random.Random(0)
    for n in (2, 5, 8, 11):
        whole = [draws.randint(-9, 12) for _ in range(n)]
        assert sign_flip_p(whole) == pytest.approx(by_hand(whole), abs=1e-12)
    assert sign_flip_p([1.0] * 16) == 2 / 2**16
    assert sign_flip_p([0.0, 1.0] * 10) == pytest.approx(2 / 2**10, rel=0.3)  # ten ones of one sign; drawn


def test_the_interval_of_two_seeds_of_one_round_by_hand():
    """Resamples of (0, 1) have the means 0, 1/2, 1/2, 1, so that its 2.5 % and 97.5 % are 0 and 1."""
    found = paired([[0.0], [1.0]], [[0.0], [0.0]])
    assert (found.mean, found.low, found.high, found.seeds) == (0.5, 0.0, 1.0, 2)


def test_one_seed_has_no_interval():
    found = paired([[2.0, 4.0]], [[1.0, 1.0]])
    assert (found.mean, found.low, found.high, found.standard_error) == (2.0, None, None, None)
    assert verdict(found, found.p) == "cannot be told apart with 1 seed"


def test_the_interval_is_as_wide_as_seeds_and_rounds_scatter():
    """Of seeds drawn anew and of each the rounds: the variances of both, divided by their numbers, add up."""
    draws = np.random.RandomState(1)
    values = draws.randn(12, 1) + 2 * draws.randn(12, 20)
    found = paired(values, np.zeros_like(values))
    of_seeds, of_rounds = values.mean(axis=1).var() / 12, values.var(axis=1).mean() / 240
    assert found.high - found.low == pytest.approx(2 * 1.96 * (of_seeds + of_rounds) ** 0.5, rel=0.1)


def test_wins_ties_and_losses_by_hand():
    found = paired([[1, 2, 3], [4, 4, 0]], [[2, 2, 2], [4, 5, 6]])
    assert (found.wins, found.ties, found.losses) == (3, 2, 1)
    assert found.improvement == pytest.approx(4 / 6)
    assert (found.leads, found.mean, found.other) == (1, pytest.approx(-7 / 6), 3.5)  # 0 and -7/3


def test_zero_up_to_rounding_is_no_lead():
    first, other = [[0.1 + 0.2, 0.1], [0.7, 0.1]], [[0.3, 0.1], [0.1 + 0.6, 0.1]]
    assert first != other
    found = paired(first, other)
    assert (found.leads, found.wins, found.ties, found.losses, found.mean) == (0, 0, 4, 0, 0.0)
    assert (found.low, found.high, found.p) == (0.0, 0.0, 1.0)
    assert verdict(found, found.p) == "level"


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match=r"one shape, got \(1, 2\) and \(2, 1\)"):
        paired([[1, 2]], [[1], [2]])
    with pytest.raises(ValueError, match="expected two arrays"):
        paired(np.empty((0, 3)), np.empty((0, 3)))


def test_holm_by_hand():
    """Smallest first: 4 x 0.01, then 3 x 0.02, 2 x 0.02 (not below what came before), 1 x 0.8."""
    assert holm([0.02, 0.8, 0.01, 0.02]) == pytest.approx([0.06, 0.8, 0.04, 0.06])
    assert holm([0.5, 0.4]) == [0.8, 0.8]
    assert holm([]) == []


def differing(seeds, by, other=1.0):
    """Pairs whose differences scatter a little about `by`."""
    noise = 0.01 * np.random.RandomState(2).randn(seeds, 5)
    return paired(other + by + noise, np.full((seeds, 5), other))


@pytest.mark.parametrize(
    ("seeds", "by", "word"),
    [
        (8, -0.3, "ahead"),
        (8, 0.3, "behind"),
        (8, 0.0, "level"),
        (8, 0.04, "level"),  # it can be told, and does not matter
        (3, -0.3, "cannot be told apart with 3 seeds"),
        (8, MARGIN, "behind"),
    ],
)
def test_words(seeds, by, word):
    found = differing(seeds, by)
    assert verdict(found, found.p) == word


def test_a_word_follows_from_the_corrected_p():
    found = differing(8, -0.3)
    assert found.p == least_p(8)
    assert verdict(found, holm([found.p] * 7)[0]) == "cannot be told apart with 8 seeds"  # 7 / 128 > 0.05
    assert verdict(found, holm([found.p] * 6)[0]) == "ahead"


def test_the_least_p_by_hand():
    assert [least_p(n) for n in (1, 2, 3, 5, 6)] == [1, 0.5, 0.25, 0.0625, 0.03125]
    assert [seeds_needed(rows) for rows in (1, 2, 4, 6, 16)] == [6, 7, 8, 8, 10]
