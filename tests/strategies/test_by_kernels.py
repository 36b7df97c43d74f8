"""Learners whose passes go through compiled kernels learn what they learn without."""

import pytest
import torch

import ftml_bench.adaptation as adaptation
from ftml_bench.adaptation.plain_pass import PlainPass
from ftml_bench.protocol import evaluations
from tests.adaptation.stacks import needs_library
from tests.strategies.learners import build, every_learner

pytestmark = needs_library


def state_after(name, digits):
    strategy = build(name)
    # larger steps blow up what rounding leaves
    strategy.optimizer = torch.optim.SGD(strategy.model.parameters(), lr=1e-3)
    losses = [e.loss for e in evaluations(strategy, digits, 20)]
    return losses, dict(strategy.model.state_dict()), getattr(strategy, "chosen", {}).get("engine")


@every_learner
def test_parameters_running_statistics_and_evaluations(name, digits, monkeypatch):
    passes = []
    plain = PlainPass.__call__
    monkeypatch.setattr(PlainPass, "__call__", lambda *a, **k: passes.append(plain(*a, **k)) or passes[-1])
    losses, state, engine = state_after(name, digits)
    assert engine == "native" if engine else passes and all(outputs is not None for outputs in passes)

    monkeypatch.setattr(PlainPass, "__call__", lambda *a, **k: None)
    monkeypatch.setitem(adaptation.TRIED, "auto", adaptation.AUTO[1:])
    expected, plain_state, engine = state_after(name, digits)
    assert engine in (None, "batched")
    assert losses == pytest.approx(expected, rel=2e-3)
    for key, value in plain_state.items():
        assert torch.allclose(state[key].double(), value.double(), rtol=1e-3, atol=1e-4), key
