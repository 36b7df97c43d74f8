"""Where a trial might see nothing: outputs that are constants, sets that are larger, models that ask for float32."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from ftml_bench.adaptation import make_engine
from ftml_bench.adaptation.agreement import distances
from ftml_bench.errors import UsageError
from tests.adaptation.plain_copies import INNER, data, plain, predict

LAST_TWO = torch.tensor([False, False, False, True, True])


class Swish(torch.autograd.Function):
    """x sigmoid(x) with the right first derivative and no second: the backward is of saved numbers."""

    @staticmethod
    def forward(ctx, x):
        s = x.sigmoid()
        ctx.save_for_backward(s + x * s * (1 - s))
        return x * s

    @staticmethod
    def backward(ctx, gradient):
        return gradient * ctx.saved_tensors[0]


class Net(nn.Module):
    """A network that may compute a part once more backwards, by which unrolled steps of `loop` are wrong."""

    def __init__(self, *, last=lambda outputs: outputs, recomputes=lambda x: False, swish=F.silu):
        super().__init__()
        torch.manual_seed(1)
        self.body, self.head = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh()), nn.Linear(8, 5)
        self.last, self.recomputes, self.swish = last, recomputes, swish

    def forward(self, x):
        features = checkpoint(self.body, x, use_reentrant=False) if self.recomputes(x) else self.body(x)
        return self.last(self.head(self.swish(features)))


def always(x):
    return True


def assert_exact(engine, model, support, query, criterion=F.cross_entropy, rtol=1e-6):
    """Outputs and a directional derivative equal those of plain copies; constants and infinities are equal."""
    outputs, expected = predict(engine, model, support, query), plain(model, support, query, criterion)
    is_live = expected.abs() < 1e3
    assert torch.equal(outputs[~is_live], expected[~is_live])
    assert torch.allclose(outputs[is_live], expected[is_live], rtol=rtol)
    torch.manual_seed(5)
    weights = torch.randn_like(expected)[is_live]
    moved = [torch.randn_like(p) for p in model.parameters()]
    gradients = torch.autograd.grad((outputs[is_live] * weights).sum(), list(model.parameters()))
    slope = sum((g * d).sum() for g, d in zip(gradients, moved, strict=True))
    behind, before = (plain(model, support, query, criterion, moved=moved, h=h)[is_live] for h in (1e-5, -1e-5))
    assert torch.allclose(slope, ((behind - before) * weights).sum() / 2e-5, rtol=1e-5)


# -- outputs that are large, infinite, or none of the weights' business


def filled(value):
    return lambda outputs: outputs.masked_fill(LAST_TWO, value)


def added(value):
    return lambda outputs: outputs + torch.zeros(5, dtype=outputs.dtype).masked_fill(LAST_TWO, value)


MASKS = {
    "filled with -1e9": filled(-1e9),
    "filled with the least": filled(torch.finfo(torch.float64).min),
    "filled with -inf": filled(-float("inf")),
    "-1e6 added": added(-1e6),
    "-1e9 added": added(-1e9),
    "-1e30 added": added(-1e30),
    "-inf added": added(-float("inf")),
    "log probabilities": lambda outputs: F.log_softmax(filled(-1e9)(outputs), 1),
    "by point": lambda outputs: outputs.masked_fill((outputs[:, :1] > 0) & LAST_TWO, -1e9),
}


@pytest.mark.parametrize("mask", MASKS)
def test_masks_hide_nothing(mask):
    support, query = data(support=10, classes=3)
    model = Net(last=MASKS[mask]).double()
    engine = make_engine("auto", model, nn.CrossEntropyLoss(), **INNER)
    assert_exact(engine, model, support, query)
    assert engine.name == "vmap"  # nothing is taken for wrong
    model = Net(last=MASKS[mask], recomputes=always).double()
    engine = make_engine("auto", model, nn.CrossEntropyLoss(), **INNER)
    assert_exact(engine, model, support, query)
    assert (engine.name, engine.chosen_memory) == ("loop", "adjoint")
    model = Net(last=MASKS[mask], swish=Swish.apply).double()
    with pytest.raises(UsageError, match="another derivative than finite differences"):
        predict(make_engine("auto", model, nn.CrossEntropyLoss(), **INNER), model, support, query)


@pytest.mark.parametrize("last", [lambda o: o + 1e4, lambda o: 1e-9 * o, lambda o: (8 * o).exp()])
def test_outputs_of_any_size_are_compared(last):
    support, query = data(support=10)

    def criterion(outputs, y):
        return F.cross_entropy(outputs / outputs.norm(), y)

    model = Net(last=last, recomputes=always).double()
    engine = make_engine("auto", model, criterion, **INNER)
    predict(engine, model, support, query)
    assert (engine.name, engine.chosen_memory) == ("loop", "adjoint")


class Rounded(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.round()

    @staticmethod
    def backward(ctx, gradient):
        return gradient


@pytest.mark.parametrize("last", [Rounded.apply, lambda o: torch.cat([o[:, :4], Rounded.apply(o[:, 4:])], 1)])
def test_outputs_that_stay_are_not_taken_with_a_derivative(last):
    def criterion(outputs, y):  # so that it is no matter of the inner steps
        return F.cross_entropy(outputs[:, :4], y)

    model, (support, query) = Net(last=last).double(), data()
    with pytest.raises(UsageError, match="another derivative than finite differences"):
        predict(make_engine("auto", model, criterion, **INNER), model, support, query)


@pytest.mark.parametrize("mask", MASKS)
def test_masks_do_not_hide_outputs_that_depend_on_earlier_calls(mask):
    class Counting(Net):
        calls = 0

        def forward(self, x):
            self.calls += 1
            return MASKS[mask](super().forward(x) + 0.01 * self.calls * torch.arange(5))

    model, (support, query) = Counting().double(), data()
    with pytest.raises(UsageError, match="computes other outputs than plain copies"):
        predict(make_engine("auto", model, nn.CrossEntropyLoss(), **INNER), model, support, query)


@pytest.mark.parametrize("constant", [1e7, 1e9])
def test_a_derivative_that_rounding_hides_is_said_not_to_be_compared(constant):
    model, (support, query) = Net(last=lambda o: o + constant).double(), data()
    engine = make_engine("auto", model, nn.CrossEntropyLoss(), **INNER)
    predict(engine, model, support, query)
    assert "finite differences cannot tell its derivative" in engine.chosen["engine_note"]


def test_distances_are_beyond_rounding_and_infinite_where_nothing_agrees():
    inf, nan = float("inf"), float("nan")
    expected = torch.tensor([1e9, 1e9, 0.0, inf, -inf, nan, 1.0, inf], dtype=torch.float64)
    found = torch.tensor([1e9 + 1e-6, 1e9 + 1, 1e-20, inf, -inf, nan, nan, -inf], dtype=torch.float64)
    assert torch.allclose(
        distances(found, expected), torch.tensor([0, 1, 1e-20, 0, 0, 0, inf, inf]).double(), atol=0, rtol=1e-4
    )
    assert distances(found[:1], expected).isinf().all()
    assert distances(torch.tensor([1, 3]), torch.tensor([1, 2])).round().tolist() == [0, 1]


# -- sets of more points


@pytest.mark.parametrize(("tasks", "points", "least"), [(3, 10, 8), (10, 10, 8), (2, 25, 20), (3, 32, 31)])
def test_branches_on_the_number_of_points_are_seen(tasks, points, least):
    support, query = data(tasks=tasks, support=points, classes=5)
    model = Net(recomputes=lambda x: len(x) > least).double()
    engine = make_engine("auto", model, nn.CrossEntropyLoss(), **INNER)
    assert_exact(engine, model, support, query)


def test_a_larger_set_later_is_seen():
    model = Net(recomputes=lambda x: len(x) > 8).double()
    engine = make_engine("loop", model, nn.CrossEntropyLoss(), **INNER)
    for points, memory in ((6, "unroll"), (10, "adjoint")):
        assert_exact(engine, model, *data(support=points))
        assert engine.chosen_memory == memory


@pytest.mark.parametrize("points", [10, 50])
def test_points_that_the_criterion_passes_over_are_not_all_that_is_seen(points):
    (x, y), query = data(support=points, classes=5)
    y[:, : points - 5] = -100
    model = Net(recomputes=always).double()
    assert_exact(make_engine("auto", model, nn.CrossEntropyLoss(), **INNER), model, (x, y), query)


# -- models and losses that ask for single precision

CLASS_WEIGHTS = torch.rand(5, generator=torch.Generator().manual_seed(0), dtype=torch.float32)
CASTS = {
    "float()": lambda o: o.float(),
    "to(dtype)": lambda o: o.to(torch.float32),
    "type()": lambda o: o.type(torch.float32),
    "type_as": lambda o: o.type_as(CLASS_WEIGHTS),
    "dtype=": lambda o: o.softmax(1, dtype=torch.float32),
    "made in float32": lambda o: o @ torch.eye(5, dtype=torch.float32),
    "a tensor of no module": lambda o: F.linear(o, CLASS_WEIGHTS.diag()),
}


def in_single(model):
    support, query = data(tasks=2, support=3, query=3, classes=5)
    return model.float(), (support[0].float(), support[1]), query.float()


@pytest.mark.parametrize(
    ("cast", "of_criterion"), [*((cast, False) for cast in CASTS), ("float()", True), ("a tensor of no module", True)]
)
def test_what_asks_for_single_precision_is_tried_in_double(cast, of_criterion):
    last, criterion = CASTS[cast], F.cross_entropy
    if of_criterion:
        last, criterion = (lambda o: o), lambda o, y: F.cross_entropy(CASTS[cast](o), y, weight=CLASS_WEIGHTS)
    model, support, query = in_single(Net(last=last))
    engine = make_engine("auto", model, criterion, **INNER)
    assert torch.allclose(predict(engine, model, support, query), plain(model, support, query, criterion), rtol=1e-4)
    assert "single precision" not in engine.chosen["engine_note"]
    model, support, query = in_single(Net(last=last, recomputes=always))
    engine = make_engine("auto", model, criterion, **INNER)
    assert torch.allclose(predict(engine, model, support, query), plain(model, support, query, criterion), rtol=1e-4)
    assert (engine.name, engine.chosen_memory) == ("loop", "adjoint")
    model, support, query = in_single(Net(last=last, swish=Swish.apply))
    with pytest.raises(UsageError, match="another derivative than finite differences"):
        predict(make_engine("auto", model, criterion, **INNER), model, support, query)


def test_single_precision_on_the_way_back_is_tried_in_double():
    body = Net().body
    model, support, query = in_single(Net(recomputes=always))
    model.body = nn.Sequential(*body, type("Cast", (nn.Module,), {"forward": lambda self, x: x.float()})())
    engine = make_engine("auto", model, F.cross_entropy, **INNER)
    assert torch.allclose(predict(engine, model, support, query), plain(model, support, query), rtol=1e-4)
    assert (engine.name, engine.chosen_memory) == ("loop", "adjoint")
