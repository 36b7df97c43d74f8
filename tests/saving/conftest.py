"""A small stream, whole and in arrivals."""

import pytest

from ftml_bench.benchmarks import RainbowDigits, arrivals


@pytest.fixture(scope="module")
def digits():
    return RainbowDigits(rounds=3, images_per_round=24, held_out_per_round=10)


@pytest.fixture(scope="module")
def stream(digits):
    """Six arrivals: two a round."""
    return [arrival for round in digits.train_stream for arrival in arrivals(round, 12)]
