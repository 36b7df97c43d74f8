"""What is found out about a model before an engine is used, and what is noticed afterwards."""

import random
from copy import deepcopy

import numpy as np
import pytest
import torch
from torch import nn

from ftml_bench.adaptation import make_engine
from ftml_bench.errors import UsageError
from tests.adaptation.plain_copies import INNER, data, mlp, plain, predict

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


class Counting(nn.Module):
    def __init__(self):
        super().__init__()
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        return x


class CountingLoss(nn.CrossEntropyLoss):
    def __init__(self):
        super().__init__()
        self.calls = 0

    def forward(self, outputs, targets):
        self.calls += 1
        return super().forward(outputs, targets)


def test_modes_and_numbers_that_a_call_changes_do_not_start_another_trial(monkeypatch):
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


@pytest.mark.parametrize("name", ["auto", "loop", "vmap", "higher"])
def test_calls_that_a_trial_makes_are_not_counted(name):
    model, criterion, (support, query) = nn.Sequential(mlp(), Counting()), CountingLoss(), data()
    engine = make_engine(name, model, criterion, **INNER)
    counts = []
    for _ in range(2):
        predict(engine, model, support, query)
        counts.append((model[1].calls, criterion.calls))
    assert counts[1] == (2 * counts[0][0], 2 * counts[0][1])


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
