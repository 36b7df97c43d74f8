"""Forward passes by the kernels of `native`: outputs, gradients and running statistics are the model's own."""

import copy

import pytest
import torch
from torch import nn

from ftml_bench.adaptation import make_engine
from ftml_bench.adaptation.inner_loop import update_procedure
from ftml_bench.adaptation.plain_pass import PlainPass
from ftml_bench.models import RainbowNet
from ftml_bench.models.norm import batch_statistics, convert_batch_norm
from tests.adaptation.stacks import needs_library, stack

pytestmark = needs_library


def rows(shape, number=12, classes=3):
    g = torch.Generator().manual_seed(4)
    x = torch.randn(number, *shape, generator=g, dtype=torch.float64)
    return x, torch.randint(classes, (number,), generator=g)


def stock(name):
    """A model with norms as PyTorch has them, and a copy with norms of ours."""
    model, shape = stack(name)
    own = copy.deepcopy(model)
    for module in own.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.__class__ = nn.BatchNorm2d
    return own, convert_batch_norm(model), shape


@pytest.mark.parametrize("groups", [1, 3])
def test_outputs_gradients_and_running_statistics_are_those_of_stock_layers(groups):
    plain, model, shape = stock("RainbowNet")
    x, y = rows(shape)
    found = PlainPass(model)(x, groups=groups, keeps_running=True)
    nn.functional.cross_entropy(found, y).backward()
    moments = []
    outputs = []
    for part in x.chunk(groups):  # each group by a copy of its own, from which the running statistics are averaged
        one = copy.deepcopy(plain)
        outputs.append(one(part))
        moments.append({n: b for n, b in one.named_buffers() if "running" in n})
        for p, q in zip(plain.parameters(), one.parameters(), strict=True):
            q.register_hook(lambda g, p=p: setattr(p, "grad", g if p.grad is None else p.grad + g))
    nn.functional.cross_entropy(torch.cat(outputs), y).backward()
    assert torch.allclose(found, torch.cat(outputs), atol=1e-12)
    for p, q in zip(model.parameters(), plain.parameters(), strict=True):
        assert torch.allclose(p.grad, q.grad, atol=1e-12)
    for name, buffer in model.named_buffers():
        if "running" in name:
            assert torch.allclose(buffer, torch.stack([m[name] for m in moments]).mean(0), atol=1e-12)


@pytest.mark.parametrize("groups", [1, 3])
def test_gradients_have_derivatives_of_their_own(groups):
    model, shape = stack("RainbowNet")
    x, y = rows(shape)
    x.requires_grad_()
    found = []
    for by in (PlainPass(model), model):
        with batch_statistics(groups=groups):
            outputs = by(x, groups=groups) if by is not model else model(x)
        inputs = [x, *model.parameters()]
        gradients = torch.autograd.grad(nn.functional.cross_entropy(outputs, y), inputs, create_graph=True)
        penalty = sum(g.square().sum() for g in gradients)
        found.append([*gradients, *torch.autograd.grad(penalty, inputs, allow_unused=True, materialize_grads=True)])
    assert all(torch.allclose(*pair, atol=1e-11) for pair in zip(*found, strict=True))
    assert all(float(g.abs().max()) > 0 for g in found[0][-len(inputs) : -1])


def test_what_changes_in_the_model_is_noticed():
    model = convert_batch_norm(RainbowNet(filters=4, layers=2, image_size=8)).double()
    x, _ = rows((3, 8, 8))
    kernels = PlainPass(model)
    assert kernels(x) is not None
    with torch.no_grad():
        model[0].weight.mul_(2)
    with batch_statistics():
        assert torch.allclose(kernels(x), model(x), atol=1e-12)
    model[0].register_forward_hook(lambda module, inputs, outputs: 2 * outputs)
    assert kernels(x) is None


@pytest.mark.parametrize(
    "model",
    [nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5)), nn.Sequential(nn.LayerNorm(4)), nn.GRUCell(4, 4)],
    ids=["dropout", "layer norm", "no stack"],
)
def test_other_models_are_left_to_themselves(model):
    assert PlainPass(model.double())(torch.randn(6, 4, dtype=torch.float64)) is None


@pytest.mark.parametrize("clip", [None, 0.05])
def test_the_update_procedure_is_that_of_the_model(clip):
    model, shape = stack("RainbowNet")
    x, y = rows(shape)
    parameters = dict(model.named_parameters())
    engine = make_engine("native", model, nn.CrossEntropyLoss(), inner_lr=0.1, inner_steps=1, inner_clip=clip)
    found = engine.adapt(parameters, x, y, 4)
    assert engine.name == "native"
    expected = update_procedure(
        model,
        parameters,
        nn.CrossEntropyLoss(),
        x,
        y,
        steps=4,
        optimizer=lambda leaves: torch.optim.SGD(leaves, lr=0.1),
        adapted=list(parameters),
        clip=clip,
    )
    for name, p in expected.items():
        assert torch.allclose(found[name], p, atol=1e-12)
        assert not torch.equal(found[name], parameters[name])


@pytest.mark.parametrize("adapted", ["all", "last_layer"])
def test_the_update_procedures_of_several_tasks_side_by_side_are_those_of_each(adapted):
    model, shape = stack("RainbowNet")
    x, y = (part.unflatten(0, (3, 4)) for part in rows(shape))
    parameters = dict(model.named_parameters())
    engine = make_engine("native", model, nn.CrossEntropyLoss(), inner_lr=0.1, inner_steps=1, adapted=adapted)
    alone = [engine.adapt(parameters, *task, 3) for task in zip(x, y, strict=True)]
    together = engine.adapt_each(parameters, x, y, 3)
    for found, expected in zip(together, alone, strict=True):
        assert found.keys() == parameters.keys()
        assert all(torch.equal(found[name], expected[name]) for name in parameters)
        unchanged = {name for name in parameters if torch.equal(found[name], parameters[name])}
        assert unchanged == set(parameters) - set(engine.adapted)


def test_support_statistics_of_a_meta_batch_without_a_pass_of_their_own():
    model, shape = stack("RainbowNet")
    x, y = (part.unflatten(0, (3, 4)) for part in rows(shape))
    plain = copy.deepcopy(model)
    engine = make_engine("native", model, nn.CrossEntropyLoss(), inner_lr=0.1, inner_steps=2)
    engine.predict(dict(model.named_parameters()), (x, y), x)
    with torch.no_grad(), batch_statistics(groups=3, keep="recorded"):
        plain(x.flatten(0, 1))
    for name, moments in engine.moments.items():
        layer = plain.get_submodule(name)
        assert torch.allclose(moments.mean.mean(0), layer.running_mean, atol=1e-12)
        assert torch.allclose(moments.var.mean(0), layer.running_var, atol=1e-12)
