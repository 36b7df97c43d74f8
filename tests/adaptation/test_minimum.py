"""The derivative of a minimum, in every engine that takes it, against solved systems of dense Hessians."""

import pytest
import torch
from torch import nn

from ftml_bench.adaptation import InnerRule, make_engine
from ftml_bench.errors import UsageError
from tests.adaptation.test_rule import data, model_of

PENALTY = 2.0


def dense(model, x, y, query, cotangent, adapted):
    """What each task adds to the gradients of w and of what is not adapted, by the whole Hessian at the minimum."""
    start = {n: p.detach() for n, p in model.named_parameters()}

    def loss(flat, other, x, y):
        weights, at = {**start, **other}, 0
        for n in adapted:
            size = start[n].numel()
            weights[n], at = flat[at : at + size].view(start[n].shape), at + size
        return nn.functional.mse_loss(torch.func.functional_call(model, weights, (x,)), y), weights

    total = {n: torch.zeros_like(p) for n, p in start.items()}
    for task in range(len(x)):
        w = torch.cat([start[n].flatten() for n in adapted])
        other = {n: p.clone().requires_grad_() for n, p in start.items() if n not in adapted}

        def inner(flat, other=other, task=task, w=w):
            return loss(flat, other, x[task], y[task])[0] + PENALTY / 2 * (flat - w).square().sum()

        flat = w.clone()
        for _ in range(400):
            flat = (flat - 0.3 * torch.func.grad(inner)(flat)).detach()
        assert float(torch.func.grad(inner)(flat).norm()) < 1e-9
        hessian = torch.func.hessian(inner)(flat).detach()  # with the penalty
        leaf = flat.clone().requires_grad_()
        outputs = torch.func.functional_call(model, loss(leaf, other, x[task], y[task])[1], (query[task],))
        v, *direct = torch.autograd.grad(outputs, [leaf, *other.values()], cotangent[task], allow_unused=True)
        d = torch.linalg.solve(hessian, v)
        for n, part in zip(adapted, (PENALTY * d).split([start[n].numel() for n in adapted]), strict=True):
            total[n] += part.view(start[n].shape)
        slope = torch.func.grad(inner)
        for (n, p), own in zip(other.items(), direct, strict=True):
            mixed = torch.autograd.grad(slope(flat, {**other, n: p}) @ d, p)[0]
            total[n] += (0 if own is None else own) - mixed
    return total


@pytest.mark.parametrize("adapted", ["all", "last_layer"])
def test_the_derivative_is_that_of_a_solved_system(adapted):
    model = model_of()
    x, y, query, target = data()
    cotangent = torch.randn(target.shape, generator=torch.Generator().manual_seed(4), dtype=target.dtype)
    parameters, expected = dict(model.named_parameters()), None
    for name in ("loop", "vmap", "batched", "auto"):
        engine = make_engine(name, model, nn.MSELoss(), inner_lr=0.3, inner_steps=400, adapted=adapted)
        outputs = engine.predict(parameters, (x, y), query, rule=InnerRule(penalty=PENALTY, implicit=40))
        found = torch.autograd.grad(outputs, list(parameters.values()), cotangent)
        expected = expected or dense(model, x, y, query, cotangent, engine.adapted)
        for (n, value), gradient in zip(expected.items(), found, strict=True):
            assert torch.allclose(gradient, value, atol=1e-7), (name, n)
        unrolled = engine.predict(parameters, (x, y), query, rule=InnerRule(penalty=PENALTY))
        assert torch.equal(outputs, unrolled), name
        for a, b in zip(torch.autograd.grad(unrolled, list(parameters.values()), cotangent), found, strict=True):
            assert torch.allclose(a, b, atol=1e-7), (name, "that of very many steps")


def test_an_anchor_of_its_own_collects_the_derivative_and_the_weights_none():
    model = model_of()
    x, y, query, _ = data()
    parameters = dict(model.named_parameters())
    anchor = {n: (p.detach() + 0.1).requires_grad_() for n, p in parameters.items()}
    engine = make_engine("auto", model, nn.MSELoss(), inner_lr=0.3, inner_steps=400)
    rules = [InnerRule(penalty=PENALTY, anchor=anchor, implicit=n) for n in (40, 0)]
    found = []
    for rule in rules:
        outputs = engine.predict(parameters, (x, y), query, rule=rule)
        found.append(torch.autograd.grad(outputs.sum(), [*anchor.values(), *parameters.values()], allow_unused=True))
    for a, b in zip(*found, strict=True):
        assert torch.allclose(a, b, atol=1e-7)
    assert all(float(g.abs().max()) == 0 for g in found[0][len(anchor) :])


def test_what_cannot_be_is_refused_in_one_line():
    model = model_of()
    x, y, query, _ = data()
    parameters, rule = dict(model.named_parameters()), InnerRule(penalty=PENALTY, implicit=3)

    def outputs(name="auto", rule=rule, every_step=False, **settings):
        engine = make_engine(name, model, nn.MSELoss(), inner_lr=0.1, inner_steps=2, **settings)
        return engine.predict(parameters, (x, y), query, rule=rule, every_step=every_step)

    for message, arguments in [
        ("takes no derivative of a minimum", {"name": "higher"}),
        ("every_step: the derivative of a minimum", {"every_step": True}),
        ("second_order=False: the derivative of a minimum", {"second_order": False}),
        ("implicit=3: expected a penalty above 0", {"rule": InnerRule(implicit=3)}),
    ]:
        with pytest.raises(UsageError, match=message) as error:
            outputs(**arguments)
        assert "\n" not in str(error.value)
