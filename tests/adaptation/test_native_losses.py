"""The engine `native` with criteria of all kinds: against `batched`, and against differences of plain descent."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from ftml_bench.adaptation.native import NativeEngine, losses
from tests.adaptation.stacks import (
    by,
    cotangent_of,
    distance,
    joined,
    meta_batch,
    needs_library,
    plain_outputs,
    slopes,
    stack,
)

pytestmark = needs_library


def classes(model="conv, bias"):
    model, shape = stack(model)
    x, y, query_x = meta_batch(shape)
    return model, x, y, query_x


def weighted(**settings):
    return nn.CrossEntropyLoss(weight=torch.tensor([0.5, 2.0, 1.2], dtype=torch.float64), **settings)


class Focal(nn.Module):
    """Some loss of others."""

    def forward(self, outputs, y):
        p = outputs.softmax(1).gather(1, y[:, None])
        return (-(1 - p).square() * p.log()).mean()


class Twice(nn.CrossEntropyLoss):
    def forward(self, outputs, y):
        return 2 * super().forward(outputs, y)


OF_CLASSES = {
    "cross entropy": nn.CrossEntropyLoss(),
    "as a function": F.cross_entropy,
    "smoothed": nn.CrossEntropyLoss(label_smoothing=0.1),
    "weighted": weighted(),
    "weighted, smoothed": weighted(label_smoothing=0.2),
    "some ignored": nn.CrossEntropyLoss(ignore_index=1),
    "some ignored, weighted, smoothed": weighted(ignore_index=2, label_smoothing=0.2),
    "sum": weighted(reduction="sum", label_smoothing=0.1),
    "of one's own": Focal(),
    "a function of one's own": lambda outputs, y: F.cross_entropy(2 * outputs, y) + 0.1 * outputs.square().mean(),
    "of a class of one's own": Twice(),
    "linear in the outputs": lambda outputs, y: outputs.gather(1, y[:, None]).mean(),
}
BY_CALLS_BACK = ["of one's own", "a function of one's own", "of a class of one's own", "linear in the outputs"]
OF_NUMBERS = {
    "squared error": nn.MSELoss(),
    "squared error as a function": F.mse_loss,
    "squared error, sum": nn.MSELoss(reduction="sum"),
    "huber": nn.HuberLoss(),
    "smooth l1": nn.SmoothL1Loss(beta=0.3),
    "l1": nn.L1Loss(),
}


@pytest.mark.parametrize("memory", ["unroll", "adjoint"])
@pytest.mark.parametrize("name", OF_CLASSES)
def test_losses_of_classes(name, memory):
    model, *data = classes()
    criterion = OF_CLASSES[name]
    assert (losses.plain(criterion) is None) == (name in BY_CALLS_BACK)
    found, expected = (by(e, model, criterion, data, memory=memory) for e in ("native", "batched"))
    assert distance([found[0]], [expected[0]]) < 1e-12
    assert distance(found[1], expected[1]) < 1e-12
    slope, numeric = slopes(model, criterion, data, found[1])
    assert slope == pytest.approx(numeric, rel=1e-6)


@pytest.mark.parametrize("targets", [(3,), (1,), ()])
@pytest.mark.parametrize("name", OF_NUMBERS)
@pytest.mark.filterwarnings("ignore:Using a target size")
def test_losses_of_numbers_also_where_targets_are_spread_over_outputs(name, targets):
    model, shape = stack("conv, bias")
    support = 3 if targets == () else 6  # (3,) spreads over (3, 3)
    data = meta_batch(shape, targets=targets, support=support)
    found, expected = (by(e, model, OF_NUMBERS[name], data) for e in ("native", "batched"))
    assert distance(found[1], expected[1]) < 1e-12
    slope, numeric = slopes(model, OF_NUMBERS[name], data, found[1])
    assert slope == pytest.approx(numeric, rel=1e-6)


def test_probabilities_as_targets():
    model, x, y, query_x = classes()
    y = torch.rand(*y.shape, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).softmax(-1)
    found, expected = (by(e, model, nn.CrossEntropyLoss(), (x, y, query_x))[1] for e in ("native", "batched"))
    assert distance(found, expected) < 1e-12


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_a_task_whose_targets_are_all_ignored_stays_as_in_pytorch(smoothing):
    model, x, y, query_x = classes()
    y[1] = 2
    criterion = nn.CrossEntropyLoss(ignore_index=2, label_smoothing=smoothing)
    data = (x, y, query_x)
    outputs, gradients = by("native", model, criterion, data)
    assert distance([outputs[1]], [model(query_x[1])]) < 1e-14
    assert distance([outputs], [plain_outputs(model, criterion, data)]) < 1e-12
    assert not joined(gradients).isnan().any()


def test_what_a_criterion_raises_comes_through():
    model, x, y, query_x = classes()
    with pytest.raises(IndexError, match="out of bounds"):
        by("native", model, nn.CrossEntropyLoss(), (x, y + 2, query_x))

    def broken(outputs, y):
        raise ZeroDivisionError("of this criterion")

    with pytest.raises(ZeroDivisionError, match="of this criterion"):
        by("native", model, broken, (x, y, query_x))


def test_the_criterion_of_the_forward_pass_counts():
    model, x, y, query_x = classes()
    expected = by("native", model, Huberlike(0.7), (x, y, query_x))[1]
    criterion = Huberlike(0.7)
    engine = NativeEngine(model, criterion, inner_lr=0.1, inner_steps=2, memory="adjoint")
    outputs = engine.predict(dict(model.named_parameters()), (x, y), query_x)
    criterion.factor = 3.0
    found = torch.autograd.grad(outputs, list(model.parameters()), cotangent_of(outputs))
    assert distance(found, expected) < 1e-14


class Huberlike(nn.Module):
    def __init__(self, factor):
        super().__init__()
        self.factor = factor

    def forward(self, outputs, y):
        return F.cross_entropy(self.factor * outputs, y)
