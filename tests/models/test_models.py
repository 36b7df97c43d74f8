"""The networks: shapes and numbers of parameters by hand, outputs against the layers written out."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from ftml_bench.errors import UsageError
from ftml_bench.models import (
    BiasTransformation,
    MultiHeadNet,
    PoseNet,
    RainbowNet,
    SinusoidMLP,
    SpatialSoftArgmax,
    TaskBatchNorm,
)


def strides(model):
    return [module.stride for module in model if isinstance(module, nn.Conv2d)]


def maps(model, x):
    """The shape after every convolution."""
    shapes = []
    for module in model:
        x = module(x)
        if isinstance(module, nn.Conv2d):
            shapes.append(tuple(x.shape[2:]))
    return shapes


def conv_norm(model, name, x, stride, eps, padding=1):
    parameters = dict(model.named_parameters())
    x = F.conv2d(x, parameters[f"conv{name}.weight"], parameters.get(f"conv{name}.bias"), stride, padding)
    scale, offset = parameters[f"norm{name}.weight"], parameters[f"norm{name}.bias"]
    return F.batch_norm(x, None, None, scale, offset, training=True, eps=eps)


def size(model):
    return sum(p.numel() for p in model.parameters())


# -- the paper's network


def test_the_default_is_the_papers_network():
    model = RainbowNet()
    assert strides(model) == [(2, 2)] * 4 + [(1, 1)]
    kinds = [type(module) for module in model]
    assert kinds == [nn.Conv2d, TaskBatchNorm, nn.ReLU] * 5 + [nn.Flatten, nn.Linear]
    assert all(c.kernel_size == (3, 3) and c.out_channels == 32 for c in model if isinstance(c, nn.Conv2d))
    # convolutions, scales and offsets, head
    assert size(model) == 3 * 32 * 9 + 4 * 32 * 32 * 9 + 5 * 2 * 32 + (128 * 10 + 10) == 39_338


@pytest.mark.parametrize(
    ("image_size", "expected"),
    [
        (28, [14, 7, 4, 2, 2]),
        (14, [7, 4, 2, 2, 2]),
        (8, [4, 2, 2, 2, 2]),
        (6, [3, 2, 2, 2, 2]),
        (2, [2] * 5),
        (1, [1] * 5),
    ],
)
def test_maps_are_halved_down_to_two_pixels(image_size, expected):
    model = RainbowNet(image_size=image_size)
    x = torch.rand(3, 3, image_size, image_size)
    assert maps(model, x) == [(side, side) for side in expected]
    assert model(x).shape == (3, 10)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"layers": 1, "filters": 4, "image_size": 8}, 3 * 4 * 9 + 2 * 4 + (4 * 16 * 10 + 10)),
        ({"layers": 3, "filters": 5, "image_size": 14, "classes": 7}, 3 * 5 * 9 + 2 * 25 * 9 + 30 + (20 * 7 + 7)),
        ({"layers": 2, "filters": 2, "image_size": 4, "channels": 1}, 1 * 2 * 9 + 4 * 9 + 8 + (2 * 4 * 10 + 10)),
    ],
)
def test_layers_filters_classes_and_channels_are_as_said(settings, expected):
    model = RainbowNet(**settings)
    side = settings["image_size"]
    assert model(torch.rand(4, settings.get("channels", 3), side, side)).shape == (4, settings.get("classes", 10))
    assert size(model) == expected


def test_the_papers_network_computes_its_layers_written_out():
    torch.manual_seed(0)
    model = RainbowNet(filters=6)
    images = torch.rand(5, 3, 28, 28)
    x = images
    for i, stride in enumerate([2, 2, 2, 2, 1], start=1):
        x = conv_norm(model, str(i), x, stride, eps=1e-5).relu()
    expected = x.flatten(1) @ model.head.weight.T + model.head.bias
    torch.testing.assert_close(model(images), expected, rtol=1e-4, atol=1e-5)


# -- the authors' network


def test_the_authors_network_has_six_convolutions_and_a_mean():
    model = RainbowNet(variant="authors")
    assert strides(model) == [(s, s) for s in (2, 1, 2, 2, 1, 2)]
    assert maps(model, torch.rand(2, 3, 28, 28)) == [(s, s) for s in (14, 14, 7, 4, 4, 2)]
    block, no_relu = [nn.Conv2d, TaskBatchNorm, nn.ReLU], [nn.Conv2d, TaskBatchNorm]
    kinds = [type(module) for module in model]
    assert kinds == (block + no_relu + block) * 2 + [nn.AdaptiveAvgPool2d, nn.Flatten, nn.Linear]
    assert size(model) == (3 * 32 * 9 + 32) + 5 * (32 * 32 * 9 + 32) + 6 * 2 * 32 + (32 * 10 + 10)


def test_the_authors_network_computes_its_layers_written_out():
    torch.manual_seed(0)
    model = RainbowNet(variant="authors", filters=6, classes=4)
    images = torch.rand(5, 3, 28, 28)
    x = images
    for name, stride, relu in [("1", 2, 1), ("1b", 1, 0), ("2", 2, 1), ("3", 2, 1), ("3b", 1, 0), ("4", 2, 1)]:
        x = conv_norm(model, name, x, stride, eps=1e-3)
        x = x.relu() if relu else x
    expected = x.mean((2, 3)) @ model.head.weight.T + model.head.bias
    torch.testing.assert_close(model(images), expected, rtol=1e-4, atol=1e-5)


def test_the_authors_network_has_offsets_without_scales_and_a_wide_head():
    torch.manual_seed(0)
    model = RainbowNet(variant="authors")
    for module in model:
        if isinstance(module, TaskBatchNorm):
            assert not module.weight.requires_grad
            assert torch.equal(module.weight, torch.ones(32))
            assert module.bias.requires_grad
        elif isinstance(module, nn.Conv2d):
            bound = (6 / (9 * (module.in_channels + module.out_channels))) ** 0.5  # Glorot's uniform
            assert 0.95 * bound < float(module.weight.detach().abs().max()) <= bound
            assert not module.bias.any()
    weights = model.head.weight.detach()
    assert 0.85 < float(weights.std()) < 1.15  # 320 draws from N(0, 1)
    assert abs(float(weights.mean())) < 0.25
    assert not model.head.bias.any()


# -- both


@pytest.mark.parametrize("variant", ["paper", "authors"])
@pytest.mark.parametrize("name", ["layers", "filters", "image_size", "classes"])
@pytest.mark.parametrize("value", [0, -3])
def test_sizes_below_one_are_refused_by_name(name, value, variant):
    with pytest.raises(UsageError, match=f"^{name}={value}: expected a whole number of at least 1$"):
        RainbowNet(variant=variant, **{name: value})


def test_an_unknown_variant_is_refused_with_the_nearest():
    with pytest.raises(UsageError, match=r"variant of RainbowNet 'author': did you mean 'authors'\?"):
        RainbowNet(variant="author")


def test_torchs_random_state_alone_decides_the_parameters():
    for build in (
        RainbowNet,
        SinusoidMLP,
        PoseNet,
        lambda: RainbowNet(variant="authors"),
        lambda: PoseNet(variant="authors"),
    ):
        states = []
        for seed in (0, 0, 1):
            torch.manual_seed(seed)
            states.append(torch.cat([p.detach().flatten() for p in build().parameters()]))
        assert torch.equal(states[0], states[1])
        assert not torch.equal(states[0], states[2])


# -- pose


def test_the_soft_argmax_finds_the_place_of_a_peak():
    maps = torch.zeros(2, 3, 8, 5)
    maps[0, 0, 6, 1] = maps[0, 1, 0, 4] = maps[1, 2, 7, 0] = 100
    places = SpatialSoftArgmax()(maps)
    assert places.shape == (2, 6)  # all columns, then all rows
    torch.testing.assert_close(places[0, :2], torch.tensor([1 / 5 - 0.5, 4 / 5 - 0.5]))
    torch.testing.assert_close(places[0, 3:5], torch.tensor([6 / 8 - 0.5, 0 / 8 - 0.5]))
    torch.testing.assert_close(places[1, 2::3], torch.tensor([-0.5, 7 / 8 - 0.5]))
    # a flat map: the mean of all places; two equal peaks: the middle between them
    torch.testing.assert_close(places[0, 2::3], torch.tensor([2 / 5 - 0.5, 3.5 / 8 - 0.5]))
    maps[1, 2, 7, 4] = 100
    assert float(SpatialSoftArgmax()(maps)[1, 2]) == pytest.approx(2 / 5 - 0.5)


def test_the_bias_transformation_appends_its_vector_to_every_row():
    layer = BiasTransformation(3)
    assert not layer.vector.any()
    layer.vector.data = torch.tensor([1.0, 2.0, 3.0])
    x = torch.rand(4, 2)
    assert layer(x).tolist() == [[*row, 1.0, 2.0, 3.0] for row in x.tolist()]


@pytest.mark.parametrize(("side", "expected"), [(64, (32, 16, 8, 4)), (125, (63, 32, 16, 8))])
def test_the_pose_network_halves_its_maps(side, expected):
    model = PoseNet(image_size=side)
    assert strides(model) == [(2, 2)] * 4
    assert maps(model, torch.rand(2, 3, side, side)) == [(n, n) for n in expected]
    assert model(torch.rand(2, 3, side, side)).shape == (2, 4)
    convolutions = 25 * 16 * (3 + 3 * 16) + 4 * 32
    assert size(model) == convolutions + 32 * 200 + 200 * 200 + 2 * 400 + (200 * 4 + 4)


def test_the_pose_network_computes_its_layers_written_out():
    torch.manual_seed(0)
    model = PoseNet(filters=3, hidden=6, image_size=33)
    images = torch.rand(5, 3, 33, 33)
    x = images
    for i in (1, 2, 3, 4):
        x = conv_norm(model, str(i), x, stride=2, eps=1e-5, padding=2).relu()
    x = model.argmax(x)
    for layer, norm in [(model.linear1, model.linear_norm1), (model.linear2, model.linear_norm2)]:
        x = F.batch_norm(x @ layer.weight.T, None, None, norm.weight, norm.bias, training=True).relu()
    expected = x @ model.head.weight.T + model.head.bias
    torch.testing.assert_close(model(images), expected, rtol=1e-4, atol=1e-5)


def test_the_authors_pose_network_has_a_bias_transformation_and_no_norm_on_linear_layers():
    torch.manual_seed(0)
    model = PoseNet(variant="authors")
    kinds = [type(module) for module in model]
    assert kinds == [nn.Conv2d, TaskBatchNorm, nn.ReLU] * 4 + [SpatialSoftArgmax, BiasTransformation] + [
        nn.Linear, nn.ReLU, nn.Linear, nn.ReLU, nn.Linear,
    ]  # fmt: skip
    assert size(model) == (25 * 16 * 51 + 4 * 16) + 4 * 32 + 20 + (52 * 200 + 200) + (200 * 200 + 200) + (800 + 4)
    assert model.transformation.vector.requires_grad
    for module in model:
        if isinstance(module, TaskBatchNorm):
            assert (module.eps, module.weight.requires_grad, module.bias.requires_grad) == (1e-3, False, True)
        elif isinstance(module, nn.Linear):
            assert 0.009 < float(module.weight.detach().std()) < 0.011
            assert not module.bias.any()
        elif isinstance(module, nn.Conv2d):
            bound = (6 / (25 * (module.in_channels + module.out_channels))) ** 0.5
            assert 0.95 * bound < float(module.weight.detach().abs().max()) <= bound
    assert model(torch.rand(3, 3, 64, 64)).shape == (3, 4)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"hidden": 0}, "hidden=0: expected a number of at least 1"),
        ({"variant": "Authors"}, "did you mean 'authors'"),
        ({"image_size": 16}, "image_size=16: 4 convolutions leave a single place of it, expected 17 or more"),
    ],
)
def test_bad_settings_of_the_pose_network_are_refused(settings, message):
    with pytest.raises(UsageError, match=message):
        PoseNet(**settings)


# -- sinusoids


@pytest.mark.parametrize(("settings", "h"), [({}, 40), ({"hidden": 7}, 7)])
def test_the_sinusoid_network_has_two_hidden_layers(settings, h):
    torch.manual_seed(0)
    model = SinusoidMLP(**settings)
    assert size(model) == (h + h) + (h * h + h) + (h + 1)
    x = torch.linspace(-5, 5, 9)[:, None]
    hidden = (x @ model.linear1.weight.T + model.linear1.bias).relu()
    hidden = (hidden @ model.linear2.weight.T + model.linear2.bias).relu()
    assert model(x).shape == (9, 1)
    torch.testing.assert_close(model(x), hidden @ model.head.weight.T + model.head.bias)


def test_networks_can_be_sliced():
    model = RainbowNet(filters=2)
    features = model[:-1]
    x = torch.rand(4, 3, 28, 28)
    assert torch.equal(model[-1](features(x)), model(x))
    assert [name for name, _ in features.named_children()][-1] == "flatten"


# -- a head a task


def test_every_point_gets_the_head_of_its_own_task():
    torch.manual_seed(0)
    net = MultiHeadNet(heads=3, layers=2, filters=4, image_size=14, classes=5).eval()
    x, labels = torch.rand(6, 3, 14, 14), torch.tensor([2, 0, 1, 1, 2, 0])
    features = net.body(x)
    weight, bias = net.heads.weight.view(3, 5, -1), net.heads.bias.view(3, 5)
    expected = torch.stack([weight[t] @ f + bias[t] for f, t in zip(features, labels, strict=True)])
    assert torch.allclose(net(x, labels), expected, atol=1e-6)
    assert torch.allclose(net(x, 1), torch.stack([weight[1] @ f + bias[1] for f in features]), atol=1e-6)


def test_a_minibatch_of_several_tasks_is_normalised_as_one():
    net = MultiHeadNet(heads=2, layers=2, filters=4, image_size=14).train()
    x = torch.rand(8, 3, 14, 14)
    net(x, torch.tensor([0] * 7 + [1]))
    first = net.body.norm1
    assert first.num_batches_tracked == 1
    mean = net.body.conv1(x).mean(dim=(0, 2, 3))
    assert torch.allclose(first.running_mean, 0.1 * mean, atol=1e-6)


def test_its_common_layers_are_those_of_the_papers_network():
    assert size(MultiHeadNet(heads=1)) == size(RainbowNet(image_size=32, classes=5))
    assert size(MultiHeadNet(heads=96)) - size(MultiHeadNet(heads=95)) == 5 * 128 + 5


@pytest.mark.parametrize("label", [-1, 3])
def test_a_task_without_a_head_is_refused(label):
    net = MultiHeadNet(heads=3, layers=1, filters=2, image_size=14)
    with pytest.raises(UsageError, match=rf"task labels {label} to {label} for a network with heads 0 to 2: build"):
        net(torch.rand(2, 3, 14, 14), torch.full((2,), label))
    with pytest.raises(UsageError, match="heads=0"):
        MultiHeadNet(heads=0)
