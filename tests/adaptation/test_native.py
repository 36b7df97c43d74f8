"""The engine `native`: what it does not take, threads, memory, saving, and life without a compiler."""

import pickle
from copy import deepcopy

import pytest
import torch
from torch import nn

import ftml_bench.adaptation as adaptation
from ftml_bench.adaptation import make_engine
from ftml_bench.adaptation.native import NativeEngine, library
from ftml_bench.adaptation.native import call as native_call
from ftml_bench.adaptation.native import engine as native_engine
from ftml_bench.errors import UsageError
from ftml_bench.models import RainbowNet, SinusoidMLP
from tests.adaptation.stacks import by, cotangent_of, distance, meta_batch, needs_library, stack

INNER = {"inner_lr": 0.1, "inner_steps": 2}


@pytest.fixture
def threads():
    yield torch.set_num_threads
    torch.set_num_threads(1)


def chosen(model, criterion, shape, dtype=torch.float64, **settings):
    engine = make_engine("native", model, criterion, **{**INNER, **settings})
    x, y, query_x = meta_batch(shape, dtype=dtype)
    outputs = engine.predict(dict(model.named_parameters()), (x, y), query_x)
    outputs.sum().backward()
    return engine.chosen


@needs_library
@pytest.mark.parametrize("name", ["RainbowNet", "PoseNet", "norm of rows", "max pool, overlapping"])
def test_a_trial_passes(name):
    model, shape = stack(name)
    found = chosen(model, nn.CrossEntropyLoss(), shape)
    assert found == {"engine": "native", "engine_memory": "unroll"}


@needs_library
@pytest.mark.parametrize(
    ("layers", "shape", "reason"),
    [
        ([nn.Conv2d(2, 4, 3, groups=2), nn.Flatten(), nn.Linear(48, 3)], (2, 6, 5), "takes no groups of channels (0)"),
        ([nn.Linear(4, 5), nn.Dropout(0.5), nn.Linear(5, 3)], (4,), "has no form of Dropout (1)"),
        ([nn.Conv2d(2, 4, 3), nn.GroupNorm(2, 4), nn.Flatten(), nn.Linear(48, 3)], (2, 6, 5), "form of GroupNorm (1)"),
        (
            [nn.Conv2d(2, 3, 3), nn.MaxPool2d(2, ceil_mode=True), nn.Flatten(), nn.Linear(12, 3)],
            (2, 6, 5),
            "takes pools of whole windows only (1)",
        ),
        (
            [nn.Conv2d(2, 3, 3), nn.AvgPool2d(2, divisor_override=3), nn.Flatten(), nn.Linear(6, 3)],
            (2, 6, 5),
            "takes plain pools only (1)",
        ),
        (
            [nn.Conv2d(2, 3, 3), nn.MaxPool2d(2, 1, dilation=2), nn.Flatten(), nn.Linear(6, 3)],
            (2, 6, 5),
            "takes plain pools only (1)",
        ),
    ],
)
def test_what_it_does_not_take_goes_to_batched_and_the_record_says_why(layers, shape, reason):
    found = chosen(nn.Sequential(*layers).double(), nn.CrossEntropyLoss(), shape)
    assert found["engine"] == "batched"
    assert found["engine_note"].startswith("native ")
    assert reason in found["engine_note"]


@needs_library
def test_criteria_that_learn_or_draw_and_maps_go_to_batched(monkeypatch):
    class Learned(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones((), dtype=torch.float64))

        def forward(self, outputs, y):
            return nn.functional.cross_entropy(self.scale * outputs, y)

    def drawing(outputs, y):
        return nn.functional.cross_entropy(outputs * torch.rand(()), y)

    def of_maps(outputs, y):
        return nn.functional.cross_entropy(outputs.flatten(2).mean(2), y)

    rows = nn.Sequential(nn.Linear(4, 3)).double()
    maps = nn.Sequential(nn.Conv2d(2, 3, 3)).double()
    for model, criterion, shape, reason in [
        (rows, Learned(), (4,), "native takes no derivative in what the loss trains beside the model's parameters"),
        (rows, drawing, (4,), "native takes no criterion that draws"),
        (maps, of_maps, (2, 6, 5), "native gives no maps"),
    ]:
        found = chosen(model, criterion, shape)
        assert found["engine"] == "batched"
        assert found["engine_note"].startswith(reason)


