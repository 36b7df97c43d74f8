"""Criteria that look at the model, or have parameters of their own."""

import math
from copy import deepcopy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from ftml_bench.adaptation import make_engine, update_procedure
from ftml_bench.adaptation.graph_leaves import leaves_of
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


def test_the_update_procedure_leaves_no_gradient_on_what_a_criterion_closes_over():
    model, scale, weights, ((x, y), _) = mlp(), nn.Parameter(torch.ones(())), nn.Linear(2, 2), data()

    def criterion(outputs, y):
        return F.cross_entropy(scale * outputs, y) + weights.weight.square().sum()

    found = engine_of(model, "loop", criterion).adapt(dict(model.named_parameters()), x[0], y[0], 2)
    assert scale.grad is None
    assert weights.weight.grad is None
    alone = engine_of(model, "loop", F.cross_entropy).adapt(dict(model.named_parameters()), x[0], y[0], 2)
    assert all(torch.allclose(found[name], alone[name], rtol=1e-12) for name in alone)


def test_the_ends_of_a_graph_are_what_backward_adds_gradients_to():
    model, (x, _), outside = mlp(), data()[0], nn.Parameter(torch.ones(3))
    loss = model(x[0]).square().sum() * outside[0] + outside.sum()
    loss.backward()
    assert {id(t) for t in leaves_of(loss)} == {id(t) for t in (*model.parameters(), outside) if t.grad is not None}
    assert len(leaves_of(loss)) == len(list(model.parameters())) + 1
    assert leaves_of(outside) == [outside]


def test_the_update_procedure_derives_a_model_that_enters_autograd_anew_whatever_a_criterion_closes_over():
    class Checkpointed(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.inner, self.head = nn.Linear(3, 4).double(), nn.Linear(4, 3).double()

        def forward(self, x):
            return self.head(checkpoint(lambda z: self.inner(z).tanh(), x.requires_grad_(), use_reentrant=True))

    model, scale, ((x, y), _) = Checkpointed(), nn.Parameter(torch.ones(())), data()
    parameters = dict(model.named_parameters())

    def descent(leaves):
        return torch.optim.SGD(leaves, lr=0.1)

    settings = {"steps": 1, "optimizer": descent, "adapted": list(parameters)}
    found = update_procedure(model, parameters, lambda o, t: F.cross_entropy(scale * o, t), x[0], y[0], **settings)
    loss = F.cross_entropy(model.head(model.inner(x[0]).tanh()), y[0])
    for (name, p), g in zip(parameters.items(), torch.autograd.grad(loss, list(parameters.values())), strict=True):
        torch.testing.assert_close(found[name], p.detach() - 0.1 * g)
    assert scale.grad is None
