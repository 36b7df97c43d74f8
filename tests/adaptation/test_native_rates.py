"""Learned inner rates in the engine `native`: central differences of steps by hand, and `batched`."""

import pytest
import torch
from torch import nn

from ftml_bench.adaptation import ENGINES, InnerRule, make_engine
from tests.adaptation.stacks import INNER, cotangent_of, distance, meta_batch, needs_library, stack
from tests.adaptation.test_rule import by_hand, data, kinds, model_of

pytestmark = needs_library


@pytest.mark.parametrize("kind", ["one number", "one a layer", "one a parameter", "one a step"])
def test_derivatives_by_central_differences(kind):
    model = model_of()
    x, y, query, target = data()
    rates, rate_of, leaves = kinds(model)[kind]
    parameters = dict(model.named_parameters())
    engine = ENGINES["native"](model, nn.MSELoss(), inner_lr=0.1, inner_steps=3)

    def outputs_by_hand():
        zero = dict.fromkeys(parameters, 0.0)
        return by_hand(model, parameters, x, y, query, rate_of, 0.0, zero)[-1]

    outputs = engine.predict(parameters, (x, y), query, rule=InnerRule(rates))
    assert torch.allclose(outputs, outputs_by_hand(), atol=1e-13)
    wanted = [*leaves, *parameters.values()]
    found = torch.autograd.grad(((outputs - target) ** 2).sum(), wanted)
    for leaf, gradient in zip(wanted, found, strict=True):
        direction = torch.randn(leaf.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
        losses = []
        for length in (1e-5, -1e-5):
            with torch.no_grad():
                leaf += length * direction
                losses.append(float(((outputs_by_hand() - target) ** 2).sum()))
                leaf -= length * direction
        difference = (losses[0] - losses[1]) / 2e-5
        assert abs(float((gradient * direction).sum()) - difference) < 1e-6 * max(1, abs(difference))


@pytest.mark.parametrize("memory", ["unroll", "adjoint"])
@pytest.mark.parametrize("second_order", [True, False])
@pytest.mark.parametrize("inner_clip", [None, 0.02])
def test_of_convolutions_and_norms_like_batched(memory, second_order, inner_clip):
    model, shape = stack("RainbowNet")
    adapted = [n for n, _ in model.named_parameters()][2:]  # among them convolutions behind one that is not adapted
    parameters = dict(model.named_parameters())
    g = torch.Generator().manual_seed(2)
    each = {n: torch.rand(parameters[n].shape, generator=g, dtype=torch.float64).requires_grad_() for n in adapted}
    one = torch.tensor(0.2, dtype=torch.float64, requires_grad=True)
    x, y, query_x = meta_batch(shape)
    found = {}
    for name in ("native", "batched"):
        engine = ENGINES[name](
            model,
            nn.CrossEntropyLoss(),
            **{**INNER, "inner_steps": 3},
            memory=memory,
            second_order=second_order,
            inner_clip=inner_clip,
            adapted=adapted,
        )
        outputs = engine.predict(parameters, (x, y), query_x, rule=InnerRule([one, each]))
        wanted = [one, *each.values(), *parameters.values()]
        found[name] = [outputs, *torch.autograd.grad(outputs, wanted, cotangent_of(outputs))]
    for native, batched in zip(found["native"], found["batched"], strict=True):
        assert distance([native], [batched]) < 1e-11


def test_a_penalty_and_outputs_after_every_step_go_to_batched():
    for asked, reason in [
        ({"rule": InnerRule(penalty=0.1)}, "native takes no penalty of inner steps"),
        ({"every_step": True}, "native gives the outputs after the last step only"),
    ]:
        model = model_of()
        x, y, query, _ = data()
        engine = make_engine("native", model, nn.MSELoss(), inner_lr=0.1, inner_steps=2)
        engine.predict(dict(model.named_parameters()), (x, y), query, **asked)
        assert engine.chosen["engine"] == "batched"
        assert engine.chosen["engine_note"] == reason
