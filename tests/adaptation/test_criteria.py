"""Criteria that look at the model, or have parameters of their own."""

import math
from copy import deepcopy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from ftml_bench.adaptation import make_engine
from ftml_bench.errors import UsageError
from tests.adaptation.plain_copies import INNER, data, mlp, plain, predict

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


def slope_by_hand(model, support, query, criterion_at, value, h=1e-5):
    """That of the sum of outputs' sines, by plain copies with criteria of either side of `value`."""
    ends = (plain(model, support, query, criterion_at(value + side * h)).sin().sum() for side in (1, -1))
    return float(next(ends) - next(ends)) / (2 * h)


@pytest.mark.parametrize("kind", ["function", "module"])
@pytest.mark.parametrize("name", ["auto", "batched", "loop", "higher"])
def test_a_learned_temperature_gets_what_inner_steps_owe_it(name, kind):
    model, (support, query) = mlp(), data()
    temperature = nn.Parameter(torch.tensor(0.3, dtype=torch.float64))

    class Tempered(nn.Module):
        def __init__(self):
            super().__init__()
            self.temperature = temperature

        def forward(self, outputs, y):
            return F.cross_entropy(outputs * self.temperature.exp(), y)

    tempered = Tempered()
    engine = engine_of(model, name, tempered if kind == "module" else lambda o, y: tempered(o, y))
    (gradient,) = torch.autograd.grad(predict(engine, model, support, query).sin().sum(), temperature)
    slope = slope_by_hand(model, support, query, lambda t: lambda o, y: F.cross_entropy(o * math.exp(t), y), 0.3)
    assert float(gradient) == pytest.approx(slope, rel=1e-6)
    assert engine.chosen["engine_memory"] == "unroll"


def test_a_tensor_of_the_model_that_no_module_holds_gets_its_gradient():
    class Prompted(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = mlp()
            self.prompt = torch.full((3,), 0.1, dtype=torch.float64, requires_grad=True)

        def forward(self, x):
            return self.layers(x + self.prompt)

    model, (support, query) = Prompted(), data()
    engine = engine_of(model)
    (gradient,) = torch.autograd.grad(predict(engine, model, support, query).sin().sum(), model.prompt)
    h = 1e-5
    for place in range(3):
        at = []
        for side in (1, -1):
            shift = torch.zeros(3, dtype=torch.float64)
            shift[place] = 0.1 + side * h
            shift[:place] = shift[place + 1 :] = 0.1
            moved = (support[0] + shift, support[1]), query + shift
            at.append(float(plain(model.layers, *moved).sin().sum()))
        assert float(gradient[place]) == pytest.approx((at[0] - at[1]) / (2 * h), rel=1e-6)
    with pytest.raises(UsageError, match="memory='adjoint' takes no derivative in what the loss trains beside"):
        predict(engine_of(model, "loop", memory="adjoint"), model, support, query)


@pytest.mark.parametrize("kind", ["function", "module"])
def test_an_update_leaves_no_gradient_in_what_the_criterion_trains(kind):
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones((), dtype=torch.float64))

        def forward(self, outputs, y):
            return F.cross_entropy(self.scale * outputs, y)

    model, scaled, ((x, y), _) = mlp(), Scaled(), data()
    engine = engine_of(model, criterion=scaled if kind == "module" else lambda o, y: scaled(o, y))
    engine.adapt(dict(model.named_parameters()), x[0], y[0], 2)
    assert all(p.grad is None for p in (scaled.scale, *model.parameters()))


def test_a_loss_that_is_not_a_number_is_no_look_at_the_weights():
    model, (support, query) = mlp(), data()
    engine = engine_of(model, criterion=lambda o, y: F.cross_entropy(o, y) * float("nan"))
    predict(engine, model, support, query)
    assert "looks at the model's weights" not in engine.chosen.get("engine_note", "")
