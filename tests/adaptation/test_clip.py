"""Inner gradients that are cut to an interval, in training and in the update procedure."""

import pytest
import torch
from torch import nn

from ftml_bench.adaptation import ENGINES, make_engine
from ftml_bench.adaptation.weights import call_with
from ftml_bench.errors import UsageError
from tests.adaptation.plain_copies import INNER, data, mlp, plain, predict


@pytest.mark.parametrize("name", sorted(ENGINES))
@pytest.mark.parametrize("order", [True, False])
def test_clipped_inner_steps_are_those_of_plain_copies_and_so_is_their_derivative(name, order):
    model, (support, query) = mlp(), data()
    clip = 0.05
    engine = make_engine(name, model, nn.CrossEntropyLoss(), inner_clip=clip, second_order=order, **INNER)
    outputs = predict(engine, model, support, query)
    assert torch.allclose(outputs, plain(model, support, query, clip=clip), rtol=1e-10)
    assert not torch.allclose(outputs, plain(model, support, query), rtol=1e-3)
    gradients = torch.autograd.grad(outputs.sin().sum(), list(model.parameters()))
    adapted = engine.adapt(dict(model.named_parameters()), support[0][0], support[1][0], 2)
    with torch.no_grad():
        by_hand = call_with(model, adapted, query[0])
    assert torch.allclose(by_hand, outputs[0], rtol=1e-10)
    if order:
        torch.manual_seed(5)
        moved = [torch.randn_like(p) for p in model.parameters()]
        h = 1e-6
        ends = [plain(model, support, query, clip=clip, moved=moved, h=k).sin().sum() for k in (h, -h)]
        slope = sum(float((g * d).sum()) for g, d in zip(gradients, moved, strict=True))
        assert slope == pytest.approx(float(ends[0] - ends[1]) / (2 * h), rel=1e-6)


@pytest.mark.parametrize("clip", [0, -1.0])
def test_a_clip_that_clips_nothing_is_refused(clip):
    with pytest.raises(UsageError, match="inner_clip="):
        make_engine("auto", mlp(), nn.CrossEntropyLoss(), inner_clip=clip, **INNER)


def test_a_sparse_gradient_can_be_clipped():
    model = nn.Sequential(nn.Embedding(6, 3, sparse=True), nn.Flatten(), nn.Linear(12, 2)).double()
    x, y = torch.randint(0, 6, (5, 4)), torch.randint(2, (5,))
    adapted = make_engine("loop", model, nn.CrossEntropyLoss(), inner_clip=0.01, **INNER).adapt(
        dict(model.named_parameters()), x, y, 1
    )
    assert float((adapted["0.weight"] - model[0].weight).abs().max()) <= 0.01 * INNER["inner_lr"] * (1 + 1e-9)


def test_so_it_can_in_inner_steps_of_first_order():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(6, 3, sparse=True), nn.Flatten(), nn.Linear(12, 3)).double()
    support = torch.randint(0, 6, (2, 5, 4)), torch.randint(3, (2, 5))
    query, settings = torch.randint(0, 6, (2, 3, 4)), {"inner_clip": 0.05, **INNER}
    engine = make_engine("auto", model, nn.CrossEntropyLoss(), second_order=False, **settings)
    found = predict(engine, model, support, query)
    with pytest.raises(UsageError, match=r"takes no derivative of sparse gradients.*second_order=False may do"):
        predict(make_engine("auto", model, nn.CrossEntropyLoss(), **settings), model, support, query)
    model[0].sparse = False
    assert torch.allclose(found, plain(model, support, query, clip=0.05), rtol=1e-10)
