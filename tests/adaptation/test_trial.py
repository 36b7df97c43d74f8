"""What is found out about a model before an engine is used, and what is noticed afterwards."""

import random
from copy import deepcopy

import numpy as np
import pytest
import torch
from torch import nn

from ftml_bench.adaptation import ENGINES, make_engine
from ftml_bench.adaptation.inner_loop import update_procedure
from ftml_bench.adaptation.weights import call_with, while_holding
from ftml_bench.errors import UsageError
from ftml_bench.models import TaskBatchNorm
from ftml_bench.models.copies import copy_of

INNER = {"inner_lr": 0.1, "inner_steps": 2}


def data(tasks=3, support=5, query=4, shape=(3,), classes=2):
    torch.manual_seed(0)
    x = torch.randn(tasks, support + query, *shape, dtype=torch.float64)
    y = torch.randint(classes, (tasks, support))
    return (x[:, :support], y), x[:, support:]


def mlp():
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2)).double()


def plain(model, support, query, criterion=nn.functional.cross_entropy, steps=2, lr=0.1, clip=None, moved=None, h=0.0):
    """Plain copies, plain gradient descent; with a direction, at weights moved by h along it."""
    outputs = []
    for x, y, q in zip(*support, query, strict=True):
        copy = copy_of(model)
        with torch.no_grad():
            for p, d in zip(copy.parameters(), moved or [], strict=False):
                p.add_(d, alpha=h)
        trained = [p for p in copy.parameters() if p.requires_grad]
        for _ in range(steps):
            gradients = torch.autograd.grad(criterion(copy(x), y), trained, allow_unused=True, materialize_grads=True)
            with torch.no_grad():
                for p, g in zip(trained, gradients, strict=True):
                    p -= lr * (g if clip is None else g.clip(-clip, clip))
        outputs.append(copy(q).detach())
    return torch.stack(outputs)


def predict(engine, model, support, query):
    return engine.predict(dict(model.named_parameters()), support, query)


# -- changes after the engine was built


def replace_layer(model):
    model[1] = nn.Softplus()


def set_option(model):
    model[1] = nn.LeakyReLU(0.1)
    yield
    model[1].negative_slope = 0.9


def add_hook(model):
    model[0].register_forward_hook(lambda layer, inputs, output: 2 * output)


def freeze(model):
    model[0].requires_grad_(False)


def give_it_a_forward(model):
    model[1].forward = torch.sin


@pytest.mark.parametrize("name", ["auto", "loop"])
@pytest.mark.parametrize("change", [replace_layer, add_hook, freeze, give_it_a_forward])
def test_what_is_changed_after_an_engine_was_used_counts_at_the_next_call(change, name):
    model, (support, query) = mlp(), data()
    engine = make_engine(name, model, nn.CrossEntropyLoss(), **INNER)
    before = predict(engine, model, support, query)
    change(model)
    after = predict(engine, model, support, query)
    assert not torch.allclose(before, after)
    assert torch.allclose(after, plain(model, support, query), rtol=1e-10)
    weight = model[0].weight.detach().clone()
    moved = engine.adapt(dict(model.named_parameters()), support[0][0], support[1][0], 3)["0.weight"]
    assert torch.equal(moved, weight) == (change is freeze)


def test_settings_of_a_layer_that_decide_whether_an_engine_takes_it_are_noticed():
    torch.manual_seed(1)
    model = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.Tanh(), nn.Flatten(), nn.Linear(32, 2)).double()
    support, query = data(shape=(1, 4, 4))
    engine = make_engine("auto", model, nn.CrossEntropyLoss(), **INNER)
    predict(engine, model, support, query)
    assert engine.name in ("native", "batched")
    model[0].padding_mode = "reflect"
    model[0]._reversed_padding_repeated_twice = [1, 1, 1, 1]
    assert torch.allclose(predict(engine, model, support, query), plain(model, support, query), rtol=1e-10)
    assert engine.name == "vmap"


def test_settings_of_the_inner_loop_may_be_set_at_any_time():
    model, (support, query) = mlp(), data()
    engine = make_engine("auto", model, nn.CrossEntropyLoss(), **INNER)
    predict(engine, model, support, query)
    engine.inner_lr = 0.4
    assert torch.allclose(predict(engine, model, support, query), plain(model, support, query, lr=0.4), rtol=1e-10)
    model[1] = nn.Softplus()  # the engine is built anew
    assert torch.allclose(predict(engine, model, support, query), plain(model, support, query, lr=0.4), rtol=1e-10)


def test_modes_and_numbers_that_a_call_changes_do_not_start_another_trial(monkeypatch):
    class Counting(nn.Module):
        calls = 0

        def __init__(self):
            super().__init__()
            self.calls = 0

        def forward(self, x):
            self.calls += 1
            return x

    model, (support, query) = nn.Sequential(mlp(), Counting()), data()
    engine = make_engine("auto", model, nn.CrossEntropyLoss(), **INNER)
    predict(engine, model, support, query)
    predict(engine, model.eval(), support, query)
    monkeypatch.setattr("ftml_bench.adaptation.auto.Trial", lambda *args: pytest.fail("another trial"))
    predict(engine, model.train(), support, query)
    predict(engine, model.eval(), support, query)


