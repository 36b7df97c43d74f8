"""The streams of learners that step together."""

from __future__ import annotations

import pytest

from ftml_bench.benchmarks import RainbowDigits


@pytest.fixture(scope="module")
def streams():
    return [RainbowDigits(rounds=3, images_per_round=40, held_out_per_round=30, seed=seed) for seed in range(3)]
