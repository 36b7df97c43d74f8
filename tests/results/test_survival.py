"""Kaplan-Meier curves against counts by hand."""

import math

import pytest

from ftml_bench.results.cells import ALL, HALVES, PARTS, THIRDS, mean, part
from ftml_bench.results.kaplan_meier import survival


def test_a_curve_by_hand():
    """Ten rounds, N = 40: three at 10, two at 20, one stopped after 20, one at 40, three never."""
    datapoints = [10, 10, 10, 20, 20, 20, 40, 40, 40, 40]
    censored = [False] * 5 + [True, False] + [True] * 3
    found = survival(datapoints, censored)
    assert found.datapoints == (10, 20, 40)
    # 10: 3 of 10; 20: 2 of the 7 that are left; 40: 1 of the 4 that are left (one was lost after 20).
    expected = [7 / 10, 7 / 10 * 5 / 7, 7 / 10 * 5 / 7 * 3 / 4]
    assert found.open == pytest.approx(expected)
    assert found.median == 20
    assert found.restricted_mean == pytest.approx(10 * 1 + 10 * 0.7 + 20 * 0.5)
    assert found.reached == pytest.approx(1 - expected[-1])
    # Greenwood at 10: variance 3 / (10 * 7), on the scale of log(-log S).
    width = 1.959964 * math.sqrt(3 / 70) / math.log(0.7)
    assert found.low[0] == pytest.approx(0.7 ** math.exp(-width))
    assert found.high[0] == pytest.approx(0.7 ** math.exp(width))


def test_if_more_than_half_never_get_there_there_is_no_median():
    found = survival([10, 100, 100], [False, True, True])
    assert found.median is None
    assert found.restricted_mean == pytest.approx((10 + 100 + 100) / 3)


def test_where_rounds_are_censored_at_n_the_restricted_mean_is_the_mean_that_tables_show():
    datapoints, censored = [10, 20, 20, 40, 40, 40], [False, False, False, False, True, True]
    assert survival(datapoints, censored).restricted_mean == pytest.approx(sum(datapoints) / 6)


def test_all_at_once_and_none():
    assert survival([10, 10], [False, False]).open == (0.0,)
    assert survival([10], [False]).median == 10
    assert survival([40, 40], [True, True]).open == (1.0,)
    with pytest.raises(ValueError, match="no rounds"):
        survival([], [])


def test_parts_of_the_rounds():
    rounds = list(range(1, 12))
    assert [rounds[part(name, 11)] for name in THIRDS] == [[1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]
    assert [rounds[part(name, 11)] for name in HALVES] == [[1, 2, 3, 4, 5], [6, 7, 8, 9, 10, 11]]
    assert rounds[part(ALL, 11)] == rounds
    assert {name: mean([3.0], name) for name in PARTS} == {
        "first_half": 3.0,  # as of old: of one round the first half is that round
        "second_half": 3.0,
        "first_third": None,
        "middle_third": None,
        "last_third": 3.0,
        "all_rounds": 3.0,
    }
