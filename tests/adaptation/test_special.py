"""Engines where models draw, change themselves or cannot be treated, and what is kept in memory."""

import pytest
import torch
from torch import nn

from ftml_bench.adaptation import make_engine
from ftml_bench.adaptation.kernels import (
    _NormBackward,
    batch_norm,
    batch_norm_by_first,
    conv2d,
    conv2d_by_patches,
)
from ftml_bench.adaptation.steps import WrittenSteps
from ftml_bench.errors import UsageError
from ftml_bench.models import RainbowNet

INNER = {"inner_lr": 0.2, "inner_steps": 3}


def data(tasks=3, width=4):
    torch.manual_seed(0)
    x = torch.randn(tasks, 9, width, dtype=torch.float64)
    return (x[:, :5], x[:, :5].sin().sum(2, keepdim=True)), x[:, 5:]


def outputs(engine, model, support, query_x, seed=3):
    torch.manual_seed(seed)
    return engine.predict(dict(model.named_parameters()), support, query_x)


def gradient(name, model, support, query_x, **settings):
    """Of the sum of squared outputs; every layer that draws starts from the same seed."""
    engine = make_engine(name, model, nn.MSELoss(), **{**INNER, **settings})
    loss = outputs(engine, model, support, query_x).square().sum()
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(model.parameters()))])


def distance(a, b):
    return float((a - b).norm() / b.norm())


def dropout_net():
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(4, 8), nn.Softplus(), nn.Dropout(0.4), nn.Linear(8, 1)).double()


def test_dropout_of_one_task_draws_alike_in_every_engine():
    model, (support, query_x) = dropout_net(), data(tasks=1)
    reference = gradient("higher", model, support, query_x)
    for name, memory in [("loop", "adjoint"), ("vmap", "adjoint"), ("batched", "unroll"), ("batched", "adjoint")]:
        assert distance(gradient(name, model, support, query_x, memory=memory), reference) < 1e-9, name
    assert distance(gradient("higher", model.eval(), support, query_x), reference) > 1e-2  # it does draw


@pytest.mark.parametrize(("name", "memory"), [("loop", "adjoint"), ("vmap", "adjoint"), ("batched", "unroll")])
def test_dropout_of_several_tasks_has_the_derivative_of_what_was_drawn(name, memory):
    model, (support, query_x) = dropout_net(), data()
    exact = gradient(name, model, support, query_x, memory=memory)
    engine = make_engine(name, model, nn.MSELoss(), memory=memory, **INNER)
    direction = torch.randn_like(exact)
    start = nn.utils.parameters_to_vector(model.parameters()).detach()

    def moved(length):
        nn.utils.vector_to_parameters(start + length * direction, model.parameters())
        return outputs(engine, model, support, query_x).square().sum().detach()

    # the extrapolation of the other tests
    small, large = [(moved(h) - moved(-h)) / (2 * h) for h in (1e-5, 2e-5)]
    assert float(exact @ direction) == pytest.approx(float((4 * small - large) / 3), rel=1e-6)
    nn.utils.vector_to_parameters(start, model.parameters())
    first, second = (outputs(engine, model, support[:2], query_x) for _ in range(2))
    assert torch.equal(first, second)
    assert not torch.allclose(first[0], outputs(engine, model, support, query_x, seed=4)[0])


class OwnDropout(nn.Module):
    """Draws from a fixed generator of its own."""

    def __init__(self):
        super().__init__()
        self.generator = torch.Generator().manual_seed(5)

    def forward(self, x):
        return x * torch.bernoulli(torch.full_like(x, 0.5), generator=self.generator)


def own_dropout_net():
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(4, 8), nn.Softplus(), OwnDropout(), nn.Linear(8, 1)).double()


def test_a_layer_with_a_generator_of_its_own_is_left_to_the_loop():
    support, query_x = data()
    reference = gradient("higher", own_dropout_net(), support, query_x)
    for name in ("loop", "auto"):
        assert distance(gradient(name, own_dropout_net(), support, query_x), reference) < 1e-9
    chosen = make_engine("auto", own_dropout_net(), nn.MSELoss(), **INNER).chosen
    assert chosen["engine"] == "loop"
    assert (
        "vmap with memory='adjoint' cannot draw twice alike from the generator of OwnDropout (2)"
        in (chosen["engine_note"])
    )
    for name in ("vmap", "loop"):
        with pytest.raises(UsageError, match="cannot draw twice alike"):
            make_engine(name, own_dropout_net(), nn.MSELoss(), memory="adjoint", **INNER)


