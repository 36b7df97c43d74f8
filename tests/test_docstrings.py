"""The examples in docstrings are run."""

from __future__ import annotations

import doctest
import importlib

import pytest

EXAMPLES = [
    "seeding",
    "curves",
    "models.rainbow_net",
    "models.sinusoid_mlp",
    "adaptation",
    "benchmarks.arrivals",
    "benchmarks.stream",
    "report.benchmark",
    "report.tables",
    "results.cells",
    "results.pairs",
    "results.ranks",
    "results.kaplan_meier",
]


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_examples_in_docstrings_are_true(name):
    results = doctest.testmod(importlib.import_module(f"ftml_bench.{name}"))
    assert results.attempted > 0
    assert results.failed == 0
