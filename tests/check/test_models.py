"""Each contract of a model is broken by something; an engine's exactness is found out by finite differences."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from ftml_bench import adaptation, registry
from ftml_bench import check as checks
from ftml_bench.adaptation.batched import BatchedEngine
from ftml_bench.adaptation.loop import LoopEngine
from ftml_bench.adaptation.steps import WrittenSteps
from ftml_bench.adaptation.vmap import VmapEngine
from ftml_bench.check import MODEL_CONTRACTS


class TooFew(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Flatten(), nn.Linear(588, 3))


class OwnSeed(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Flatten(), nn.Linear(588, 10))
        self[1].bias.data += np.random.rand()


class Neighbours(TooFew):
    def forward(self, x):
        return super().forward(x - x.mean(0))


class LeftBehind(OwnSeed):
    """What it multiplies by is no buffer, and stays where it was made."""

    def __init__(self):
        super().__init__()
        self.factors = torch.ones(10)

    def forward(self, x):
        return super().forward(x) * self.factors


class Elsewhere(TooFew):
    def forward(self, x):
        super().forward(x)
        return torch.zeros(len(x), 10)


@pytest.mark.parametrize(
    ("contract", "cls"),
    [
        ("output fits the benchmark's labels", TooFew),
        ("another device", LeftBehind),
        ("another device", Elsewhere),
        ("same seed, same parameters", OwnSeed),
        ("evaluation mode predicts point by point", Neighbours),
    ],
)
def test_a_model_can_break_each(contract, cls):
    outcome = checks.outcome_of(contract, MODEL_CONTRACTS[contract], checks.ModelSubject(cls, {}, "RainbowDigits", {}))
    assert outcome.verdict == "broken", outcome


class Checkpointed(nn.Module):
    """Computed once more on the way back."""

    def __init__(self, *, inputs=1):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(inputs, 4), nn.Tanh())
        self.head = nn.Linear(4, 1)

    def forward(self, x):
        return self.head(checkpoint(self.body, x, use_reentrant=False))


class Rounded(Checkpointed):
    """With a gradient that is not that of what it computes."""

    def forward(self, x):
        hidden = self.body(x)
        return self.head(hidden + (hidden.round(decimals=1) - hidden).detach())


def exactness(cls):
    subject = checks.ModelSubject(cls, {}, "Sinusoids", {})
    return checks.outcome_of("exact", MODEL_CONTRACTS["an engine treats it exactly"], subject)


def test_whether_an_engine_is_exact_is_found_out_by_finite_differences(monkeypatch):
    sinusoid = registry.load("model", "SinusoidMLP")
    assert exactness(sinusoid).verdict == exactness(Checkpointed).verdict == "holds"
    outcome = exactness(Rounded)
    assert outcome.verdict == "broken"
    assert "no engine can treat Rounded: loop has another derivative than finite differences show" in outcome.why
    # engines whose steps are a thousandth too long
    monkeypatch.setitem(adaptation.TRIED, "auto", [BatchedEngine, VmapEngine, LoopEngine])
    right = WrittenSteps._move
    monkeypatch.setattr(
        WrittenSteps, "_move", lambda self, fast, found, step: right(self, fast, [1.001 * g for g in found], step)
    )
    outcome = exactness(sinusoid)
    assert outcome.verdict == "broken"
    assert "loop computes other outputs than plain copies" in outcome.why
