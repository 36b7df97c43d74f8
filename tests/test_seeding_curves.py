"""Random numbers by name, and what a learning curve says. The examples in the docstrings are run as well."""

from __future__ import annotations

import doctest
import hashlib
import importlib
import math

import pytest
import torch

from ftml_bench.metrics.curves import Threshold, datapoints_to_threshold
from ftml_bench.seeding import derive, generator

# -- seeds


def test_derived_seeds_never_change():
    # printf '0/arrivals/3' | sha256sum; the first 8 bytes, halved
    assert derive(0, "arrivals", 3) == 0x6BC947172CD52935 >> 1 == 3883408598619559066
    assert derive(7) == 0x7902699BE42C8A8E >> 1


@pytest.mark.parametrize("names", [(), ("stream",), ("update", 3, 20), ("ä", -1)])
def test_a_derived_seed_is_the_hash_of_seed_and_names(names):
    digest = hashlib.sha256("/".join(["5", *map(str, names)]).encode()).hexdigest()
    assert derive(5, *names) == int(digest[:16], 16) // 2


def test_derived_seeds_differ_by_seed_and_by_every_name_and_fit_torch():
    seeds = [derive(s, a, b) for s in range(20) for a in ("stream", "init", "buffer") for b in range(20)]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert len({derive(1, 23), derive(12, 3), derive(123), derive(1, 2, 3)}) == 4


def test_generators_repeat_and_draw_from_nothing_else():
    state = torch.get_rng_state()
    one, other = generator(0, "one"), generator(0, "other")
    alone = torch.randn(8, generator=generator(0, "one"))
    torch.randn(100, generator=other)
    torch.manual_seed(3)
    assert torch.equal(torch.randn(8, generator=one), alone)
    assert not torch.equal(torch.randn(8, generator=generator(0, "other")), alone)
    assert not torch.equal(torch.randn(8, generator=generator(1, "one")), alone)
    torch.set_rng_state(state)
    torch.randn(8, generator=generator(0, "one"))
    assert torch.equal(torch.get_rng_state(), state)


# -- thresholds


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


# -- examples in docstrings

EXAMPLES = [
    "seeding",
    "curves",
    "models.rainbow_net",
    "models.sinusoid_mlp",
    "adaptation",
    "benchmarks.arrivals",
    "benchmarks.stream",
]


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_examples_in_docstrings_are_true(name):
    results = doctest.testmod(importlib.import_module(f"ftml_bench.{name}"))
    assert results.attempted > 0
    assert results.failed == 0
