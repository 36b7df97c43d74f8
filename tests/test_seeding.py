"""Random numbers by name."""

from __future__ import annotations

import hashlib
import random

import numpy as np
import pytest
import torch

from ftml_bench.random_state import preserved_random_state
from ftml_bench.seeding import derive, generator, seed_globals


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


def test_one_seed_decides_all_global_generators():
    def draws(seed):
        seed_globals(seed)
        return torch.rand(()).item(), random.random(), np.random.rand()

    with preserved_random_state(torch.device("cpu")):
        first = draws(derive(0, "init"))  # more than NumPy's seeds can be
        assert draws(derive(0, "init")) == first
        assert not set(draws(derive(1, "init"))) & set(first)
