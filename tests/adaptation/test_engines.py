"""Meta-gradients: every engine against central finite differences, against `higher`, and against each other."""

import pickle
from copy import deepcopy
from unittest import mock

import pytest
import torch
from avalanche.models import SimpleCNN, SimpleMLP, SlimResNet18, slim_resnet18
from torch import nn

from ftml_bench.adaptation import ENGINES, make_engine
from ftml_bench.errors import UsageError
from ftml_bench.models import PoseNet, RainbowNet, SinusoidMLP, TaskBatchNorm
from tests.adaptation.stacks import needs_library

TASKS, SUPPORT, QUERY = 3, 6, 4


def smooth(model):
    """ReLU and max-pool make the adapted loss jump, so that finite differences prove nothing: smooth ones instead."""
    for name, child in model.named_children():
        if isinstance(child, nn.ReLU):
            setattr(model, name, nn.Softplus())
        elif isinstance(child, nn.MaxPool2d):
            setattr(model, name, nn.AvgPool2d(child.kernel_size, child.stride))
        elif isinstance(child, nn.AdaptiveMaxPool2d):
            setattr(model, name, nn.AdaptiveAvgPool2d(child.output_size))
        smooth(child)
    return model


def mlp():
    return smooth(SinusoidMLP(hidden=5)), nn.MSELoss(), (1,), (1,)


def conv():
    return (
        smooth(RainbowNet(filters=3, layers=3, image_size=8)),
        nn.CrossEntropyLoss(label_smoothing=0.1),
        (3, 8, 8),
        10,
    )


def authors():
    model = RainbowNet(filters=2, variant="authors")
    return smooth(model), nn.CrossEntropyLoss(label_smoothing=0.1), (3, 28, 28), 10


def norm_after_linear():
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Sequential(nn.Linear(5, 3)))
    return model, nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0, 3.0]).double()), (1, 2, 2), 3


def group_norm_and_pooling():
    model = nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1), nn.GroupNorm(2, 4), nn.SiLU(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(16, 3)
    )
    return model, nn.CrossEntropyLoss(), (2, 4, 4), 3


def pose():
    return smooth(PoseNet(filters=2, layers=2, hidden=5, image_size=9)), nn.MSELoss(), (3, 9, 9), (4,)


def pose_authors():
    model = smooth(PoseNet(filters=2, layers=2, hidden=5, image_size=9, variant="authors"))
    # drawn with 0.01, its last layers would hardly pass a gradient on to the first
    nn.init.normal_(model.transformation.vector)
    for layer in (model.linear1, model.linear2, model.head):
        nn.init.normal_(layer.weight, std=0.5)
    return model, nn.MSELoss(), (3, 9, 9), (4,)


def layer_norm():
    model = nn.Sequential(nn.Linear(3, 6), nn.LayerNorm(6), nn.Tanh(), nn.Linear(6, 4))
    return model, nn.CrossEntropyLoss(), (3,), 4


def instance_norm():
    model = nn.Sequential(
        nn.Conv2d(2, 3, 3), nn.InstanceNorm2d(3, affine=True), nn.SiLU(), nn.Flatten(), nn.Linear(12, 2)
    )
    return model, nn.L1Loss(), (2, 4, 4), (2,)


def simple_mlp():
    return smooth(SimpleMLP(num_classes=3, input_size=4, hidden_size=5, drop_rate=0.0)), nn.CrossEntropyLoss(), (4,), 3


def simple_cnn():
    model = smooth(SimpleCNN(num_classes=3)).eval()  # its dropout off
    return model, nn.CrossEntropyLoss(label_smoothing=0.1), (3, 18, 18), 3


def slim_resnet():
    return SmoothResNet(), nn.CrossEntropyLoss(), (3, 32, 32), 3


class SmoothResNet(nn.Module):
    """Avalanche's SlimResNet18 with softplus, which it calls by the name of its module."""

    def __init__(self):
        super().__init__()
        self.net = SlimResNet18(3, nf=1)

    def forward(self, x):
        with mock.patch.object(slim_resnet18, "relu", nn.functional.softplus):
            return self.net(x)


MODELS = [mlp, conv, authors, norm_after_linear, group_norm_and_pooling, pose, pose_authors]
MODELS += [layer_norm, instance_norm, simple_mlp, simple_cnn, slim_resnet]
NO_STACKS = [layer_norm, instance_norm, simple_mlp, simple_cnn, slim_resnet]


def setting(build, seed=0):
    """A float64 model with its criterion, a meta-batch of random data, and the query targets."""
    torch.manual_seed(seed)
    model, criterion, shape, targets = build()  # classes, or the shape of a regression target
    x = torch.randn(TASKS, SUPPORT + QUERY, *shape, dtype=torch.float64)
    if isinstance(targets, tuple):
        y = torch.randn(TASKS, SUPPORT + QUERY, *targets, dtype=torch.float64)
    else:
        y = torch.randint(0, targets, (TASKS, SUPPORT + QUERY))
    support = (x[:, :SUPPORT], y[:, :SUPPORT])
    return model.double(), criterion, support, x[:, SUPPORT:], y[:, SUPPORT:].flatten(0, 1)


