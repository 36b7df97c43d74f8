"""How an engine may be asked, and models called with other weights than their own."""

from copy import deepcopy

import pytest
import torch
from torch import nn

from ftml_bench.adaptation import ENGINES, make_engine
from ftml_bench.adaptation.inner_loop import update_procedure
from ftml_bench.adaptation.weights import call_with, while_holding
from ftml_bench.errors import UsageError
from ftml_bench.models import TaskBatchNorm
from tests.adaptation.plain_copies import INNER, data, mlp, plain, predict


@pytest.mark.parametrize("name", sorted(ENGINES))
def test_prediction_without_a_gradient(name):
    model, (support, query) = mlp(), data()
    engine = make_engine(name, model, nn.CrossEntropyLoss(), **INNER)
    expected = plain(model, support, query)
    with torch.no_grad():
        outputs = predict(engine, model, support, query)
    assert not outputs.requires_grad
    assert torch.allclose(outputs, expected, rtol=1e-10)
    detached = {n: p.detach() for n, p in model.named_parameters()}
    outputs = engine.predict(detached, support, query)
    assert torch.allclose(outputs, expected, rtol=1e-10)
    detached["2.weight"].requires_grad_()
    outputs = engine.predict(detached, support, query)
    (gradient,) = torch.autograd.grad(outputs.sum(), detached["2.weight"])
    whole = torch.autograd.grad(predict(engine, model, support, query).sum(), model[2].weight)[0]
    assert torch.allclose(gradient, whole, rtol=1e-10)


def test_autocast_is_left_to_engines_that_call_the_model_itself():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(8, 2))
    support, query = data(shape=(1, 4, 4))
    support, query = (support[0].float(), support[1]), query.float()
    gradients = {}
    for name, memory in [("auto", "auto"), ("loop", "unroll"), ("loop", "adjoint")]:
        engine = make_engine(name, model, nn.CrossEntropyLoss(), memory=memory, **INNER)
        for precision in (True, False):
            with torch.autocast("cpu", torch.bfloat16, enabled=precision):
                loss = predict(engine, model, support, query).float().square().sum()
            found = torch.autograd.grad(loss, list(model.parameters()))
            gradients[engine.name, memory, precision] = torch.cat([g.flatten() for g in found])
    assert {name for name, _, _ in gradients} == {"loop"}
    plain = gradients["loop", "unroll", True]
    assert not torch.allclose(plain, gradients["loop", "unroll", False], rtol=1e-4)
    assert torch.equal(gradients["loop", "auto", True], plain)
    assert float((gradients["loop", "adjoint", True] - plain).norm() / plain.norm()) < 0.02


def test_the_last_layer_of_a_parametrised_head_is_all_of_it():
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.utils.parametrizations.weight_norm(nn.Linear(4, 2)))
    engine = make_engine("auto", model, nn.CrossEntropyLoss(), adapted="last_layer", **INNER)
    assert sorted(engine.adapted) == [
        "2.bias",
        "2.parametrizations.weight.original0",
        "2.parametrizations.weight.original1",
    ]


def test_a_last_layer_that_is_not_called_last_is_refused():
    class HeadFirst(nn.Module):
        def __init__(self):
            super().__init__()
            self.head = nn.Linear(4, 2)
            self.scale = nn.Parameter(torch.ones(()))
            self.body = nn.Linear(3, 4)

        def forward(self, x):
            return self.scale * self.head(torch.tanh(self.body(x)))

    model, (support, query) = HeadFirst().double(), data()
    engine = make_engine("auto", model, nn.CrossEntropyLoss(), adapted="last_layer", **INNER)
    with pytest.raises(UsageError, match="defined is body, the last that is called head: give names"):
        predict(engine, model, support, query)
    for right in (["head.weight", "head.bias"], "all"):
        predict(make_engine("auto", model, nn.CrossEntropyLoss(), adapted=right, **INNER), model, support, query)


def test_a_model_whose_parameters_are_all_frozen_is_refused():
    with pytest.raises(UsageError, match="no parameter of Sequential asks for a gradient"):
        make_engine("auto", mlp().requires_grad_(False), nn.CrossEntropyLoss(), **INNER)


# -- calls with other weights


def test_a_layer_that_stands_twice_keeps_its_own_weights():
    layer = nn.Linear(3, 3)
    model = nn.Sequential(layer, nn.Tanh(), layer, nn.Linear(3, 3))
    model[3].weight = layer.weight
    own = dict(model.named_parameters())
    doubled = {n: 2 * p.detach() for n, p in own.items()}
    x = torch.randn(2, 3)
    by_hand = deepcopy(model)
    with torch.no_grad():
        for p in by_hand.parameters():
            p.mul_(2)
    assert torch.allclose(call_with(model, doubled, x), by_hand(x))
    assert torch.allclose(while_holding(model, doubled, lambda: model(x)), by_hand(x))
    assert all(p is own[n] for n, p in model.named_parameters())
    assert layer.weight is own["0.weight"]
    assert model[3].weight is own["0.weight"]


