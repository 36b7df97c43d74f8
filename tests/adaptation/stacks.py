"""Small stacks for the tests of the engine `native`, and their meta-gradients by differences of plain descent."""

import copy

import pytest
import torch
from torch import nn

from ftml_bench.adaptation import ENGINES
from ftml_bench.adaptation.native import library
from ftml_bench.models import PoseNet, RainbowNet, TaskBatchNorm
from ftml_bench.models.norm import batch_statistics
from ftml_bench.models.pose_net import BiasTransformation, SpatialSoftArgmax

needs_library = pytest.mark.skipif(
    library.built("baseline") is None, reason="the engine native has not been built, for want of a compiler"
)
INNER = {"inner_lr": 0.1, "inner_steps": 2}


def head(width, classes=3):
    return nn.Linear(width, classes)


def of_maps(*layers, channels=2, width=None):
    """Layers on maps of 6 x 5 with `channels`, flattened, and a head."""
    body = nn.Sequential(*layers, nn.Flatten())
    found = body(torch.zeros(2, channels, 6, 5)).shape[1] if width is None else width
    return nn.Sequential(*layers, nn.Flatten(), head(found)), (channels, 6, 5)


def of_rows(*layers, width=5):
    return nn.Sequential(nn.Linear(4, 5), *layers, head(width)), (4,)


def conv(inputs=2, outputs=3, kernel=3, **settings):
    return nn.Conv2d(inputs, outputs, kernel, **settings)


def frozen(norm):
    return norm.requires_grad_(False)


def shifted(norm):
    """A norm whose scale and offset are not where they begin."""
    nn.init.uniform_(norm.weight, 0.5, 1.5)
    nn.init.normal_(norm.bias)
    return norm


ACTIVATIONS = {
    "ReLU": nn.ReLU(),
    "LeakyReLU": nn.LeakyReLU(0.2),
    "LeakyReLU that falls": nn.LeakyReLU(-0.3),
    "Tanh": nn.Tanh(),
    "Sigmoid": nn.Sigmoid(),
    "SiLU": nn.SiLU(),
    "GELU": nn.GELU(),
    "GELU by tanh": nn.GELU("tanh"),
    "Softplus": nn.Softplus(2.0, 1.5),
    "ELU": nn.ELU(0.7),
    "SELU": nn.SELU(),
}

