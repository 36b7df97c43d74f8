"""The norm layer: PyTorch's own outside of any context, closed forms inside, finite differences for derivatives."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch
from torch import nn
from torch.func import functional_call, grad, vmap

from ftml_bench.models import TaskBatchNorm, batch_statistics, convert_batch_norm

CHANNELS = 3
STOCK = [
    (nn.BatchNorm1d, (CHANNELS,)),
    (nn.BatchNorm1d, (CHANNELS, 5)),
    (nn.BatchNorm2d, (CHANNELS, 4, 2)),
    (nn.BatchNorm3d, (CHANNELS, 2, 1, 3)),
]


def rows(n, *shape, seed=0):
    """Points with another mean and spread in every channel."""
    x = torch.randn(n, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    channel = torch.arange(1.0, shape[0] + 1, dtype=torch.float64).view(-1, *[1] * (len(shape) - 1))
    return x * channel + 2 * channel


def randomised(norm):
    """Scale, offset and running statistics that differ from what a new layer has."""
    torch.manual_seed(1)
    with torch.no_grad():
        for values in [norm.weight, norm.bias, norm.running_mean, norm.running_var]:
            if values is not None:
                values.copy_(torch.rand(CHANNELS) + 0.5)
    return norm.double()


def layer(**settings):
    return randomised(TaskBatchNorm(CHANNELS, **settings))


def normalised(norm, x, source):
    """By hand: x by the mean and the biased variance of source over all but the channels, then scale and offset."""
    by_channel = source.transpose(0, 1).reshape(source.shape[1], -1)
    shape = (1, -1, *[1] * (x.dim() - 2))
    mean = by_channel.mean(1).view(shape)
    var = ((by_channel - by_channel.mean(1, keepdim=True)) ** 2).mean(1).view(shape)
    return (x - mean) / (var + norm.eps).sqrt() * norm.weight.view(shape) + norm.bias.view(shape)


def state(norm):
    return {name: value.clone() for name, value in norm.state_dict().items()}


def assert_same_state(norm, expected):
    assert list(norm.state_dict()) == list(expected)
    for name, value in norm.state_dict().items():
        torch.testing.assert_close(value, expected[name], rtol=1e-12, atol=1e-12, msg=name)


def assert_same(x, y):
    torch.testing.assert_close(x, y, rtol=1e-10, atol=1e-12)


# -- outside of any context


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("momentum", [0.1, 0.7, None])
@pytest.mark.parametrize(("stock", "shape"), STOCK)
def test_outside_a_context_it_is_the_stock_layer_in_training_and_evaluation(stock, shape, momentum, affine):
    theirs = randomised(stock(CHANNELS, momentum=momentum, affine=affine, eps=1e-2))
    ours = randomised(TaskBatchNorm(CHANNELS, momentum=momentum, affine=affine, eps=1e-2))
    for step in range(6):
        training = step not in (3, 5)
        x = (rows(4 + step, *shape, seed=step) * (step + 1)).requires_grad_()
        weights = torch.randn(x.shape, dtype=torch.float64)
        outputs, gradients = [], []
        for norm in (theirs, ours):
            out = norm.train(training)(x)
            outputs.append(out)
            gradients.append(torch.autograd.grad((out * weights).sum(), [x, *norm.parameters()]))
        assert_same(outputs[1], outputs[0])
        for mine, stock_gradient in zip(gradients[1], gradients[0], strict=True):
            assert_same(mine, stock_gradient)
        assert_same_state(ours, theirs.state_dict())


@pytest.mark.parametrize("training", [True, False])
def test_without_running_statistics_it_is_the_stock_layer(training):
    theirs = nn.BatchNorm2d(CHANNELS, track_running_stats=False).double().train(training)
    ours = TaskBatchNorm(CHANNELS, track_running_stats=False).double().train(training)
    x = rows(5, CHANNELS, 2, 2)
    assert_same(ours(x), theirs(x))
    with batch_statistics(keep="recorded"):  # nothing to record in
        assert_same(ours(x), theirs(x))


def test_an_input_without_channels_is_refused():
    with pytest.raises(ValueError, match=r"\(N, C, ...\), got \(5,\)"):
        TaskBatchNorm(5)(torch.ones(5))


# -- inside


@pytest.mark.parametrize("training", [True, False])
def test_groups_are_as_many_separate_calls(training):
    ours = layer().train(training)
    theirs = nn.BatchNorm2d(CHANNELS).double()
    theirs.load_state_dict(ours.state_dict())
    x = rows(12, CHANNELS, 2, 3) * torch.arange(1.0, 13).view(-1, 1, 1, 1)
    with batch_statistics(groups=3):
        got = ours(x)
    assert_same(got, torch.cat([theirs(part) for part in x.split(4)]))
    assert not torch.allclose(got, theirs(x))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("shape", [(CHANNELS,), (CHANNELS, 2, 3)])
@pytest.mark.parametrize("first", [2, 5, 8])
def test_first_normalises_all_rows_by_the_statistics_of_the_first(first, shape, training):
    norm = layer().train(training)
    x = rows(8, *shape)
    x[first:] += 10
    with batch_statistics(first=first):
        assert_same(norm(x), normalised(norm, x, x[:first]))


def test_first_counts_in_every_group():
    norm = layer()
    x = rows(10, CHANNELS, 2, 2) * torch.arange(1.0, 11).view(-1, 1, 1, 1)
    with batch_statistics(first=2, groups=2):
        expected = [normalised(norm, part, part[:2]) for part in x.split(5)]
        assert_same(norm(x), torch.cat(expected))


def test_what_comes_after_the_first_rows_moves_no_statistics():
    norm = layer()
    x = rows(9, CHANNELS)
    poisoned = x.clone()
    poisoned[6:] = float("nan")
    with batch_statistics(first=4, keep="running"):
        assert torch.equal(norm(x)[:6], norm(poisoned)[:6])
    assert norm.running_mean.isfinite().all()


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("momentum", [0.1, None])
@pytest.mark.parametrize(("first", "groups"), [(None, 1), (3, 1)])
def test_recorded_statistics_then_normalise_a_batch_of_any_size_in_the_same_way(first, groups, momentum, training):
    norm = layer(momentum=momentum).train(training)
    x = rows(7, CHANNELS, 2, 2)
    with batch_statistics(first=first, groups=groups, keep="recorded"):
        expected = norm(x)
    norm.eval()
    assert_same(norm(x), expected)
    assert_same(torch.cat([norm(row[None]) for row in x]), expected)
    assert_same(norm(x[[4, 1]]), expected[[4, 1]])


@pytest.mark.parametrize("training", [True, False])
def test_keeping_nothing_leaves_the_buffers_and_takes_the_batch_at_hand(training):
    norm = layer().train(training)
    before = state(norm)
    x = rows(6, CHANNELS, 2, 2)
    for settings in [{}, {"first": 2}, {"groups": 3}, {"keep": "nothing"}]:
        with batch_statistics(**settings):
            norm(x)
        assert all(torch.equal(value, before[name]) for name, value in norm.state_dict().items())
    with batch_statistics():
        assert_same(norm(x), normalised(norm, x, x))


@pytest.mark.parametrize("training", [True, False])
def test_running_statistics_move_towards_the_mean_over_groups(training):
    norm = layer(momentum=0.2).train(training)
    before = state(norm)
    x = rows(12, CHANNELS, 2, 2) * torch.arange(1.0, 13).view(-1, 1, 1, 1)
    with batch_statistics(groups=3, first=3, keep="running"):
        norm(x)
    by_channel = [part[:3].transpose(0, 1).flatten(1) for part in x.split(4)]
    mean = sum(values.mean(1) for values in by_channel) / 3
    var = sum(values.var(1, correction=1) for values in by_channel) / 3
    assert_same(norm.running_mean, 0.8 * before["running_mean"] + 0.2 * mean)
    assert_same(norm.running_var, 0.8 * before["running_var"] + 0.2 * var)
    assert int(norm.num_batches_tracked) == 1


def test_keeping_running_statistics_of_one_group_is_what_the_stock_layer_does():
    ours, theirs = layer(), randomised(nn.BatchNorm2d(CHANNELS))
    for step in range(3):
        x = rows(4 + step, CHANNELS, 2, 2, seed=step)
        with batch_statistics(keep="running"):
            assert_same(ours(x), theirs(x))
    assert_same_state(ours, theirs.state_dict())


def test_the_context_ends_where_it_ends_also_by_an_error_and_inside_another():
    norm = layer().eval()
    x = rows(6, CHANNELS)
    outside = norm(x)

    def fail():
        with batch_statistics(first=2):
            raise RuntimeError("of the model")

    with pytest.raises(RuntimeError, match="of the model"):
        fail()
    assert torch.equal(norm(x), outside)
    with batch_statistics(first=4):
        with pytest.raises(RuntimeError, match="of the model"):
            fail()
        assert_same(norm(x), normalised(norm, x, x[:4]))
        with batch_statistics():
            assert_same(norm(x), normalised(norm, x, x))
        assert_same(norm(x), normalised(norm, x, x[:4]))
    assert torch.equal(norm(x), outside)


def test_the_context_reaches_every_layer_of_a_model():
    model = nn.Sequential(
        nn.Conv2d(2, 4, 3), TaskBatchNorm(4), nn.ReLU(), nn.Sequential(nn.Flatten(), nn.Linear(4 * 4, 3), layer())
    ).double()
    support, query = rows(5, 2, 4, 4), rows(4, 2, 4, 4, seed=1) + 3
    with batch_statistics(first=5):
        together = model(torch.cat([support, query]))[5:]
    with batch_statistics(keep="recorded"):
        model(support)
    assert_same(together, model.eval()(query))


# -- derivatives


@pytest.mark.parametrize("shape", [(2,), (2, 2, 1)])
@pytest.mark.parametrize("settings", [None, {}, {"first": 3}, {"groups": 2}, {"groups": 2, "first": 2}], ids=str)
def test_first_and_second_derivatives_agree_with_finite_differences(settings, shape):
    norm = TaskBatchNorm(2).double()
    x = rows(6, *shape).requires_grad_()
    weight = torch.tensor([1.5, -0.7], dtype=torch.float64, requires_grad=True)
    bias = torch.tensor([0.2, 0.3], dtype=torch.float64, requires_grad=True)

    def call(x, weight, bias):
        parameters = {"weight": weight, "bias": bias}
        if settings is None:
            return functional_call(norm, parameters, (x,)) ** 2
        with batch_statistics(**settings):
            return functional_call(norm, parameters, (x,)) ** 2

    assert torch.autograd.gradcheck(call, (x, weight, bias))
    assert torch.autograd.gradgradcheck(call, (x, weight, bias))


def test_second_derivatives_under_vmap_are_those_of_one_task_at_a_time():
    norm = TaskBatchNorm(2).double()
    tasks = torch.stack([rows(6, 2, seed=seed) for seed in range(4)])
    weight = torch.tensor([1.5, -0.7], dtype=torch.float64, requires_grad=True)

    def loss(weight, x):
        with batch_statistics(first=4):
            return functional_call(norm, {"weight": weight}, (x,)).sigmoid().square().mean()

    def after_a_step(weight, x):
        return loss(weight - 0.5 * grad(loss)(weight, x), x)

    together = torch.autograd.grad(vmap(after_a_step, in_dims=(None, 0))(weight, tasks).sum(), weight)[0]
    leaf = weight.detach().clone().requires_grad_()
    for x in tasks:  # plain autograd, no transforms
        (inner,) = torch.autograd.grad(loss(leaf, x), leaf, create_graph=True)
        loss(leaf - 0.5 * inner, x).backward()
    assert_same(together, leaf.grad)


# -- conversion


def users_model():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1),
        nn.BatchNorm2d(4, eps=1e-3, momentum=0.3),
        nn.ModuleDict({"inner": nn.Sequential(nn.Identity(), nn.BatchNorm2d(4, affine=False))})["inner"],
        nn.GroupNorm(2, 4),
        nn.InstanceNorm2d(4),
        nn.Flatten(),
        nn.Linear(16, 5),
        nn.LayerNorm(5),
        nn.BatchNorm1d(5, track_running_stats=False),
        nn.Linear(5, 3),
    ).double()


def test_conversion_keeps_every_parameter_and_buffer_object():
    model = users_model()
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    converted = convert_batch_norm(model)
    assert converted is model
    after = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    assert list(after) == list(tensors)
    assert all(after[name] is tensors[name] for name in tensors)


def test_conversion_replaces_batch_norms_at_any_depth_and_nothing_else():
    model = users_model()
    before = dict(model.named_modules())
    after = dict(convert_batch_norm(model).named_modules())
    assert list(after) == list(before)
    for name, module in before.items():
        if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
            assert type(after[name]) is TaskBatchNorm
            for setting in ("num_features", "eps", "momentum", "affine", "track_running_stats", "training"):
                assert getattr(after[name], setting) == getattr(module, setting)
        else:
            assert after[name] is module


def test_a_converted_model_goes_on_training_under_the_optimiser_that_holds_its_parameters():
    theirs = users_model()
    ours = deepcopy(theirs)
    # Not Adam: the offset of a layer in front of a norm has no gradient, and Adam makes steps of what rounding leaves.
    optimizers = [torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9) for model in (theirs, ours)]
    for step in range(6):
        if step == 3:  # in the middle of training
            convert_batch_norm(ours)
        x = rows(6, 2, 2, 2, seed=step)
        for model, optimizer in zip((theirs, ours), optimizers, strict=True):
            optimizer.zero_grad()
            model(x).square().sum().backward()
            optimizer.step()
    for mine, stock in zip(ours.state_dict().values(), theirs.state_dict().values(), strict=True):
        torch.testing.assert_close(mine, stock, rtol=1e-7, atol=1e-9)
    x = rows(4, 2, 2, 2, seed=9)
    torch.testing.assert_close(ours.eval()(x), theirs.eval()(x), rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("stock", [nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d])
@pytest.mark.parametrize("training", [True, False])
def test_a_model_that_is_a_norm_layer_is_returned_as_ours(stock, training):
    norm = stock(4).train(training)
    ours = convert_batch_norm(norm)
    assert type(ours) is TaskBatchNorm
    assert ours.weight is norm.weight
    assert ours.running_var is norm.running_var
    assert ours.training is training


def test_conversion_leaves_our_own_layers():
    norm = TaskBatchNorm(3)
    model = nn.Sequential(nn.Linear(3, 3), norm)
    assert convert_batch_norm(model)[1] is norm
    assert convert_batch_norm(norm) is norm


def test_frozen_scales_stay_frozen_by_conversion():
    norm = nn.BatchNorm2d(3)
    norm.weight.requires_grad_(False)
    assert [p.requires_grad for p in convert_batch_norm(norm).parameters()] == [False, True]


def test_state_dicts_go_from_stock_layers_to_ours_and_back():
    stock = randomised(nn.BatchNorm2d(CHANNELS))
    ours = TaskBatchNorm(CHANNELS).double()
    ours.load_state_dict(stock.state_dict())
    again = nn.BatchNorm2d(CHANNELS).double()
    again.load_state_dict(ours.state_dict())
    assert_same_state(again, stock.state_dict())


def test_a_layer_that_stands_in_two_places_is_converted_once():
    model = nn.Module()
    model.a = model.b = nn.BatchNorm1d(3)
    convert_batch_norm(model)
    assert type(model.a) is TaskBatchNorm
    assert model.b is model.a