# -- what the trial finds


def test_a_trial_leaves_everything_as_it_was():
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5), nn.Dropout(0.5), nn.Linear(5, 2))
    support, query = data()
    support, query = (support[0].float(), support[1]), query.float()
    engine = make_engine("loop", model, nn.CrossEntropyLoss(), **INNER)
    before = deepcopy(model.state_dict()), support[0].clone(), query.clone()
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    outputs = predict(engine, model, support, query)
    after = torch.get_rng_state()
    torch.set_rng_state(states[0])
    again = predict(engine, model, support, query)  # without a trial: the same draws, and as many
    assert torch.equal(outputs, again)
    assert torch.equal(torch.get_rng_state(), after)
    assert (random.getstate(), np.random.get_state()[1].tolist()) == states[1:]
    assert all(torch.equal(value, before[0][key]) for key, value in model.state_dict().items())
    assert torch.equal(support[0], before[1])
    assert torch.equal(query, before[2])
    assert torch.get_default_dtype() == torch.float32


class Times(torch.autograd.Function):
    """Three times x, with a gradient that says `slope` times."""

    @staticmethod
    def forward(ctx, x, slope):
        ctx.slope = slope
        return 3 * x

    @staticmethod
    def backward(ctx, gradient):
        return ctx.slope * gradient, None


@pytest.mark.parametrize("kink", [nn.Tanh, nn.ReLU])
@pytest.mark.parametrize("slope", [3.0, 3.003])
def test_a_derivative_that_is_off_by_a_thousandth_is_found_behind_kinks_too(slope, kink):
    class Wrong(nn.Module):
        def forward(self, x):
            return Times.apply(x, slope)

    for seed in range(5):
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Linear(3, 40), kink(), Wrong(), nn.Linear(40, 40), kink(), nn.Linear(40, 2)).double()
        engine = make_engine("loop", model, nn.CrossEntropyLoss(), **INNER)
        if slope == 3:
            predict(engine, model, *data())
        else:
            with pytest.raises(UsageError, match="another derivative than finite differences"):
                predict(engine, model, *data())


def test_what_the_trial_cannot_tell_stands_in_the_record(monkeypatch):
    (support, query) = data()
    with monkeypatch.context() as patch:  # every difference crosses a kink
        patch.setattr("ftml_bench.adaptation.trial.Trial._slope", lambda self, number, length: (1e3, -1e3))
        model = mlp()
        engine = make_engine("auto", model, nn.CrossEntropyLoss(), **INNER)
        assert torch.allclose(predict(engine, model, support, query), plain(model, support, query), rtol=1e-10)
        assert "finite differences cannot tell" in engine.chosen["engine_note"]
    model = mlp()
    with torch.no_grad():
        model[2].bias.fill_(float("nan"))  # as where training has diverged
    engine = make_engine("auto", model, nn.CrossEntropyLoss(), **INNER)
    assert predict(engine, model, support, query).isnan().any()
    assert "not finite: nothing compared" in engine.chosen["engine_note"]


def test_single_precision_is_enough_for_a_model_that_knows_no_other():
    class Single(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(3, 2)

        def forward(self, x):
            return self.linear(x.float())

    torch.manual_seed(0)
    model, (support, query) = Single(), data()
    support, query = (support[0].float(), support[1]), query.float()
    outputs = predict(make_engine("auto", model, nn.CrossEntropyLoss(), **INNER), model, support, query)
    assert torch.allclose(outputs, plain(model, support, query), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ["loop", "auto"])
@pytest.mark.parametrize("module", ["random", "numpy"])
def test_the_adjoint_draws_from_random_and_numpy_once_more(module, name):
    class Branching(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(3, 2)

        def forward(self, x):
            draw = random.random() if module == "random" else np.random.rand()
            return torch.tanh(self.linear(x)) * (1.0 if draw < 0.5 else 0.2)

    torch.manual_seed(0)
    model, (support, query) = Branching().double(), data()
    gradients = []
    for memory in ("unroll", "adjoint"):
        engine = make_engine(name, model, nn.CrossEntropyLoss(), memory=memory, **INNER)
        predict(engine, model, support, query)
        random.seed(3)
        np.random.seed(3)
        outputs = predict(engine, model, support, query)
        gradients.append(torch.autograd.grad(outputs.sin().sum(), model.linear.weight)[0])
    assert torch.allclose(*gradients, rtol=1e-10)


# -- the ways of asking


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
    assert {name for name, _, half in gradients if half} == {"vmap", "loop"}
    assert {name for name, memory, half in gradients if memory == "auto" and not half} == {"vmap"}
    plain = gradients["loop", "unroll", True]
    assert not torch.allclose(plain, gradients["loop", "unroll", False], rtol=1e-4)
    for found in (gradients["loop", "adjoint", True], gradients["vmap", "auto", True]):
        assert float((found - plain).norm() / plain.norm()) < 0.02


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
