"""The engine `native`, layer by layer: against `batched`, and against central differences of plain descent."""

import pytest
import torch
from torch import nn

from ftml_bench.adaptation.native import engine as native_engine
from ftml_bench.adaptation.native import library, program
from tests.adaptation.stacks import (
    ACTIVATIONS,
    STACKS,
    by,
    distance,
    meta_batch,
    needs_library,
    plain_outputs,
    slopes,
    stack,
)

pytestmark = needs_library
CRITERION = nn.CrossEntropyLoss(label_smoothing=0.1)


def problem(name, **sizes):
    model, shape = stack(name)
    if name == "PoseNet":
        return model, nn.MSELoss(), meta_batch(shape, targets=(4,), **sizes)
    return model, CRITERION, meta_batch(shape, **sizes)


@pytest.mark.parametrize("batch_norm", ["support", "transductive"])
@pytest.mark.parametrize("name", STACKS)
def test_outputs_and_meta_gradients(name, batch_norm):
    model, criterion, data = problem(name)
    outputs, gradients = by("native", model, criterion, data, batch_norm=batch_norm)
    expected, reference = by("batched", model, criterion, data, batch_norm=batch_norm)
    assert distance([outputs], [expected]) < 1e-12
    assert distance(gradients, reference) < 1e-12
    assert distance([outputs], [plain_outputs(model, criterion, data, batch_norm=batch_norm)]) < 1e-12
    slope, numeric = slopes(model, criterion, data, gradients, batch_norm=batch_norm)
    assert slope == pytest.approx(numeric, rel=1e-6)


@pytest.mark.parametrize("name", STACKS)
def test_first_order_and_both_ways_of_memory(name):
    model, criterion, data = problem(name)
    found = by("native", model, criterion, data, second_order=False)[1]
    assert distance(found, by("batched", model, criterion, data, second_order=False)[1]) < 1e-12
    kept, again = (by("native", model, criterion, data, memory=memory)[1] for memory in ("unroll", "adjoint"))
    assert distance(found, kept) > 1e-6
    assert all(map(torch.equal, kept, again))


SMOOTH = ["norm of maps", "norm behind flatten", "soft-argmax", "bias transformation", "conv, bias"]


@pytest.mark.parametrize("name", ["RainbowNet", "PoseNet", *SMOOTH])
@pytest.mark.parametrize("which", [1, 2, 3])
def test_part_of_the_parameters_adapted(name, which):
    model, criterion, data = problem(name)
    names = [n for n, _ in model.named_parameters()]
    adapted = names[which % 2 :: which]
    gradients = by("native", model, criterion, data, adapted=adapted)[1]
    assert distance(gradients, by("batched", model, criterion, data, adapted=adapted)[1]) < 1e-12
    if name in SMOOTH:
        slope, numeric = slopes(model, criterion, data, gradients, adapted=adapted)
        assert slope == pytest.approx(numeric, rel=1e-6)


@pytest.mark.parametrize("name", ["RainbowNet", "PoseNet", "soft-argmax"])
def test_layers_that_nothing_adapts_get_their_derivative_through_the_inputs(name):
    model, criterion, data = problem(name)
    for second_order in (True, False):
        settings = {"adapted": "last_layer", "second_order": second_order}
        gradients = by("native", model, criterion, data, **settings)[1]
        assert distance(gradients, by("batched", model, criterion, data, **settings)[1]) < 1e-12
    if name != "soft-argmax":
        return  # the others have kinks
    last = [n for n, _ in model.named_parameters()][-2:]
    gradients = by("native", model, criterion, data, adapted=last)[1]
    slope, numeric = slopes(model, criterion, data, gradients, adapted=last)
    assert slope == pytest.approx(numeric, rel=1e-6)


@pytest.mark.parametrize("name", ["RainbowNet", "PoseNet", *SMOOTH[:2]])
def test_clipped_inner_gradients(name):
    model, criterion, data = problem(name)
    free = by("native", model, criterion, data)[1]
    for memory in ("unroll", "adjoint"):
        gradients = by("native", model, criterion, data, inner_clip=0.01, memory=memory)[1]
        assert distance(gradients, by("batched", model, criterion, data, inner_clip=0.01)[1]) < 1e-12
        assert distance(gradients, free) > 1e-3
    if name in SMOOTH:
        slope, numeric = slopes(model, criterion, data, gradients, inner_clip=0.01)
        assert slope == pytest.approx(numeric, rel=1e-6)


@pytest.mark.parametrize(("support", "query"), [(2, 1), (1, 3), (7, 6), (13, 5), (27, 25), (40, 3)])
def test_sets_of_all_sizes(support, query):
    model, criterion, data = problem("convs of 17, 40 and 16", support=support, query=query, tasks=2)
    found, expected = (by(engine, model, criterion, data) for engine in ("native", "batched"))
    assert distance([found[0]], [expected[0]]) < 1e-12
    assert distance(found[1], expected[1]) < 1e-12


@pytest.mark.parametrize("steps", [0, 1, 5])
def test_inner_steps(steps):
    model, criterion, data = problem("RainbowNet")
    found, expected = (by(engine, model, criterion, data, inner_steps=steps)[1] for engine in ("native", "batched"))
    assert distance(found, expected) < 1e-11


@pytest.mark.parametrize("form", library.FORMS)
def test_every_form_that_this_processor_takes(form, monkeypatch):
    best = library.load("baseline").native_best().decode()
    if library.FORMS.index(form) > library.FORMS.index(best) or library.built(form) is None:
        pytest.skip(f"this machine has no {form}")
    monkeypatch.setattr(native_engine, "library", lambda: library.load(form))
    names = ["convs of 17, 40 and 16", "RainbowNet", "PoseNet", "max pool, overlapping", "norm of rows", *ACTIVATIONS]
    for name in names:
        model, criterion, data = problem(name)
        found, expected = (by(engine, model, criterion, data)[1] for engine in ("native", "batched"))
        assert distance(found, expected) < 1e-12, name
        model, data = model.float(), tuple(t.float() if t.is_floating_point() else t for t in data)
        single = by("native", model, criterion, data)[1]
        assert distance([g.double() for g in single], expected) < 1e-4, name


def test_the_numbers_of_activations_are_those_of_the_source():
    source = (library.Path(library.__file__).parent / "src" / "layers.hpp").read_text()
    names = source.split("enum Function {")[1].split("}")[0].replace("F_", "").split(", ")
    assert [n.strip() for n in names] == [
        "RELU", "LEAKY", "TANH", "SIGMOID", "SILU", "GELU", "GELU_TANH", "SOFTPLUS", "ELU"
    ]  # fmt: skip
    found = {name: program._function(layer)[0] for name, layer in ACTIVATIONS.items()}
    assert sorted(set(found.values())) == list(range(9))
