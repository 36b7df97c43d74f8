"""Models and criteria that reach into each other, change themselves, or are asked in other ways than FTML asks."""

from copy import deepcopy

import pytest
import torch
import torch.nn.functional as F
from avalanche.training.plugins import EvaluationPlugin
from torch import nn
from torch.nn.utils import prune

from ftml_bench.adaptation import ENGINES, make_engine
from ftml_bench.benchmarks import RainbowDigits
from ftml_bench.errors import UsageError
from ftml_bench.models.copies import copy_of
from ftml_bench.strategies import FTML, FollowTheLeader
from tests.adaptation.plain_copies import INNER, data, mlp, plain, predict

CROSS_ENTROPY = F.cross_entropy


def engine_of(model, name="auto", criterion=CROSS_ENTROPY, **settings):
    return make_engine(name, model, criterion, **{**INNER, **settings})


# -- batch norms that are more than batch norms


def norm_net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, 2)).double()


def hooked_norm(model):
    model[1].register_forward_hook(lambda module, inputs, output: 3 * output)


def norm_with_a_forward(model):
    normalise = nn.BatchNorm1d(5, track_running_stats=False).double()
    model[1].forward = lambda x: normalise(x).sin()


def norm_without_offset(model):
    model[1].bias = None


def pruned_norm(model):
    prune.l1_unstructured(model[1], "weight", 2)


@pytest.mark.parametrize("change", [hooked_norm, norm_with_a_forward, norm_without_offset, pruned_norm])
def test_a_converted_norm_goes_on_doing_what_else_it_did(change):
    model, (support, query) = norm_net(), data()
    change(model)
    expected = plain(copy_of(model), support, query)
    engine = engine_of(model, batch_norm="transductive")
    assert torch.allclose(predict(engine, model, support, query), expected, rtol=1e-10)
    assert isinstance(model[1], nn.BatchNorm1d)  # as models' own code may ask


def test_a_norm_of_its_own_kind_is_refused():
    class Activated(nn.BatchNorm1d):
        def forward(self, x):
            return super().forward(x).sin()

    model = norm_net()
    model[1] = Activated(5).double()
    with pytest.raises(UsageError, match=r"Activated \(1\) is a batch norm of its own kind"):
        engine_of(model)
    model = norm_net()
    nn.utils.parametrizations.weight_norm(model[1], "weight", dim=None)
    with pytest.raises(UsageError, match="is a batch norm of its own kind"):
        engine_of(model)


def test_deep_stacks_of_norms_are_no_false_alarm():
    for seed in range(3):
        torch.manual_seed(seed)
        layers, channels = [], 3
        for number in range(12):
            layers += [nn.Conv2d(channels, 8, 3, 2 if number < 5 else 1, 1), nn.BatchNorm2d(8), nn.ReLU()]
            channels = 8
        model = nn.Sequential(*layers, nn.Flatten(), nn.Linear(8, 2))
        x, y = torch.randn(2, 10, 3, 32, 32), torch.randint(2, (2, 5))
        engine = engine_of(model, batch_norm="transductive")
        predict(engine, model, (x[:, :5], y), x[:, 5:])
        assert engine.name in ("native", "batched")


# -- copies that are none


def test_a_model_whose_copies_hold_the_original_is_refused_also_in_evaluations():
    model = mlp()
    model[0].register_forward_hook(lambda layer, inputs, output: output * model[2].weight.sum())
    with pytest.raises(UsageError, match="a copy of Sequential does not compute with its own weights"):
        predict(engine_of(model), model, *data())


def learner_with_a_hook(cls, lr, mask=lambda outputs: outputs):
    """A learner whose model has a hook that holds a layer of it, and an experience that it has seen."""
    digits = RainbowDigits(rounds=2, images_per_round=20, held_out_per_round=10, image_size=14)
    body = nn.Sequential(nn.Flatten(), nn.Linear(588, 4))
    model = nn.Sequential(body, nn.Linear(4, 10))
    model[1].register_forward_hook(lambda layer, inputs, output: mask(output + model[0][1].bias.sum()))
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    strategy = cls(model=model, optimizer=optimizer, evaluator=EvaluationPlugin(), update_steps=2, inner_lr=lr)
    strategy.buffer.add(digits.train_stream[0])
    model.eval()
    return strategy, digits.test_stream[0]


@pytest.mark.parametrize("value", [None, -1e3, -1e9, -float("inf")])
@pytest.mark.parametrize("cls", [FTML, FollowTheLeader])
def test_evaluations_by_a_copy_that_does_not_follow_are_refused(cls, value):
    def mask(outputs):
        if value is None:
            return outputs
        empty = outputs.new_full((len(outputs), 3), value)
        return torch.cat([outputs, empty, outputs[:, :2] + value], 1)

    strategy, experience = learner_with_a_hook(cls, 0.5, mask)
    with pytest.raises(UsageError, match="does not compute with its own weights"):
        strategy.model_for(experience)