@needs_library
def test_what_neither_takes_is_refused_in_one_line():
    with pytest.raises(
        UsageError, match=r"^engine 'batched' has no batched form of LayerNorm \(0\): use engine='loop'"
    ):
        make_engine("native", nn.Sequential(nn.LayerNorm(4), nn.Linear(4, 3)), nn.CrossEntropyLoss(), **INNER)


@needs_library
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_other_precisions_are_not_taken(dtype):
    model = nn.Linear(4, 3).to(dtype)
    x, y, query_x = meta_batch((4,), dtype=dtype)
    with pytest.raises(UsageError, match=f"takes float32 and float64 only, not {dtype}"):
        by("native", model, nn.CrossEntropyLoss(), (x, y, query_x))
    with pytest.raises(UsageError, match="tensors of one precision on a CPU only"):
        by("native", nn.Linear(4, 3), nn.CrossEntropyLoss(), (x, y, query_x))
    with pytest.raises(UsageError, match="takes no derivative in targets"):
        by("native", nn.Linear(4, 3), nn.MSELoss(), (x.float(), x.float()[..., :3].requires_grad_(), query_x.float()))


@needs_library
def test_derivatives_in_the_inputs():
    model, shape = stack("norm of maps")
    x, y, query_x = meta_batch(shape)
    found = {}
    for name in ("native", "batched"):
        inputs = [x.clone().requires_grad_(), query_x.clone().requires_grad_()]
        engine = adaptation.ENGINES[name](model, nn.CrossEntropyLoss(), **INNER)
        outputs = engine.predict(dict(model.named_parameters()), (inputs[0], y), inputs[1])
        found[name] = torch.autograd.grad(outputs, inputs, cotangent_of(outputs))
    assert distance(found["native"][:1], found["batched"][:1]) < 1e-12
    assert distance(found["native"][1:], found["batched"][1:]) < 1e-12


@needs_library
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_same_bits_for_any_number_of_threads(dtype, threads):
    model = RainbowNet(filters=8, layers=3, image_size=12).to(dtype)
    data = meta_batch((3, 12, 12), classes=10, tasks=7, dtype=dtype)
    found = []
    for number in (1, 2, 3, 16):
        threads(number)
        found.append(by("native", model, nn.CrossEntropyLoss(), data))
    for outputs, gradients in found[1:]:
        assert torch.equal(outputs, found[0][0])
        assert all(map(torch.equal, gradients, found[0][1]))


@needs_library
@pytest.mark.parametrize("memory", ["unroll", "adjoint"])
def test_weights_of_each_task(memory):
    model, shape = stack("RainbowNet")
    x, y, query_x = meta_batch(shape)
    g = torch.Generator().manual_seed(4)
    found = {}
    for name in ("native", "batched"):
        each = {
            n: (p.detach() + 0.1 * torch.randn(3, *p.shape, generator=g.manual_seed(4))).requires_grad_()
            for n, p in model.named_parameters()
        }
        engine = adaptation.ENGINES[name](model, nn.CrossEntropyLoss(), **INNER)
        outputs = engine.predict_each(each, (x, y), query_x, memory)
        found[name] = [outputs, *torch.autograd.grad(outputs, list(each.values()), cotangent_of(outputs))]
    assert distance(found["native"][:1], found["batched"][:1]) < 1e-12
    assert distance(found["native"][1:], found["batched"][1:]) < 1e-12


@needs_library
def test_what_passes_keep_is_bounded_and_the_bits_are_the_same(monkeypatch):
    model, shape = stack("RainbowNet")
    data = meta_batch(shape)
    kept = by("native", model, nn.CrossEntropyLoss(), data)[1]
    calls = []
    plain = native_call.Call
    monkeypatch.setattr(native_engine, "Call", lambda *a, **k: calls.append(plain(*a, **k)) or calls[-1])
    for most in (1, 2**20):
        monkeypatch.setattr(native_call, "MOST_BYTES", most)
        found = by("native", model, nn.CrossEntropyLoss(), data)[1]
        assert sum(tape.nbytes for tape in calls[-1].tapes) <= most
        assert all(map(torch.equal, found, kept))
    assert [call.memory for call in calls] == ["adjoint", "unroll"]


