"""The stream of the learners' tests."""

import pytest

from ftml_bench.benchmarks import RainbowDigits


@pytest.fixture(scope="module")
def digits():
    return RainbowDigits(rounds=3, images_per_round=40, held_out_per_round=30)