STACKS = {
    "conv, bias": lambda: of_maps(conv(padding=1), nn.Tanh()),
    "conv, no bias, stride": lambda: of_maps(conv(kernel=5, stride=2, padding=2, bias=False), nn.Tanh()),
    "conv, oblong": lambda: of_maps(conv(kernel=(2, 3), stride=(1, 2), padding=(0, 1)), nn.Tanh()),
    "conv, 1 x 1": lambda: of_maps(conv(kernel=1), nn.Tanh()),
    "conv, dilated": lambda: of_maps(conv(dilation=2), nn.Tanh()),
    "conv, padding beyond the kernel": lambda: of_maps(conv(kernel=2, stride=3, padding=3), nn.Tanh()),
    "conv, steps over places": lambda: of_maps(conv(kernel=1, stride=2), nn.Tanh()),
    "conv, one channel": lambda: of_maps(conv(1, 1), nn.Tanh(), channels=1),
    "convs of 17, 40 and 16": lambda: of_maps(
        conv(3, 17, padding=1), nn.Tanh(), conv(17, 40, stride=2, padding=1), nn.Tanh(), conv(40, 16), channels=3
    ),
    "conv of the kernel's size": lambda: of_maps(conv(kernel=(6, 5)), nn.Tanh()),
    "linear": lambda: (nn.Linear(4, 3), (4,)),
    "linear, no bias": lambda: (nn.Sequential(nn.Linear(4, 3, bias=False)), (4,)),
    "linear, wide": lambda: of_rows(nn.Tanh(), nn.Linear(5, 70), nn.Tanh(), nn.Linear(70, 35), nn.Tanh(), width=35),
    "norm of maps": lambda: of_maps(conv(), shifted(nn.BatchNorm2d(3)), nn.Tanh()),
    "norm of maps, ReLU": lambda: of_maps(conv(), shifted(nn.BatchNorm2d(3)), nn.ReLU(), conv(3, 4, 2)),
    "norm of maps, LeakyReLU": lambda: of_maps(conv(), shifted(nn.BatchNorm2d(3)), nn.LeakyReLU(0.2)),
    "norm, LeakyReLU that falls": lambda: of_maps(conv(), shifted(nn.BatchNorm2d(3)), nn.LeakyReLU(-0.2)),
    "norm, no scale": lambda: of_maps(conv(), nn.BatchNorm2d(3, affine=False), nn.Tanh()),
    "norm, not adapted": lambda: of_maps(conv(), frozen(shifted(nn.BatchNorm2d(3))), nn.Tanh()),
    "norm of rows": lambda: of_rows(shifted(nn.BatchNorm1d(5, eps=1e-3)), nn.ReLU()),
    "norm first": lambda: (nn.Sequential(shifted(TaskBatchNorm(4)), nn.Tanh(), head(4)), (4,)),
    "norm of maps first": lambda: of_maps(shifted(nn.BatchNorm2d(2)), conv(), nn.Tanh()),
    "norm last": lambda: of_rows(nn.Tanh(), nn.Linear(5, 3), nn.BatchNorm1d(3), nn.Identity(), width=3),
    "norm behind flatten": lambda: (
        nn.Sequential(conv(), nn.Flatten(), shifted(nn.BatchNorm1d(36)), nn.Tanh(), head(36)),
        (2, 6, 5),
    ),
    "max pool": lambda: of_maps(conv(padding=1), nn.MaxPool2d(2), nn.Tanh()),
    "max pool, overlapping": lambda: of_maps(conv(padding=1), nn.MaxPool2d(3, 2, 1), nn.Tanh()),
    "mean pool": lambda: of_maps(conv(padding=1), nn.AvgPool2d(2), nn.Tanh()),
    "mean pool, padding counts": lambda: of_maps(conv(padding=1), nn.AvgPool2d(3, 2, 1), nn.Tanh()),
    "mean pool, padding does not": lambda: of_maps(
        conv(padding=1), nn.AvgPool2d((3, 2), (2, 1), 1, count_include_pad=False), nn.Tanh()
    ),
    "mean of the map": lambda: of_maps(conv(padding=1), nn.AdaptiveAvgPool2d(1), nn.Tanh()),
    "means of parts": lambda: of_maps(conv(padding=1), nn.AdaptiveAvgPool2d((4, None)), nn.Tanh()),
    "soft-argmax": lambda: (
        nn.Sequential(conv(2, 5, padding=1), SpatialSoftArgmax(), nn.Linear(10, 6), nn.Tanh(), head(6)),
        (2, 6, 5),
    ),
    "bias transformation": lambda: of_rows(nn.Tanh(), BiasTransformation(3), width=8),
    "bias transformation first": lambda: (
        nn.Sequential(BiasTransformation(3), nn.Linear(7, 5), nn.Tanh(), head(5)),
        (4,),
    ),
    "nested": lambda: (nn.Sequential(nn.Sequential(nn.Linear(4, 5), nn.Tanh()), nn.Identity(), head(5)), (4,)),
    "RainbowNet": lambda: (RainbowNet(filters=5, layers=3, image_size=9, classes=3), (3, 9, 9)),
    "RainbowNet of the authors": lambda: (RainbowNet(filters=2, classes=3, variant="authors"), (3, 28, 28)),
    "PoseNet": lambda: (PoseNet(filters=2, layers=2, hidden=5, image_size=9), (3, 9, 9)),
    **{name: lambda layer=layer: of_rows(layer, nn.Linear(5, 5), layer) for name, layer in ACTIVATIONS.items()},
    **{f"{name} on maps": lambda layer=layer: of_maps(conv(), layer) for name, layer in ACTIVATIONS.items()},
}