def test_a_copy_that_has_not_moved_yet_is_looked_at_again():
    strategy, experience = learner_with_a_hook(FTML, 1e-30)
    strategy.model_for(experience)
    strategy.inner_lr = 0.5
    with pytest.raises(UsageError, match="does not compute with its own weights"):
        strategy.model_for(experience)


def test_a_copy_that_is_the_model_itself_is_refused_and_the_model_stays():
    class Shared(nn.Linear):
        def __deepcopy__(self, memo):
            return self

    model = nn.Sequential(Shared(3, 2))
    before = model[0].weight.clone()
    (x, y), query = data()
    with pytest.raises(UsageError, match=r"shares 0.weight with it \(__deepcopy__\)"):
        predict(engine_of(model), model, (x.float(), y), query.float())
    assert torch.equal(model[0].weight, before)
    assert model[0].weight.dtype == torch.float32


@pytest.mark.parametrize("cls", [FTML, FollowTheLeader])
def test_an_evaluation_adapts_a_model_that_names_its_state_otherwise(cls):
    class Renamed(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Sequential(nn.Flatten(), nn.Linear(588, 10))

        def forward(self, x):
            return self.body(x)

        def state_dict(self, *args, **kwargs):
            return self.body.state_dict(*args, **kwargs)

        def load_state_dict(self, state, *args, **kwargs):
            return self.body.load_state_dict(state, *args, **kwargs)

    digits = RainbowDigits(rounds=2, images_per_round=20, held_out_per_round=10, image_size=14)
    model = Renamed()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    strategy = cls(model=model, optimizer=optimizer, evaluator=EvaluationPlugin(), update_steps=2, inner_lr=0.5)
    strategy.buffer.add(digits.train_stream[0])
    model.eval()
    copy = strategy.model_for(digits.test_stream[0])
    assert float((copy.body[1].weight - model.body[1].weight).abs().max()) > 1e-3


# -- settings, hooks and switches that come later


def test_settings_of_every_kind_may_be_set_later_and_are_tried_anew():
    model, (support, query) = mlp(), data()
    engine = engine_of(model)
    predict(engine, model, support, query)
    engine.inner_clip = 0.01
    assert torch.allclose(predict(engine, model, support, query), plain(model, support, query, clip=0.01), rtol=1e-10)
    engine.inner_clip = None
    engine.adapted = ["2.bias"]
    assert engine.adapted == ["2.bias"]
    frozen = deepcopy(model)
    for name, p in frozen.named_parameters():
        p.requires_grad_(name == "2.bias")
    assert torch.allclose(predict(engine, model, support, query), plain(frozen, support, query), rtol=1e-10)


def test_an_order_that_is_raised_later_is_tried(monkeypatch):
    class Constant(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.y = x.exp().detach()
            return x.exp()

        @staticmethod
        def backward(ctx, gradient):
            return gradient * ctx.y

    class Exp(nn.Module):
        def forward(self, x):
            return Constant.apply(x)

    model, (support, query) = nn.Sequential(nn.Linear(3, 4), Exp(), nn.Linear(4, 2)).double(), data()
    engine = engine_of(model, second_order=False)
    predict(engine, model, support, query)
    engine.second_order = True
    with pytest.raises(UsageError, match="another derivative"):
        predict(engine, model, support, query)


def test_global_hooks_are_noticed():
    model, (support, query) = mlp(), data()
    engine = engine_of(model)
    predict(engine, model, support, query)
    handle = nn.modules.module.register_module_forward_hook(
        lambda module, inputs, output: 2 * output if isinstance(module, nn.Linear) else None
    )
    try:
        assert torch.allclose(predict(engine, model, support, query), plain(model, support, query), rtol=1e-10)
    finally:
        handle.remove()


def test_functions_in_containers_and_switches_in_buffers_are_noticed():
    class Switched(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("on", torch.zeros((), dtype=torch.uint8))
            self.options = {"activation": torch.tanh}

        def forward(self, x):
            return x.round(decimals=1) + 0 * x if self.on else self.options["activation"](x)

    model, (support, query) = nn.Sequential(nn.Linear(3, 4), Switched(), nn.Linear(4, 2)).double(), data()
    engine = engine_of(model)
    predict(engine, model, support, query)
    built = engine.built
    model[1].options["activation"] = torch.sin
    assert engine.built == built + 1
    assert torch.allclose(predict(engine, model, support, query), plain(model, support, query), rtol=1e-10)
    model[1].on.fill_(1)
    assert engine.built == built + 2


@pytest.mark.parametrize("change", ["mode", "inner_lr", "label_smoothing"])
def test_the_adjoint_goes_back_with_the_settings_of_the_way_there(change):
    gradients = []
    for memory in ("unroll", "adjoint"):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Dropout(0.5), nn.Linear(5, 2)).double()
        criterion, (support, query) = nn.CrossEntropyLoss(), data()
        engine = engine_of(model, "loop", criterion, memory=memory)
        predict(engine, model, support, query)
        torch.manual_seed(3)
        outputs = predict(engine, model, support, query)
        if change == "mode":
            model.eval()
        elif change == "inner_lr":
            engine.inner_lr = 0.4
        else:
            criterion.label_smoothing = 0.5
        found = torch.autograd.grad(outputs.sin().sum(), list(model.parameters()))
        gradients.append(torch.cat([g.flatten() for g in found]))
        assert model.training == (change != "mode")
    assert torch.allclose(*gradients, rtol=1e-9)


def test_targets_that_ask_for_a_gradient_get_it_or_are_refused():
    (x, _), query = data()
    model = mlp()
    y = torch.rand(3, 5, 2, dtype=torch.float64, requires_grad=True)
    for name, memory in [("batched", "auto"), ("loop", "unroll")]:
        engine = engine_of(model, name, nn.MSELoss(), memory=memory, memory_budget=1)
        (gradient,) = torch.autograd.grad(predict(engine, model, (x, y), query).sum(), y)
        assert gradient.abs().sum() > 0
    with pytest.raises(UsageError, match="takes no derivative in targets"):
        predict(engine_of(model, "loop", nn.MSELoss(), memory="adjoint"), model, (x, y), query)


# -- what cannot be, in one line; what can, without an error


class Clamped(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 2)

    def forward(self, x):
        self.linear.weight.data.clamp_(-0.3, 0.3)
        return self.linear(x)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Clamped().double(), "its parameter linear.weight changes when it is called"),
        (lambda: torch.jit.trace(mlp(), torch.randn(2, 3).double()), "TorchScript"),
        (lambda: nn.Sequential(nn.LazyLinear(2)).double(), "has no shape yet"),
    ],
)
def test_models_that_cannot_be_treated_are_refused_in_one_line(build, message):
    model = build()
    with pytest.raises(UsageError, match=message) as error:
        predict(engine_of(model), model, *data())
    assert "\n" not in str(error.value)


