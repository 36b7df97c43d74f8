"""Each contract of a benchmark is broken by something."""

import pytest
import torch
from torch import nn

from ftml_bench import check as checks
from ftml_bench.benchmarks import RainbowDigits, Sinusoids
from ftml_bench.check import BENCHMARK_CONTRACTS


def changed(base, **attributes):
    """A benchmark class whose objects differ in some attributes."""

    class Changed(base):
        def __init__(self, *, seed=0, rounds=3, images_per_round=20):
            super().__init__(seed=seed, rounds=rounds, images_per_round=images_per_round)
            for name, value in attributes.items():
                setattr(self, name, value)

    return Changed


class UnseededStream(Sinusoids):
    def __init__(self, *, seed=0, rounds=3):
        super().__init__(seed=int(torch.randint(99999, ())), rounds=rounds)


class Seedless(Sinusoids):
    def __init__(self, *, seed=0, rounds=3):
        super().__init__(seed=0, rounds=rounds)


class OneRound(Sinusoids):
    def __init__(self, *, seed=0, rounds=3):
        super().__init__(seed=seed, rounds=1)


class NoSeed(Sinusoids):
    def __init__(self, *, rounds=3):
        super().__init__(seed=0, rounds=rounds)


class Leaky(Sinusoids):
    """The held-out data of round 0 are training data of round 1."""

    def __init__(self, *, seed=0, rounds=3):
        super().__init__(seed=seed, rounds=rounds)
        data, test = self.train_stream[1].stacked, self.test_stream[0].stacked
        data.x[data.rows[:5]] = test.x[test.rows[:5]]


class Numbered(Sinusoids):
    def __init__(self, *, seed=0, rounds=3):
        super().__init__(seed=seed, rounds=rounds)
        for experience in (*self.train_stream, *self.test_stream):
            experience.task_label = 0


class Unequal(Sinusoids):
    def __init__(self, *, seed=0, rounds=3):
        super().__init__(seed=seed, rounds=rounds)
        first = self.train_stream[0]
        first._dataset = first.dataset.subset(range(36))


@pytest.mark.parametrize(
    ("contract", "cls"),
    [
        ("takes seed and rounds", NoSeed),
        ("takes seed and rounds", OneRound),
        ("same seed, same stream", UnseededStream),
        ("another seed, another stream", Seedless),
        ("no held-out input is training data", Leaky),
        ("rounds are numbered and labelled", Numbered),
        ("has the defaults that a leaderboard takes", changed(Sinusoids, threshold=("precision", 0.5))),
        ("has the defaults that a leaderboard takes", changed(Sinusoids, checkpoints=[3])),
        ("has the defaults that a leaderboard takes", Unequal),
        ("has the defaults that a leaderboard takes", changed(Sinusoids, update_steps=0)),
        ("its version is a whole number, if it says one", type("Worded", (Sinusoids,), {"version": "1.1"})),
        ("its model and criterion fit its data", changed(Sinusoids, model=lambda: nn.Linear(2, 1))),
        ("its model and criterion fit its data", changed(RainbowDigits, criterion=lambda a, b: a.sum() * 0)),
    ],
)
def test_a_benchmark_can_break_each(contract, cls):
    outcome = checks.outcome_of(contract, BENCHMARK_CONTRACTS[contract], checks.BenchmarkSubject(cls, {}))
    assert outcome.verdict == "broken", outcome