def test_the_update_procedure_gives_a_model_its_inputs_anew_in_every_step():
    class Normalising(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(3, 2)

        def forward(self, x):
            return self.linear(x.div_(4))

    torch.manual_seed(0)
    model, ((x, y), query) = Normalising().double(), data(tasks=1)
    adapted = update_procedure(
        model,
        dict(model.named_parameters()),
        nn.CrossEntropyLoss(),
        x[0],
        y[0],
        steps=3,
        optimizer=lambda p: torch.optim.SGD(p, lr=0.1),
        adapted=["linear.weight", "linear.bias"],
    )
    with torch.no_grad():
        found = call_with(model, adapted, query[0].clone())
    linear = deepcopy(model.linear)
    for _ in range(3):
        loss = nn.functional.cross_entropy(linear(x[0] / 4), y[0])
        with torch.no_grad():
            for p, g in zip(linear.parameters(), torch.autograd.grad(loss, list(linear.parameters())), strict=True):
                p -= 0.1 * g
    assert torch.allclose(found, linear(query[0] / 4))


def test_a_norm_layer_takes_as_many_channels_as_it_has():
    with pytest.raises(ValueError, match="expected 1 channels"):
        TaskBatchNorm(1)(torch.randn(4, 3))


class WithASpare(nn.Module):
    """The second layer is in no output."""

    def __init__(self):
        super().__init__()
        self.first, self.spare = nn.Linear(3, 2), nn.Linear(3, 2)

    def forward(self, x):
        return self.first(x)


@pytest.mark.parametrize(
    ("name", "memory"), [("auto", "auto"), ("vmap", "auto"), ("loop", "adjoint"), ("loop", "unroll")]
)
def test_a_parameter_that_no_output_depends_on_has_no_gradient(name, memory):
    """Of zeros an optimiser would make something: decay, momentum."""
    model, (support, query) = WithASpare().double(), data()
    engine = make_engine(name, model, nn.CrossEntropyLoss(), memory=memory, **INNER)
    predict(engine, model, support, query).sum().backward()
    assert [n for n, p in model.named_parameters() if p.grad is None] == ["spare.weight", "spare.bias"]
    assert model.first.weight.grad.abs().sum() > 0


CONVOLVES = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Tanh(), nn.Flatten(), nn.Linear(8, 2)).double()


@pytest.mark.parametrize(
    ("name", "model", "shape"),
    [
        ("native", mlp(), (3,)),
        ("vmap", mlp(), (3,)),
        ("batched", CONVOLVES, (1, 4, 4)),
        ("native", CONVOLVES, (1, 4, 4)),
    ],
)
def test_a_derivative_of_the_meta_gradient_is_refused_where_it_has_no_graph(name, model, shape):
    """`torch.autograd.grad` would take the meta-gradient for a constant."""
    support, query = data(shape=shape)
    outputs = predict(make_engine(name, model, nn.CrossEntropyLoss(), **INNER), model, support, query)
    with pytest.raises(UsageError, match="create_graph=True: the meta-gradient has no graph"):
        torch.autograd.grad(outputs.sin().sum(), list(model.parameters()), create_graph=True)
    torch.autograd.grad(outputs.sin().sum(), list(model.parameters()))


def test_parameters_in_the_same_memory_are_refused():
    model = nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 3))
    model[2].weight.data = model[0].weight.data
    with pytest.raises(UsageError, match=r"parameters 0\.weight and 2\.weight lie in the same memory"):
        make_engine("auto", model, nn.CrossEntropyLoss(), **INNER)
    model[2].weight = model[0].weight
    make_engine("auto", model, nn.CrossEntropyLoss(), **INNER)
    both = torch.randn(6, 3)
    model[0].weight, model[2].weight = nn.Parameter(both[:3]), nn.Parameter(both[3:])
    make_engine("auto", model, nn.CrossEntropyLoss(), **INNER)  # beside each other in it


def test_a_list_of_parameters_is_no_hook():
    class Listed(nn.Module):
        def __init__(self):
            super().__init__()
            self.weights = nn.ParameterList([torch.randn(3, 2, dtype=torch.float64)])

        def forward(self, x):
            return x @ self.weights[0]

    model, (support, query) = Listed(), data()
    engine = make_engine("auto", model, nn.CrossEntropyLoss(), **INNER)
    assert torch.allclose(predict(engine, model, support, query), plain(model, support, query), rtol=1e-10)
    assert engine.name == "vmap"


def test_weights_that_are_kept_over_inner_steps_are_refused():
    model, (support, query) = mlp(), data()
    nn.utils.parametrizations.weight_norm(model[0])
    engine = make_engine("auto", model, nn.CrossEntropyLoss(), **INNER)
    assert torch.allclose(predict(engine, model, support, query), plain(model, support, query), rtol=1e-10)
    with nn.utils.parametrize.cached(), pytest.raises(UsageError, match=r"inside parametrize\.cached\(\)"):
        predict(engine, model, support, query)