def test_padding_and_generators_of_names_are_no_obstacle():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(6, 3, padding_idx=0), nn.Flatten(), nn.Linear(12, 2)).double()
    x, y = torch.randint(0, 6, (3, 9, 4)), torch.randint(2, (3, 5))
    assert predict(engine_of(model), model, (x[:, :5], y), x[:, 5:]).shape == (3, 4, 2)
    model, (support, query) = mlp(), data()
    engine = engine_of(model, adapted=(name for name in ["2.weight"]))
    predict(engine, model, support, query)
    assert engine.adapted == ["2.weight"]
    with pytest.raises(UsageError, match=r"adapted=\[\]"):
        engine_of(model, adapted=[])


def test_what_is_asked_for_must_be_whole():
    model, (support, query) = mlp(), data()
    parameters = dict(model.named_parameters())
    engine = engine_of(model)
    with pytest.raises(UsageError, match=r"parameter 2\.bias of Sequential is not among those given"):
        engine.predict({n: p for n, p in parameters.items() if n != "2.bias"}, support, query)
    with pytest.raises(UsageError, match="as many tasks each"):
        engine.predict(parameters, (support[0], support[1][:2]), query)


@pytest.mark.parametrize("name", sorted(ENGINES))
def test_inference_mode_is_left_where_gradients_are_taken(name):
    model, (support, query) = mlp(), data()
    engine = engine_of(model, name)
    with torch.inference_mode():
        made_inside = support[0] + 0
        outputs = predict(engine, model, (made_inside, support[1]), query)
        adapted = engine.adapt(dict(model.named_parameters()), made_inside[0], support[1][0], 2)
    assert torch.allclose(outputs, plain(model, support, query), rtol=1e-10)
    expected = engine.adapt(dict(model.named_parameters()), support[0][0], support[1][0], 2)
    assert all(torch.equal(value, expected[n]) for n, value in adapted.items())


def test_the_update_procedure_changes_no_buffer_even_before_anything_is_tried():
    class Counting(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, x):
            self.calls += 1
            return x

    model, ((x, y), _) = nn.Sequential(Counting(), mlp()), data()
    engine_of(model).adapt(dict(model.named_parameters()), x[0], y[0], 3)
    assert model[0].calls == 0
