"""What a learning curve says: thresholds, and the datapoints to them by hand."""

from __future__ import annotations

import math

import pytest

from ftml_bench.errors import UsageError
from ftml_bench.metrics import efficiency_metrics
from ftml_bench.metrics.curves import Threshold, datapoints_to_stay, datapoints_to_threshold, log_area


@pytest.mark.parametrize(
    ("metric", "value", "met"),
    [
        ("accuracy", 0.9, True),  # at least
        ("accuracy", 0.8999, False),
        ("accuracy", 1.0, True),
        ("accuracy", math.nan, False),
        ("loss", 0.9, False),  # below
        ("loss", 0.8999, True),
        ("loss", -1.0, True),
        ("loss", math.nan, False),
        ("loss", math.inf, False),
    ],
)
def test_accuracy_must_be_at_least_the_threshold_and_loss_below(metric, value, met):
    assert Threshold(metric, 0.9).met(value) is met


@pytest.mark.parametrize(
    ("threshold", "message"),
    [
        (("accuracy", 90), r"an accuracy lies in \(0, 1\], got 90 \(80 % is 0.8\)"),
        (("accuracy", 0), "an accuracy lies in .* got 0"),
        (("loss", math.nan), "threshold: expected a finite number, got nan"),
        (("loss", math.inf), "threshold: expected a finite number, got inf"),
        (("loss", "0.5"), "threshold: expected a finite number, got '0.5'"),
        (("acuracy", 0.5), "unknown metric 'acuracy': did you mean 'accuracy'"),
    ],
)
def test_a_threshold_that_a_metric_cannot_have_is_refused(threshold, message):
    with pytest.raises(UsageError, match=message):
        efficiency_metrics(threshold=threshold)


def test_a_threshold_is_printed_as_people_write_it():
    assert str(Threshold("accuracy", 0.9)) == "90 % accuracy"
    assert str(Threshold("accuracy", 0.125)) == "12.5 % accuracy"
    assert str(Threshold("loss", 0.5)) == "loss 0.5"


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0.9, 0.1, 0.1], (5, False)),
        ([0.1, 0.8, 0.9], (20, False)),  # exactly the threshold
        ([0.1, 0.9, 0.1], (20, False)),  # the first time counts, whatever comes after
        ([0.1, 0.2, 0.8], (100, False)),
        ([0.1, 0.2, 0.3], (100, True)),
        ([math.nan, 0.2, math.nan], (100, True)),
        ([math.nan, 0.8, math.nan], (20, False)),
    ],
)
def test_datapoints_to_threshold_by_hand(values, expected):
    assert datapoints_to_threshold([5, 20, 100], values, Threshold("accuracy", 0.8)) == expected
    losses = [0.999 - value for value in values]
    assert datapoints_to_threshold([5, 20, 100], losses, Threshold("loss", 0.2)) == expected


def test_datapoints_and_values_must_be_as_many():
    with pytest.raises(ValueError, match="zip"):
        datapoints_to_threshold([1, 2], [0.5], Threshold("accuracy", 0.8))


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0.9, 0.9, 0.9], (5, False)),
        ([0.9, 0.1, 0.8], (100, False)),  # it fell below in between
        ([0.1, 0.8, 0.9], (20, False)),
        ([0.9, 0.9, 0.1], (100, True)),  # it ends below
        ([0.1, 0.2, 0.3], (100, True)),
        ([0.9, math.nan, 0.8], (100, False)),
    ],
)
def test_datapoints_to_reach_and_stay_by_hand(values, expected):
    assert datapoints_to_stay([5, 20, 100], values, Threshold("accuracy", 0.8)) == expected
    losses = [0.999 - value for value in values]
    assert datapoints_to_stay([5, 20, 100], losses, Threshold("loss", 0.2)) == expected


def test_the_area_over_log_datapoints_by_hand():
    """From 10 to 100 and from 100 to 1000 is as far: (0.6 + 0.4) / 2 and (0.4 + 0.1) / 2, averaged."""
    assert log_area([10, 100, 1000], [0.6, 0.4, 0.1]) == pytest.approx((0.5 + 0.25) / 2)
    assert log_area([10, 100, 1000], [0.3] * 3) == pytest.approx(0.3)
    assert log_area([20], [0.7]) == 0.7  # a round that arrives whole
    # A straight line over the logarithm is not changed by an evaluation more on it.
    assert log_area([10, 40, 160], [0.8, 0.6, 0.4]) == pytest.approx(log_area([10, 20, 40, 160], [0.8, 0.7, 0.6, 0.4]))