@needs_library
def test_without_gradients_nothing_is_kept_and_backward_twice_gives_the_same():
    model, shape = stack("RainbowNet")
    x, y, query_x = meta_batch(shape)
    engine = NativeEngine(model, nn.CrossEntropyLoss(), inner_clip=0.02, **INNER)
    parameters = dict(model.named_parameters())
    outputs = engine.predict(parameters, (x, y), query_x)
    with torch.no_grad():
        assert torch.equal(engine.predict(parameters, (x, y), query_x), outputs)
    twice = [torch.autograd.grad(outputs.sum(), list(parameters.values()), retain_graph=True) for _ in range(2)]
    assert all(map(torch.equal, *twice))
    x.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        outputs.sum().backward()


@needs_library
def test_settings_may_change_between_calls_and_engines_are_copied_and_pickled():
    model = SinusoidMLP().double()
    x, y, query_x = meta_batch((1,), targets=(1,))
    engine = make_engine("native", model, nn.MSELoss(), **INNER)
    parameters = dict(model.named_parameters())
    first = engine.predict(parameters, (x, y), query_x)
    engine.inner_lr = 0.3
    assert distance([engine.predict(parameters, (x, y), query_x)], [first]) > 1e-3
    engine.inner_lr = 0.1
    for other in (deepcopy(engine), pickle.loads(pickle.dumps(engine))):
        assert torch.equal(other.predict(parameters, (x, y), query_x), first)


@needs_library
def test_strided_tensors_and_shared_numbers():
    model, shape = stack("conv, bias")
    x, y, query_x = meta_batch(shape)
    expected = by("native", model, nn.CrossEntropyLoss(), (x, y, query_x))[1]
    strided = [t.repeat_interleave(2, dim=1)[:, ::2] for t in (x, y, query_x)]
    strided[0] = strided[0].to(memory_format=torch.preserve_format).transpose(-1, -2).contiguous().transpose(-1, -2)
    model[0].weight.data = model[0].weight.data.to(memory_format=torch.channels_last)
    assert all(map(torch.equal, by("native", model, nn.CrossEntropyLoss(), strided)[1], expected))


def test_without_a_compiler_it_is_refused_in_one_line_and_auto_takes_another(monkeypatch):
    library.library.cache_clear()
    monkeypatch.setattr(library, "EXTENSION_SUFFIXES", [".nothing"])
    try:
        with pytest.raises(UsageError) as refused:
            make_engine("native", nn.Linear(4, 3), nn.CrossEntropyLoss(), **INNER)
        assert str(refused.value) == (
            "engine 'native' has not been built here, for want of a C++ compiler (pip install builds it): "
            "use engine='loop' or 'auto'"
        )
        model = nn.Linear(4, 3).double()
        engine = make_engine("auto", model, nn.CrossEntropyLoss(), **INNER)
        x, y, query_x = meta_batch((4,))
        engine.predict(dict(model.named_parameters()), (x, y), query_x).sum().backward()
        assert engine.chosen["engine"] == "batched"
    finally:
        library.library.cache_clear()


@needs_library
def test_an_older_processor_gets_the_form_that_it_takes(monkeypatch):
    asked = []

    class Older:
        native_best = staticmethod(lambda: b"avx2")

    monkeypatch.setattr(library, "load", lambda form: asked.append(form) or Older)
    library.library.cache_clear()
    try:
        library.library()
        assert asked[-1] == ("avx2" if library.built("avx2") else "baseline")
        assert "avx512" not in asked
    finally:
        library.library.cache_clear()


@needs_library
@pytest.mark.parametrize("what", ["query", "query's tasks", "targets", "weights", "channels"])
def test_what_does_not_fit_is_not_read_beyond_its_end(what):
    """A pool over all places takes maps of any size, so that nothing else would notice."""
    model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 3)).double()
    x, y, query_x = meta_batch((2, 8, 8))
    parameters = dict(model.named_parameters())
    if what == "query":
        query_x = query_x[..., :5]
    elif what == "query's tasks":
        query_x = query_x[:1]
    elif what == "targets":
        y = y[:, :2]
    elif what == "weights":
        parameters["3.weight"] = parameters["3.weight"][:, :1]
    else:
        x, query_x = x[:, :, :1], query_x[:, :, :1]
    engine = NativeEngine(model, nn.CrossEntropyLoss(), **INNER)
    with pytest.raises(UsageError, match=r"takes support and query points|takes 3.weight in|to 0, which takes 2"):
        engine.predict(parameters, (x, y), query_x)
