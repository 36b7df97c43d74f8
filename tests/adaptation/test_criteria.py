"""Criteria that look at the model, or have parameters of their own."""

from copy import deepcopy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from ftml_bench.adaptation import make_engine
from ftml_bench.errors import UsageError
from tests.adaptation.plain_copies import INNER, data, mlp, predict

CROSS_ENTROPY = F.cross_entropy


def engine_of(model, name="auto", criterion=CROSS_ENTROPY, **settings):
    return make_engine(name, model, criterion, **{**INNER, **settings})


class Penalised(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, outputs, y):
        return F.cross_entropy(outputs, y) + 0.5 * sum(p.square().sum() for p in self.model.parameters())


@pytest.mark.parametrize("memory", ["unroll", "adjoint"])
@pytest.mark.parametrize("kind", ["function", "module"])
def test_a_penalty_on_the_weights_is_one_on_the_adapted_weights(kind, memory):
    model, (support, query) = mlp(), data()
    criterion = Penalised(model)
    engine = engine_of(model, criterion=criterion if kind == "module" else lambda o, y: criterion(o, y), memory=memory)
    outputs = predict(engine, model, support, query)
    assert engine.name == "loop"

    def by_hand(moved=None, h=0.0):
        found = []
        for x, y, q in zip(*support, query, strict=True):
            copy = deepcopy(model)
            with torch.no_grad():
                for p, d in zip(copy.parameters(), moved or [], strict=False):
                    p.add_(d, alpha=h)
            for _ in range(INNER["inner_steps"]):
                gradients = torch.autograd.grad(Penalised(copy)(copy(x), y), list(copy.parameters()))
                with torch.no_grad():
                    for p, g in zip(copy.parameters(), gradients, strict=True):
                        p -= INNER["inner_lr"] * g
            found.append(copy(q).detach())
        return torch.stack(found)

    assert torch.allclose(outputs, by_hand(), rtol=1e-10)
    gradients = torch.autograd.grad(outputs.sin().sum(), list(model.parameters()))
    moved, h = [torch.randn_like(p) for p in model.parameters()], 1e-6
    slope = (by_hand(moved, h).sin().sum() - by_hand(moved, -h).sin().sum()) / (2 * h)
    assert sum(float((g * d).sum()) for g, d in zip(gradients, moved, strict=True)) == pytest.approx(float(slope), 1e-6)


@pytest.mark.parametrize("name", ["batched", "vmap", "higher"])
def test_engines_that_call_the_criterion_with_the_models_own_weights_refuse_such_a_criterion(name):
    model = mlp()
    penalised = Penalised(model)
    with pytest.raises(UsageError, match=f"engine '{name}' calls the criterion, which looks at the model's weights"):
        predict(engine_of(model, name, lambda o, y: penalised(o, y)), model, *data())


def test_the_update_procedure_leaves_no_gradient_on_a_criterion_of_its_own():
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(()))

        def forward(self, outputs, y):
            return F.cross_entropy(self.scale * outputs, y)

    model, criterion, ((x, y), _) = mlp(), Scaled(), data()
    engine_of(model, criterion=criterion).adapt(dict(model.named_parameters()), x[0], y[0], 2)
    assert criterion.scale.grad is None