def meta_loss(engine, criterion, parameters, support, query_x, query_y):
    return criterion(engine.predict(parameters, support, query_x).flatten(0, 1), query_y)


def meta_gradient(name, model, criterion, support, query_x, query_y, **inner):
    engine = ENGINES[name](model, criterion, **inner)  # not tried before: what is looked for here is what a trial finds
    parameters = dict(model.named_parameters())
    loss = meta_loss(engine, criterion, parameters, support, query_x, query_y)
    trainable = [p for p in parameters.values() if p.requires_grad]
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, trainable)])


def reference_gradient(*setting, **inner):
    """By `higher`; by the loop where `higher` cannot patch the model."""
    name = "loop" if isinstance(setting[0], SimpleMLP) else "higher"
    return meta_gradient(name, *setting, **inner)


def relative(a, b):
    return float((a - b).norm() / b.norm())


def engines_for(build):
    """(engine, memory) pairs to be compared with `higher`."""
    stack = build not in NO_STACKS
    vmapped = [] if build is instance_norm else [("vmap", "adjoint")]
    return [(name, memory) for name in ("loop", "batched")[: 1 + stack] for memory in ("unroll", "adjoint")] + vmapped


# the large ones twice are enough
GRID = [(build, steps, rule) for build in MODELS for steps in (1, 5) for rule in ("support", "transductive")]
GRID = [c for c in GRID if c[0] not in (simple_cnn, slim_resnet) or c[1:] in [(1, "transductive"), (5, "support")]]


@pytest.mark.parametrize(("build", "steps", "batch_norm"), GRID)
def test_meta_gradients_equal_central_finite_differences_and_each_other(build, steps, batch_norm):
    model, criterion, support, query_x, query_y = setting(build)
    inner = {"inner_lr": 0.1, "inner_steps": steps, "batch_norm": batch_norm}
    reference = reference_gradient(model, criterion, support, query_x, query_y, **inner)
    for name, memory in engines_for(build):
        gradient = meta_gradient(name, model, criterion, support, query_x, query_y, memory=memory, **inner)
        assert relative(gradient, reference) < 1e-9, (name, memory)

    engine = make_engine("auto", model, criterion, **inner)
    # The derivative along a random direction: a sum over all entries of the gradient.
    generator = torch.Generator().manual_seed(1)
    direction = {
        n: torch.randn(p.shape, generator=generator, dtype=p.dtype)
        for n, p in model.named_parameters()
        if p.requires_grad
    }

    def moved(length):
        parameters = {
            n: (p.detach() + length * direction[n]).requires_grad_() if n in direction else p
            for n, p in model.named_parameters()
        }
        return meta_loss(engine, criterion, parameters, support, query_x, query_y).detach()

    def central(length):
        return (moved(length) - moved(-length)) / (2 * length)

    # Richardson's extrapolation: five steps through a norm are curved enough to show in plain differences
    numeric = (4 * central(5e-6) - central(1e-5)) / 3
    exact = reference @ torch.cat([d.flatten() for d in direction.values()])
    assert float(exact) == pytest.approx(float(numeric), rel=1e-6)


@pytest.mark.parametrize("second_order", [True, False])
@pytest.mark.parametrize("adapted", ["last_layer", "every second"])
@pytest.mark.parametrize("build", MODELS)
def test_engines_agree_with_higher_on_subsets_and_in_first_order(build, adapted, second_order):
    for batch_norm in ("support", "transductive")[: 2 if build in (conv, pose) else 1]:
        inner = {"inner_lr": 0.1, "inner_steps": 2, "batch_norm": batch_norm, "second_order": second_order}
        inner["adapted"] = adapted
        if adapted == "every second":
            inner["adapted"] = [n for n, p in setting(build)[0].named_parameters() if p.requires_grad][1::2]
        reference = reference_gradient(*setting(build), **inner)
        for name, memory in engines_for(build):
            gradient = meta_gradient(name, *setting(build), memory=memory, **inner)
            assert relative(gradient, reference) < 1e-9, (name, memory, batch_norm)


def test_first_order_is_another_gradient_and_equals_the_query_gradient_at_the_adapted_parameters():
    model, criterion, support, query_x, query_y = setting(mlp)
    inner = {"inner_lr": 0.1, "inner_steps": 3}
    first = meta_gradient("batched", model, criterion, support, query_x, query_y, second_order=False, **inner)
    second = meta_gradient("batched", model, criterion, support, query_x, query_y, **inner)
    assert relative(first, second) > 0.01

    by_hand = torch.zeros_like(first)
    for task in range(TASKS):
        adapted = deepcopy(model)
        for _ in range(3):
            loss = criterion(adapted(support[0][task]), support[1][task])
            for p, g in zip(adapted.parameters(), torch.autograd.grad(loss, adapted.parameters()), strict=True):
                p.data -= 0.1 * g
        loss = criterion(adapted(query_x[task]), query_y.unflatten(0, (TASKS, QUERY))[task])
        gradients = torch.autograd.grad(loss, adapted.parameters())
        by_hand += torch.cat([g.flatten() for g in gradients]) / TASKS
    assert relative(first, by_hand) < 1e-12


