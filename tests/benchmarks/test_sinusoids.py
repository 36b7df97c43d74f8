"""Sinusoids: the formula, the ranges, the seeds."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from ftml_bench.benchmarks import Sinusoids
from ftml_bench.benchmarks.arrivals import cumulative_sizes
from ftml_bench.errors import UsageError


def data(experience):
    return experience.stacked.take(torch.arange(len(experience.stacked)))


def test_values():
    benchmark = Sinusoids(seed=1)
    assert len(benchmark.train_stream) == len(benchmark.test_stream) == 25
    for stream, size in ((benchmark.train_stream, 40), (benchmark.test_stream, 100)):
        for experience in stream:
            x, y = data(experience)
            assert x.shape == y.shape == (size, 1)
            assert x.dtype == y.dtype == torch.float32
            for a, b in zip(x.flatten().tolist(), y.flatten().tolist(), strict=True):
                assert b == pytest.approx(experience.amplitude * math.sin(a - experience.phase), abs=1e-5)
            item_x, item_y, task = experience.dataset[3]
            assert torch.equal(item_x, x[3])
            assert torch.equal(item_y, y[3])
            assert task == experience.current_experience
            assert not hasattr(experience.dataset, "targets")


def test_ranges():
    rounds = Sinusoids(rounds=400, images_per_round=5, held_out_per_round=1).train_stream
    amplitudes = torch.tensor([e.amplitude for e in rounds])
    phases = torch.tensor([e.phase for e in rounds])
    x = torch.cat([e.stacked.x for e in rounds])
    for values, least, most in ((amplitudes, 0.1, 5), (phases, 0, math.pi), (x, -5, 5)):
        assert least <= values.min() < least + 0.05 * (most - least)
        assert most - 0.05 * (most - least) < values.max() <= most
        assert values.mean() == pytest.approx((least + most) / 2, abs=0.1 * (most - least))
    # amplitude and phase are independent draws
    assert torch.corrcoef(torch.stack([amplitudes, phases]))[0, 1].abs() < 0.15


def test_both_streams_hold_the_same_task_and_other_points():
    benchmark = Sinusoids(rounds=3)
    for train, test in zip(benchmark.train_stream, benchmark.test_stream, strict=True):
        assert (train.amplitude, train.phase) == (test.amplitude, test.phase)
        assert not torch.isin(train.stacked.x, test.stacked.x).any()
    assert len({e.amplitude for e in benchmark.train_stream}) == 3


def test_defaults():
    benchmark = Sinusoids()
    assert benchmark.threshold == ("loss", 1.0)
    assert benchmark.checkpoints == [4, 8, 40]
    assert set(benchmark.checkpoints) <= set(cumulative_sizes(40, benchmark.arrivals))
    assert isinstance(benchmark.criterion, nn.MSELoss)
    assert (benchmark.arrivals, benchmark.inner_lr, benchmark.update_steps) == (4, 0.01, 20)
    assert benchmark.model()(data(benchmark.test_stream[0])[0]).shape == (100, 1)


def test_seeds():
    def points(**arguments):
        return [data(e)[1].flatten().tolist() for e in Sinusoids(**arguments).train_stream]

    assert points(seed=2, rounds=3) == points(seed=2, rounds=3)
    assert points(seed=2, rounds=3) == points(seed=2, rounds=5, held_out_per_round=7)[:3]
    assert points(seed=2, rounds=3) != points(seed=3, rounds=3)


@pytest.mark.parametrize("name", ["rounds", "images_per_round", "held_out_per_round"])
def test_bad_sizes(name):
    with pytest.raises(UsageError, match=f"^{name} 0: expected 1 or more$"):
        Sinusoids(**{name: 0})
    with pytest.raises(UsageError, match=f"^{name} 2.5: expected a whole number$"):
        Sinusoids(**{name: 2.5})