class Branching(nn.Module):
    """Looks at its values, which vmap does not allow."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 1)

    def forward(self, x):
        return self.linear(x).sin() if float(x.detach().sum()) < 1e9 else x


def test_auto_falls_back_to_the_loop_at_the_first_prediction_and_says_why():
    model, (support, query_x) = Branching().double(), data()
    engine = make_engine("auto", model, nn.MSELoss(), **INNER)
    assert engine.name == "vmap"
    outputs(engine, model, support, query_x)
    assert engine.name == engine.chosen["engine"] == "loop"
    assert "vmap cannot treat this model (" in engine.chosen["engine_note"]
    with pytest.raises(UsageError, match="use engine='loop'"):
        outputs(make_engine("vmap", model, nn.MSELoss(), **INNER), model, support, query_x)


class Counting(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 1)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        self.calls += 1
        return self.linear(x)


class Once(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient):
        return gradient * 1


class DifferentiableOnce(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 1)

    def forward(self, x):
        return Once.apply(self.linear(x).sin())


@pytest.mark.parametrize(
    ("build", "message"),
    [(Counting, "its buffer calls changes"), (DifferentiableOnce, "no engine can treat DifferentiableOnce: ")],
)
def test_a_model_that_no_engine_can_treat_exactly_is_refused(build, message):
    model, (support, query_x) = build().double(), data()
    engine = make_engine("auto", model, nn.MSELoss(), **INNER)
    with pytest.raises(UsageError, match=message) as error:
        outputs(engine, model, support, query_x)
    assert "\n" not in str(error.value)


def test_norms_that_keep_running_statistics_of_their_own_are_refused():
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.InstanceNorm2d(2, track_running_stats=True))
    with pytest.raises(UsageError, match=r"InstanceNorm2d \(1\) keeps running statistics"):
        make_engine("auto", model, nn.MSELoss(), **INNER)


def test_higher_and_vmap_have_one_kind_of_memory():
    with pytest.raises(UsageError, match="takes memory='unroll' only"):
        make_engine("higher", dropout_net(), nn.MSELoss(), memory="adjoint", **INNER)
    with pytest.raises(UsageError, match="takes memory='adjoint' only"):
        make_engine("vmap", dropout_net(), nn.MSELoss(), memory="unroll", **INNER)
    with pytest.raises(UsageError, match="did you mean 'adjoint'"):
        make_engine("auto", dropout_net(), nn.MSELoss(), memory="adjiont", **INNER)


@pytest.mark.parametrize("name", ["batched", "loop"])
def test_the_adjoint_is_taken_when_the_unrolled_graph_would_exceed_the_budget(name):
    model = RainbowNet(layers=2, filters=8, image_size=14)
    torch.manual_seed(0)
    x, y = torch.rand(2, 8, 3, 14, 14), torch.randint(10, (2, 8))
    support, query_x = (x[:, :4], y[:, :4]), x[:, 4:]

    def engine(**settings):
        return make_engine(name, model, nn.CrossEntropyLoss(), inner_lr=0.1, inner_steps=20, **settings)

    kept = {}
    unrolled = engine(memory="unroll")
    unrolled.predict(dict(model.named_parameters()), support, query_x)  # the trial is over
    with torch.autograd.graph.saved_tensors_hooks(
        lambda t: kept.update({t.untyped_storage().data_ptr(): (t.untyped_storage().nbytes(), t)}) or t, lambda t: t
    ):
        unrolled.predict(dict(model.named_parameters()), support, query_x)
    counted = sum(size for size, _ in kept.values())

    for budget, memory in [(0.7 * counted, "adjoint"), (1.3 * counted, "unroll")]:
        chosen = engine(memory_budget=int(budget))
        chosen.predict(dict(model.named_parameters()), support, query_x)
        assert chosen.chosen["engine_memory"] == memory
        assert ("engine_note" in chosen.chosen) == (memory == "adjoint")


def test_layers_before_the_first_adapted_one_run_once(monkeypatch):
    model = RainbowNet(layers=2, filters=4, image_size=8)
    x, y = torch.rand(3, 8, 3, 8, 8), torch.randint(10, (3, 8))
    engine = make_engine("batched", model, nn.CrossEntropyLoss(), inner_lr=0.1, inner_steps=5, adapted="last_layer")
    engine.predict(dict(model.named_parameters()), (x[:, :4], y[:, :4]), x[:, 4:])  # the trial is over
    calls = []
    plain = nn.Conv2d.forward

    def counted(layer, input):
        calls.extend([len(input)] if layer is model.conv1 else [])
        return plain(layer, input)

    monkeypatch.setattr(nn.Conv2d, "forward", counted)
    engine.predict(dict(model.named_parameters()), (x[:, :4], y[:, :4]), x[:, 4:])
    assert calls == [3 * 8]


# -- second derivatives written out by hand


def inputs(*shape):
    torch.manual_seed(0)
    return torch.randn(*shape, dtype=torch.float64, requires_grad=True)


@pytest.mark.parametrize("affine", [True, False])
def test_batch_norm_has_exact_first_and_second_derivatives(affine):
    arguments = (inputs(3, 4, 2, 2), *((inputs(4), inputs(4)) if affine else ()))

    def norm(x, weight=None, bias=None):
        return batch_norm(x, weight, bias, 1e-2)

    x, *rest = arguments
    stock = nn.functional.batch_norm(x, None, None, *(rest or (None, None)), training=True, eps=1e-2)
    assert torch.allclose(norm(*arguments), stock, atol=1e-14)
    assert torch.autograd.gradcheck(norm, arguments)
    assert torch.autograd.gradgradcheck(norm, arguments)
    assert torch.autograd.gradcheck(
        lambda x, *rest: batch_norm_by_first(x, 2, *(rest or (None, None)), 1e-2), arguments
    )


@pytest.mark.parametrize("form", [conv2d, conv2d_by_patches])
@pytest.mark.parametrize(
    ("tasks", "geometry"),
    [
        (2, ((2, 2), (1, 1), (1, 1), 2)),
        (1, ((1, 1), (0, 2), (2, 1), 1)),
        (2, ((1, 2), (1, 0), (1, 1), 4)),
    ],
)
def test_convolutions_have_exact_first_and_second_derivatives(form, tasks, geometry):
    if form is conv2d_by_patches and geometry[2] != (1, 1):
        geometry = (*geometry[:2], (1, 1), geometry[3])
    x, weight = inputs(2, 4, 5, 4), inputs(tasks, 4 // tasks, 4 // geometry[3], 2, 3)
    expected = nn.functional.conv2d(x, weight.flatten(0, 1), None, *geometry)
    assert torch.allclose(form(x, weight, geometry), expected, rtol=1e-13, atol=1e-13)
    for arguments in [(x, weight), (x.detach(), weight), (x, weight.detach())]:
        assert torch.autograd.gradcheck(lambda x, w: form(x, w, geometry), arguments)
        assert torch.autograd.gradgradcheck(lambda x, w: form(x, w, geometry), arguments)


@pytest.mark.parametrize("name", ["batched", "loop"])
@pytest.mark.parametrize("settings", [{}, {"second_order": False}, {"adapted": "last_layer"}])
def test_weights_in_one_tensor_as_on_a_gpu_have_the_same_gradient(name, settings, monkeypatch):
    model = RainbowNet(layers=2, filters=4, image_size=8).double()
    torch.manual_seed(0)
    x, y = torch.rand(3, 8, 3, 8, 8, dtype=torch.float64), torch.randint(10, (3, 8))

    def of():
        engine = make_engine(name, model, nn.CrossEntropyLoss(), inner_lr=0.1, inner_steps=2, **settings)
        loss = engine.predict(dict(model.named_parameters()), (x[:, :4], y[:, :4]), x[:, 4:]).square().sum()
        return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(model.parameters()))])

    expected = of()
    joined = WrittenSteps._adapted_outputs_of_one_tensor
    calls = []

    def in_one_tensor(self, fast, x, y, query_x, memory):
        calls.append(memory)
        return joined(self, fast, x, y, query_x)

    monkeypatch.setattr(WrittenSteps, "_adapted_outputs", in_one_tensor)
    assert distance(of(), expected) < 1e-12
    assert calls


@pytest.mark.parametrize("term", [0, 1, 2])
def test_without_a_term_of_the_norms_second_derivative_the_trial_finds_another_gradient(term, monkeypatch):
    model = RainbowNet(layers=2, filters=4, image_size=8).double()
    torch.manual_seed(0)
    x, y = torch.rand(3, 8, 3, 8, 8, dtype=torch.float64), torch.randint(10, (3, 8))

    def of(name):
        engine = make_engine(name, model, nn.CrossEntropyLoss(), inner_lr=0.1, inner_steps=2)
        loss = engine.predict(dict(model.named_parameters()), (x[:, :4], y[:, :4]), x[:, 4:]).square().sum()
        return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(model.parameters()))])

    reference = of("loop")
    assert distance(of("batched"), reference) < 1e-9
    right = _NormBackward.backward

    def wrong(ctx, *cotangents):
        terms = list(right(ctx, *cotangents))
        terms[term] = torch.zeros_like(terms[term])
        return tuple(terms)

    monkeypatch.setattr(_NormBackward, "backward", staticmethod(wrong))
    with pytest.raises(UsageError, match="batched' has another derivative than finite differences"):
        of("batched")
    assert distance(of("auto"), reference) < 1e-9