@pytest.mark.parametrize("name", sorted(ENGINES))
def test_predict_leaves_parameters_buffers_and_random_state(name):
    model, criterion, support, query_x, _ = setting(conv)
    before = deepcopy(model.state_dict())
    state = torch.get_rng_state()
    make_engine(name, model, criterion, inner_lr=0.1, inner_steps=2).predict(
        dict(model.named_parameters()), support, query_x
    )
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_the_support_rule_makes_predictions_independent_of_their_neighbours():
    model, criterion, support, query_x, _ = setting(conv)
    parameters = dict(model.named_parameters())
    for rule, independent in [("support", True), ("transductive", False)]:
        engine = make_engine("auto", model, criterion, inner_lr=0.1, inner_steps=2, batch_norm=rule)
        together = engine.predict(parameters, support, query_x)[:, :2]
        alone = engine.predict(parameters, support, query_x[:, :2])
        assert torch.allclose(together, alone, atol=1e-12) == independent


@pytest.mark.parametrize("name", sorted(ENGINES))
def test_the_update_procedure_is_full_batch_gradient_descent_on_a_copy(name):
    model, criterion, support, _, _ = setting(mlp)
    before = deepcopy(model.state_dict())
    x, y = support[0][0], support[1][0]
    engine = make_engine(name, model, criterion, inner_lr=0.05, inner_steps=1)
    with torch.no_grad():  # as in an evaluation
        adapted = engine.adapt(dict(model.named_parameters()), x, y, steps=4)

    by_hand = deepcopy(model)
    optimizer = torch.optim.SGD(by_hand.parameters(), lr=0.05)
    for _ in range(4):
        optimizer.zero_grad()
        criterion(by_hand(x), y).backward()
        optimizer.step()
    for key, value in by_hand.named_parameters():
        assert torch.allclose(adapted[key], value, atol=1e-14)
        assert not adapted[key].requires_grad
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@needs_library
def test_auto_takes_the_fastest_exact_engine():
    inner = {"inner_lr": 0.1, "inner_steps": 1}
    assert make_engine("auto", RainbowNet(), nn.CrossEntropyLoss(), **inner).name == "native"
    for variant in ("paper", "authors"):
        assert make_engine("auto", PoseNet(variant=variant), nn.MSELoss(), **inner).name == "native"
    grouped = nn.Sequential(nn.Conv2d(2, 2, 3, groups=2), nn.Flatten())
    assert make_engine("auto", grouped, nn.MSELoss(), **inner).name == "batched"

    class Residual(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Sequential(nn.Linear(2, 2), nn.ReLU())

        def forward(self, x):
            return x + self.inner(x)

    assert make_engine("auto", Residual(), nn.MSELoss(), **inner).chosen == {
        "engine": "vmap",
        "engine_memory": "adjoint",
        "engine_note": "native has no batched form of Residual (the model itself); "
        "batched has no batched form of Residual (the model itself)",
    }


def test_the_batched_loss_weighs_tasks_equally_when_targets_are_ignored():
    model = nn.Sequential(nn.Linear(2, 3)).double()
    criterion = nn.CrossEntropyLoss()
    torch.manual_seed(0)
    support = (torch.randn(2, 4, 2).double(), torch.tensor([[0, 1, 2, 0], [1, -100, -100, -100]]))
    query_x = torch.randn(2, 3, 2).double()
    outputs = [
        make_engine(name, model, criterion, inner_lr=1.0, inner_steps=2).predict(
            dict(model.named_parameters()), support, query_x
        )
        for name in ("loop", "batched")
    ]
    assert torch.allclose(*outputs, atol=1e-12)


def test_stock_norm_layers_are_converted():
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(8, 2))
    make_engine("auto", model, nn.CrossEntropyLoss(), inner_lr=0.1, inner_steps=1)
    assert type(model[1]) is TaskBatchNorm


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "hgiher"}, "did you mean 'higher'"),
        ({"inner_lr": 0.0}, "inner_lr=0.0"),
        ({"inner_steps": -1}, "inner_steps=-1"),
        ({"batch_norm": "running"}, "batch norm rule"),
        ({"adapted": "last"}, "did you mean 'last_layer'"),
        ({"adapted": ["head.wieght"]}, "did you mean 'head.weight'"),
    ],
)
def test_bad_settings_are_refused_with_one_line(change, message):
    settings = {"name": "auto", "inner_lr": 0.1, "inner_steps": 1} | change
    with pytest.raises(UsageError, match=message) as error:
        make_engine(settings.pop("name"), SinusoidMLP(), nn.MSELoss(), **settings)
    assert "\n" not in str(error.value)


def test_batched_refuses_layers_that_it_has_no_form_of():
    with pytest.raises(UsageError, match="no batched form of LayerNorm") as error:
        make_engine("batched", nn.Sequential(nn.LayerNorm(2)), nn.MSELoss(), inner_lr=0.1, inner_steps=1)
    assert str(pickle.loads(pickle.dumps(error.value))) == str(error.value)  # cells run in processes of their own
