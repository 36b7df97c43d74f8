"""The plain loops do what the learners do, so that their speeds may be compared."""

from __future__ import annotations

import pytest
import torch

from ftml_bench.benchmarks import arrivals
from ftml_bench.speed import baselines
from ftml_bench.speed.made_up import MadeUp
from ftml_bench.strategies import FollowTheLeader, FromScratch, TrainOnEverything


@pytest.fixture
def stream(monkeypatch):
    monkeypatch.setattr(baselines, "BATCH", 40)
    return MadeUp(rounds=3, images_per_round=80, held_out_per_round=10)


@pytest.mark.parametrize(
    ("cls", "settings"),
    [
        (TrainOnEverything, {"batch_norm": "running"}),
        (TrainOnEverything, {"batch_norm": "support"}),
        (FollowTheLeader, {}),
        (FromScratch, {}),
    ],
)
def test_a_plain_loop_comes_to_the_same_parameters(cls, settings, stream, double_precision):
    torch.manual_seed(0)
    plain = baselines._learner(cls, stream, 2, **settings)
    torch.manual_seed(0)
    learner = baselines._learner(cls, stream, 2, **settings)
    coming = list(arrivals(stream.train_stream[-1], [40, 2]))[1]
    plain.buffer.add(coming)
    loop = baselines._plain_loop(plain, 2)
    before = {name: p.detach().clone() for name, p in plain.model.named_parameters()}
    loop()
    learner.train(coming, eval_streams=[])
    ours = dict(learner.model.named_parameters())
    for name, p in plain.model.named_parameters():
        if not name.startswith("norm"):  # the plain loop has norms of its own
            torch.testing.assert_close(p, ours[name], rtol=0, atol=1e-7)
            assert (p - before[name]).abs().max() > 5e-4  # two steps of Adam at 0.001


def test_every_way_trains_on_as_many_images_as_it_says(stream):
    ways = baselines.all_ways(stream, 1)
    assert [title for title in ways if title.startswith(baselines.PLAIN)] == [
        "plain loop, mixed minibatches",
        "plain loop, groups of 20",
        "plain loop, one round",
    ]
    assert {title: way.images for title, way in ways.items() if "Avalanche" in title} == {
        "Avalanche's Naive": 80,
        "Avalanche's JointTraining": 240,
    }


def test_the_report_compares_with_the_plain_loop_before(stream, monkeypatch):
    monkeypatch.setattr(baselines, "MadeUp", lambda rounds: stream)
    monkeypatch.setattr(
        baselines, "interleaved", lambda ways, *_: {title: [1.0 if "plain" in title else 0.5] for title in ways}
    )
    lines = list(baselines.report(repeats=1, steps=1))
    assert "| plain loop, one round | 40 (40 to 40) | 1.00 (1.00 to 1.00) |" in lines
    assert "| FromScratch | 80 (80 to 80) | 2.00 (2.00 to 2.00) |" in lines