def stack(name):
    """A model in double precision, and the shape of a point."""
    torch.manual_seed(3)
    model, shape = STACKS[name]()
    if name.startswith("bias transformation"):
        for module in model:
            if isinstance(module, BiasTransformation):
                nn.init.normal_(module.vector)
    return model.double(), shape


def meta_batch(shape, *, classes=3, targets=None, tasks=3, support=6, query=4, dtype=torch.float64):
    """x, y and query x of random tasks; targets: the shape of real ones instead of classes."""
    g = torch.Generator().manual_seed(5)
    x = torch.randn(tasks, support, *shape, generator=g, dtype=torch.float64).to(dtype)
    query_x = torch.randn(tasks, query, *shape, generator=g, dtype=torch.float64).to(dtype)
    if targets is None:
        return x, torch.randint(classes, (tasks, support), generator=g), query_x
    return x, torch.randn(tasks, support, *targets, generator=g, dtype=torch.float64).to(dtype), query_x


def cotangent_of(outputs):
    g = torch.Generator().manual_seed(7)
    return torch.randn(outputs.shape, generator=g, dtype=torch.float64).to(outputs.dtype)


def by(name, model, criterion, data, **settings):
    """Outputs, and gradients of <outputs, cotangent> in all trained parameters; by an engine without a trial."""
    x, y, query_x = data
    engine = ENGINES[name](model, criterion, **{**INNER, **settings})
    parameters = dict(model.named_parameters())
    outputs = engine.predict(parameters, (x, y), query_x)
    trained = [p for p in parameters.values() if p.requires_grad]
    return outputs.detach(), torch.autograd.grad(outputs, trained, cotangent_of(outputs))


def joined(tensors):
    return torch.cat([t.detach().flatten() for t in tensors])


def distance(a, b):
    return float((joined(a) - joined(b)).norm() / joined(b).norm())


def plain_outputs(model, criterion, data, moves=None, *, batch_norm="support", inner_clip=None, adapted=None, **_):
    """The outputs by plain gradient descent of a copy a task, with its weights moved."""
    found = []
    for x, y, query_x in zip(*data, strict=True):
        copied = copy.deepcopy(model)
        weights = {n: p for n, p in copied.named_parameters() if p.requires_grad}
        with torch.no_grad():
            for p, move in zip(weights.values(), moves or [], strict=moves is not None):
                p.add_(move)
        weights = [p for n, p in weights.items() if adapted is None or n in adapted]
        for _step in range(INNER["inner_steps"]):
            with batch_statistics():
                gradients = torch.autograd.grad(criterion(copied(x), y), weights)
            with torch.no_grad():
                for p, g in zip(weights, gradients, strict=True):
                    p.sub_(g if inner_clip is None else g.clamp(-inner_clip, inner_clip), alpha=INNER["inner_lr"])
        with torch.no_grad():
            if batch_norm == "support":
                with batch_statistics(first=len(x)):
                    found.append(copied(torch.cat([x, query_x]))[len(x) :])
            else:
                with batch_statistics():
                    found.append(copied(query_x))
    return torch.stack(found)


def slopes(model, criterion, data, gradients, **settings):
    """Along a random direction: by the gradients, and by central differences of plain descent."""
    g = torch.Generator().manual_seed(9)
    trained = [p for p in model.parameters() if p.requires_grad]
    direction = [torch.randn(p.shape, generator=g, dtype=p.dtype) for p in trained]

    def loss(length):
        outputs = plain_outputs(model, criterion, data, [length * d for d in direction], **settings)
        return float((outputs * cotangent_of(outputs)).sum())

    step = 1e-6
    differences = [(loss(h) - loss(-h)) / (2 * h) for h in (step, 2 * step)]
    return float(joined(gradients) @ joined(direction)), (4 * differences[0] - differences[1]) / 3
