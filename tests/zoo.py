"""Other people's kinds of modules, small, and what each engine makes of them; `python tests/zoo.py` prints the table.

The right values come from a deep copy of the model for each task, plain gradient descent, and central differences of
that in double precision: no engine, no `functional_call`, no second derivative of autograd.
"""

from __future__ import annotations

import random
import sys
import warnings
from collections.abc import Callable
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from unittest import mock

import numpy as np
import torch
import torch.nn.functional as F
from avalanche.models import (
    IncrementalClassifier,
    LeNet5,
    MTSimpleMLP,
    SimpleCNN,
    SimpleMLP,
    SlimResNet18,
    slim_resnet18,
)
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune
from torch.utils.checkpoint import checkpoint
from torchvision.models import DenseNet, ShuffleNetV2, VisionTransformer
from torchvision.ops import DropBlock2d, StochasticDepth

from ftml_bench.adaptation import ENGINES, make_engine
from ftml_bench.errors import UsageError

SUPPORT, QUERY = 5, 3
COLUMNS = ("native", "batched", "vmap", "loop", "higher", "auto")
INNER = {"inner_lr": 0.1, "inner_steps": 2, "batch_norm": "transductive"}


@dataclass(frozen=True)
class Kind:
    """A model (in double precision), the shape of a point, and the loss."""

    build: Callable[[], nn.Module]
    shape: tuple[int, ...] = (3,)
    classes: int = 0  # of integer inputs; 0: real ones
    criterion: Callable = F.cross_entropy
    labels: bool = False  # whether the model takes task labels
    tasks: int = 2  # 1 where layers draw: in which order for several tasks is up to an engine


KINDS: dict[str, Kind] = {}


def kind(name, **settings):
    """Decorates a function that builds a model."""

    def add(build):
        KINDS[name] = Kind(build, **settings)
        return build

    return add


def net(*layers):
    return nn.Sequential(*layers)


class Around(nn.Module):
    """A module whose forward is a function of itself and x."""

    def __init__(self, forward, **parts):
        super().__init__()
        for name, part in parts.items():
            setattr(self, name, part)
        self.function = forward

    def forward(self, x):
        return self.function(self, x)


def lin(i=3, o=2):
    return nn.Linear(i, o)


# -- what stands twice, is shared, frozen or not used


@kind("an activation that stands twice")
def _():
    act = nn.Tanh()
    return net(lin(3, 5), act, lin(5, 5), act, lin(5))


@kind("a linear layer that stands twice")
def _():
    layer = lin(3, 3)
    return net(layer, nn.Tanh(), layer, nn.Tanh(), lin())


@kind("a pool that stands twice", shape=(1, 8, 8))
def _():
    pool = nn.AvgPool2d(2)
    return net(nn.Conv2d(1, 2, 3, padding=1), pool, nn.Tanh(), pool, nn.Flatten(), lin(8))


@kind("tied weights")
def _():
    model = net(lin(3, 3), nn.Tanh(), lin(3, 3), nn.Tanh(), lin())
    model[2].weight = model[0].weight
    return model


@kind("a parameter that is never used")
def _():
    return Around(lambda self, x: self.a(x), a=lin(), b=lin())


@kind("a frozen layer")
def _():
    model = net(lin(3, 4), nn.Tanh(), lin(4))
    model[0].requires_grad_(False)
    return model


@kind("ModuleList, residual")
def _():
    def forward(self, x):
        for block in self.blocks:
            x = x + torch.tanh(block(x))
        return self.head(x)

    return Around(forward, blocks=nn.ModuleList([lin(3, 3), lin(3, 3)]), head=lin())


# -- layers and shapes


@kind("PReLU, Bilinear")
def _():
    return Around(lambda self, x: self.b(self.p(self.a(x)), x), a=lin(3, 4), p=nn.PReLU(), b=nn.Bilinear(4, 3, 2))


@kind("LayerNorm")
def _():
    return net(lin(3, 4), nn.LayerNorm(4), nn.Tanh(), lin(4))


@kind("RMSNorm")
def _():
    return net(lin(3, 4), nn.RMSNorm(4), nn.Tanh(), lin(4))


@kind("GroupNorm behind Linear")
def _():
    return net(lin(3, 8), nn.GroupNorm(2, 8), nn.Tanh(), lin(8))


@kind("InstanceNorm", shape=(2, 4, 4))
def _():
    return net(nn.Conv2d(2, 3, 3), nn.InstanceNorm2d(3, affine=True), nn.SiLU(), nn.Flatten(), lin(12))


@kind("LocalResponseNorm", shape=(2, 4, 4))
def _():
    return net(nn.Conv2d(2, 3, 3), nn.LocalResponseNorm(2), nn.Flatten(), lin(12))


@kind("BatchNorm2d", shape=(2, 4, 4))
def _():
    return net(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.SiLU(), nn.Flatten(), lin(12))


@kind("BatchNorm1d on (N, C, L)", shape=(5, 3))
def _():
    return net(nn.BatchNorm1d(5), nn.Flatten(), lin(15))


@kind("Linear on (N, L, F)", shape=(5, 3))
def _():
    return net(lin(3, 4), nn.Tanh(), nn.Flatten(), lin(20))


@kind("Dropout, Flatten on (N, L, F)", shape=(5, 3), tasks=1)
def _():
    return net(nn.Dropout(0.3), nn.Flatten(), lin(15))


@kind("Linear behind Conv2d", shape=(1, 6, 6))
def _():
    return net(nn.Conv2d(1, 3, 3), nn.Tanh(), lin(4, 5), nn.Flatten(), lin(60))


@kind("Conv1d", shape=(2, 6))
def _():
    return net(nn.Conv1d(2, 3, 3), nn.Tanh(), nn.AdaptiveAvgPool1d(2), nn.Flatten(), lin(6))


@kind("Conv2d, padding='same'", shape=(2, 4, 4))
def _():
    return net(nn.Conv2d(2, 3, 3, padding="same"), nn.Tanh(), nn.Flatten(), lin(48))


@kind("Conv2d, circular padding", shape=(2, 4, 4))
def _():
    return net(nn.Conv2d(2, 3, 3, padding=1, padding_mode="circular"), nn.Tanh(), nn.Flatten(), lin(48))


@kind("Conv2d, groups and dilation", shape=(4, 6, 6))
def _():
    return net(nn.Conv2d(4, 4, 3, groups=2, dilation=2), nn.Tanh(), nn.Flatten(), lin(16))


@kind("ConvTranspose2d, PixelShuffle", shape=(2, 3, 3))
def _():
    return net(nn.ConvTranspose2d(2, 4, 2), nn.Tanh(), nn.PixelShuffle(2), nn.Flatten(), lin(64))


@kind("Conv3d", shape=(1, 3, 3, 3))
def _():
    return net(nn.Conv3d(1, 2, 2), nn.Tanh(), nn.Flatten(), lin(16))


@kind("Embedding", shape=(4,), classes=6)
def _():
    return net(nn.Embedding(6, 3), nn.Flatten(), nn.Tanh(), lin(12))


@kind("EmbeddingBag", shape=(4,), classes=6)
def _():
    return net(nn.EmbeddingBag(6, 3), nn.Tanh(), lin())


@kind("Embedding(max_norm)", shape=(4,), classes=6)
def _():
    return net(nn.Embedding(6, 3, max_norm=0.5), nn.Flatten(), lin(12))


# -- recurrent, attention


@kind("LSTM", shape=(5, 3))
def _():
    return Around(lambda self, x: self.o(self.r(x)[0][:, -1]), r=nn.LSTM(3, 4, batch_first=True), o=lin(4))


@kind("GRU, two layers, both ways", shape=(5, 3))
def _():
    cell = nn.GRU(3, 4, 2, batch_first=True, bidirectional=True)
    return Around(lambda self, x: self.o(self.r(x)[0][:, -1]), r=cell, o=lin(8))


@kind("RNN", shape=(5, 3))
def _():
    return Around(lambda self, x: self.o(self.r(x)[0][:, -1]), r=nn.RNN(3, 4, batch_first=True), o=lin(4))


@kind("LSTMCell", shape=(3, 3))
def _():
    def forward(self, x):
        state = None
        for t in range(x.shape[1]):
            state = self.c(x[:, t], state)
        return self.o(state[0])

    return Around(forward, c=nn.LSTMCell(3, 4), o=lin(4))


@kind("a state that begins as torch.zeros", shape=(3, 3))
def _():
    def forward(self, x):
        state = torch.zeros(len(x), 4)
        for t in range(x.shape[1]):
            state = torch.tanh(self.i(x[:, t]) + self.h(state))
        return self.o(state)

    return Around(forward, i=lin(3, 4), h=lin(4, 4), o=lin(4))


@kind("MultiheadAttention", shape=(5, 4))
def _():
    attention = nn.MultiheadAttention(4, 2, batch_first=True)
    return Around(lambda self, x: self.o(self.a(x, x, x)[0].mean(1)), a=attention, o=lin(4))


@kind("TransformerEncoderLayer", shape=(5, 4))
def _():
    layer = nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0, batch_first=True, activation="gelu")
    return Around(lambda self, x: self.o(self.t(x).mean(1)), t=layer, o=lin(4))


# -- parametrised


@kind("weight_norm, parametrisation")
def _():
    return net(parametrizations.weight_norm(lin(3, 5)), nn.Tanh(), lin(5))


@kind("weight_norm, the older hook")
def _():
    return net(nn.utils.weight_norm(lin(3, 5)), nn.Tanh(), lin(5))


@kind("spectral_norm in training")
def _():
    return net(parametrizations.spectral_norm(lin(3, 5)), nn.Tanh(), lin(5))


@kind("spectral_norm in evaluation")
def _():
    return net(parametrizations.spectral_norm(lin(3, 5)), nn.Tanh(), lin(5)).eval()


@kind("spectral_norm, the older hook")
def _():
    return net(nn.utils.spectral_norm(lin(3, 5)), nn.Tanh(), lin(5))


@kind("orthogonal")
def _():
    return net(parametrizations.orthogonal(lin(3, 3)), nn.Tanh(), lin())


class Symmetric(nn.Module):
    def forward(self, x):
        return x.triu() + x.triu(1).T


@kind("a parametrisation of one's own")
def _():
    model = net(lin(3, 3), nn.Tanh(), lin())
    parametrize.register_parametrization(model[0], "weight", Symmetric())
    return model


@kind("pruned weights")
def _():
    model = net(lin(3, 5), nn.Tanh(), lin(5))
    prune.random_unstructured(model[0], "weight", amount=0.4)
    return model


# -- hooks, checkpoints, functions of one's own


@kind("a forward hook")
def _():
    model = net(lin(3, 5), nn.Tanh(), lin(5))
    model[0].register_forward_hook(lambda module, inputs, output: output * 3)
    return model


@kind("a forward hook of the model itself")
def _():
    model = net(lin(3, 5), nn.Tanh(), lin(5))
    model.register_forward_hook(lambda module, inputs, output: output * 3)
    return model


@kind("a forward pre-hook")
def _():
    model = net(lin(3, 5), nn.Tanh(), lin(5))
    model[0].register_forward_pre_hook(lambda module, inputs: (inputs[0] * 2,))
    return model


@kind("a backward hook that scales")
def _():
    model = net(lin(3, 5), nn.Tanh(), lin(5))
    model[1].register_full_backward_hook(lambda module, of_input, of_output: (of_input[0] * 0.5,))
    return model


@kind("a hook on a parameter")
def _():
    model = net(lin(3, 5), nn.Tanh(), lin(5))
    model[0].weight.register_hook(lambda gradient: gradient * 0)
    return model


@kind("a forward of the instance")
def _():
    model = net(lin(3, 5), nn.Tanh(), lin(5))
    plain = model[1].forward
    model[1].forward = lambda x: plain(x) * 2
    return model


@kind("checkpoint")
def _():
    a = net(lin(3, 4), nn.Tanh(), lin(4, 4), nn.Tanh())
    return Around(lambda self, x: self.b(checkpoint(self.a, x, use_reentrant=False)), a=a, b=lin(4))


@kind("checkpoint, reentrant")
def _():
    a = net(lin(4, 4), nn.Tanh())
    return Around(lambda self, x: self.b(checkpoint(self.a, self.i(x), use_reentrant=True)), i=lin(3, 4), a=a, b=lin(4))


class Exp(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        y = x.exp()
        ctx.save_for_backward(y)
        return y

    @staticmethod
    def backward(ctx, g):
        return g * ctx.saved_tensors[0]


class ExpWithConstant(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        y = x.exp()
        ctx.y = y.detach()
        return y.clone()

    @staticmethod
    def backward(ctx, g):
        return g * ctx.y


class ExpOnce(Exp):
    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, g):
        return g * ctx.saved_tensors[0]


class Straight(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.round()

    @staticmethod
    def backward(ctx, g):
        return g


for _name, _function in [
    ("an autograd.Function", Exp),
    ("an autograd.Function that saves an intermediate value", ExpWithConstant),
    ("an autograd.Function that is differentiable once", ExpOnce),
    ("a straight-through estimator", Straight),
]:
    KINDS[_name] = Kind(lambda f=_function: Around(lambda self, x: self.o(f.apply(self.l(x))), l=lin(3, 4), o=lin(4)))


@kind("float() asked on the way")
def _():
    return Around(lambda self, x: self.l(x) * (2 if float(x.detach().sum()) > -1e9 else 1), l=lin())


@kind("features kept in an attribute")
def _():
    def forward(self, x):
        self.features = torch.tanh(self.a(x))
        return self.b(self.features)

    return Around(forward, a=lin(3, 4), b=lin(4))


@kind("a list of outputs", criterion=lambda outputs, y: F.cross_entropy(outputs[0], y))
def _():
    return Around(lambda self, x: [self.l(x)], l=lin())


# -- what changes or draws when it is called


@kind("inputs changed in place")
def _():
    return Around(lambda self, x: self.o(torch.tanh(self.l(x.mul_(0.5)))), l=lin(3, 4), o=lin(4))


@kind("LeakyReLU(inplace) first")
def _():
    return net(nn.LeakyReLU(0.3, inplace=True), lin(3, 4), nn.Tanh(), lin(4))


@kind("a buffer that counts")
def _():
    def forward(self, x):
        self.calls += 1
        return self.l(x)

    model = Around(forward, l=lin())
    model.register_buffer("calls", torch.zeros(()))
    return model


@kind("a buffer that is replaced")
def _():
    def forward(self, x):
        self.mean = 0.9 * self.mean + 0.1 * x.detach().mean(0)
        return self.l(x - self.mean)

    model = Around(forward, l=lin())
    model.register_buffer("mean", torch.zeros(3))
    return model


@kind("a branch by random.random()", tasks=1)
def _():
    return Around(lambda self, x: self.l(x).sin() * (1 if random.random() < 0.5 else 0.3), l=lin())


@kind("noise from NumPy", tasks=1)
def _():
    return Around(lambda self, x: self.l(x + torch.as_tensor(np.random.randn(*x.shape))), l=lin())


@kind("Dropout", tasks=1)
def _():
    return net(lin(3, 6), nn.Tanh(), nn.Dropout(0.3), lin(6))


@kind("DropBlock, StochasticDepth", shape=(2, 4, 4), tasks=1)
def _():
    return net(nn.Conv2d(2, 3, 3), DropBlock2d(0.2, 1), StochasticDepth(0.3, "row"), nn.Flatten(), lin(12))


@kind("a generator of its own", tasks=1)
def _():
    def forward(self, x):
        return self.o(torch.tanh(self.l(x)) * torch.bernoulli(torch.full((4,), 0.5), generator=self.generator))

    return Around(forward, l=lin(3, 4), o=lin(4), generator=torch.Generator().manual_seed(5))


# -- numbers and losses


@kind("complex parameters", criterion=lambda outputs, y: F.cross_entropy(outputs.abs(), y))
def _():
    return Around(lambda self, x: self.b(torch.tanh(self.a(x.cfloat().to(self.a.weight.dtype)))),
                  a=nn.Linear(3, 4, dtype=torch.cfloat), b=nn.Linear(4, 2, dtype=torch.cfloat))  # fmt: skip


@kind("a class a token", shape=(5, 3), criterion=lambda o, y: F.cross_entropy(o, y[:, None].expand(-1, 5)))
def _():
    return Around(lambda self, x: self.l(x).transpose(1, 2), l=lin())


@kind("MSELoss, targets that broadcast", criterion=nn.MSELoss())
def _():
    return net(lin(3, 3), nn.Tanh(), lin(3, 1))


@kind("MultiMarginLoss", criterion=nn.MultiMarginLoss())
def _():
    return lin()


@kind("a loss a point (reduction='none')", criterion=nn.CrossEntropyLoss(reduction="none"))
def _():
    return lin()


# -- Avalanche's and torchvision's


@kind("Avalanche's SimpleMLP", shape=(4,), tasks=1)
def _():
    return SimpleMLP(num_classes=3, input_size=4, hidden_size=5)


@kind("Avalanche's SimpleCNN", shape=(3, 18, 18))
def _():
    return SimpleCNN(num_classes=3).eval()


@kind("Avalanche's LeNet5", shape=(1, 32, 32))
def _():
    return LeNet5(3, 1)


@kind("Avalanche's SlimResNet18", shape=(3, 32, 32))
def _():
    return SlimResNet18(3, nf=1)


@kind("Avalanche's IncrementalClassifier, grown")
def _():
    model = net(lin(3, 4), nn.Tanh(), IncrementalClassifier(4, initial_out_features=2))
    model[2].adaptation(type("Experience", (), {"classes_in_this_experience": [0, 1, 2], "task_labels": [0]})())
    return model


@kind("Avalanche's MTSimpleMLP", shape=(4,), labels=True)
def _():
    return MTSimpleMLP(input_size=4, hidden_size=5)


@kind("torchvision's ShuffleNetV2", shape=(3, 32, 32))
def _():
    return ShuffleNetV2([1, 1, 1], [4, 4, 8, 8, 8], num_classes=3)


@kind("torchvision's DenseNet, memory_efficient", shape=(3, 32, 32))
def _():
    return DenseNet(2, (1, 1), 4, num_classes=3, memory_efficient=True)


@kind("torchvision's VisionTransformer", shape=(3, 8, 8))
def _():
    return VisionTransformer(8, 4, 1, 2, 4, 8, num_classes=3)


# -- what is right, and what engines make of it


@contextmanager
def smooth():
    """Inside, softplus stands for ReLU and average for maximum: at kinks differences prove nothing."""

    def average(input, kernel_size, stride=None, padding=0, *args, **kwargs):
        return F.avg_pool2d(input, kernel_size, stride, padding)

    def softplus(x, inplace=False):
        return F.softplus(x)

    with ExitStack() as stack:
        for module, name, instead in [
            (F, "relu", softplus),
            (torch, "relu", softplus),
            (slim_resnet18, "relu", softplus),
            (F, "max_pool2d", average),
            (F, "adaptive_max_pool2d", lambda x, size, return_indices=False: F.adaptive_avg_pool2d(x, size)),
        ]:
            stack.enter_context(mock.patch.object(module, name, instead))
        yield


class Case:
    """A kind with data: what is right, and what an engine makes of it."""

    def __init__(self, kind: Kind) -> None:
        self.kind = kind
        self.reasons: dict[str, str] = {}
        g = torch.Generator().manual_seed(1)

        def points(n):
            if kind.classes:
                return torch.randint(kind.classes, (kind.tasks, n, *kind.shape), generator=g)
            return torch.randn(kind.tasks, n, *kind.shape, generator=g, dtype=torch.float64)

        self.x, self.query = points(SUPPORT), points(QUERY)
        self.y = torch.randint(0, 2, (kind.tasks, SUPPORT), generator=g)

    def model(self):
        state = torch.get_rng_state()
        torch.manual_seed(0)
        try:
            return self.kind.build()._apply(
                lambda t: t.double() if t.is_floating_point() else t.to(torch.cdouble) if t.is_complex() else t
            )
        finally:
            torch.set_rng_state(state)

    def call(self, model, x):
        return model(x, torch.zeros(len(x), dtype=torch.long)) if self.kind.labels else model(x)

    def right(self):
        """Outputs, and how the sum of their products with a cotangent changes along a direction."""
        model = self.model()
        g = torch.Generator().manual_seed(2)
        trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
        self.direction = {n: torch.randn(p.shape, generator=g, dtype=p.dtype) for n, p in trained.items()}
        outputs = self.plain(0.0)
        self.cotangent = torch.randn(outputs.shape, generator=g, dtype=outputs.dtype)
        h = 2e-6
        small, large = ((self.loss(self.plain(k)) - self.loss(self.plain(-k))) / (2 * k) for k in (h, 2 * h))
        return outputs, float((4 * small - large) / 3)

    def loss(self, outputs):
        return inner(outputs.sin(), self.cotangent)

    def plain(self, length):
        outputs = []
        with seeded():
            for task in range(self.kind.tasks):
                model = self.model()
                parameters = dict(model.named_parameters())
                with torch.no_grad():
                    for n, d in self.direction.items():
                        parameters[n].add_(d, alpha=length)
                adapted = [parameters[n] for n in self.direction]
                for _ in range(INNER["inner_steps"]):
                    loss = self.kind.criterion(self.call(model, self.x[task].clone()), self.y[task])
                    found = torch.autograd.grad(loss, adapted, allow_unused=True)
                    with torch.no_grad():
                        for p, gradient in zip(adapted, found, strict=True):
                            if gradient is not None:
                                p.sub_(gradient, alpha=INNER["inner_lr"])
                outputs.append(self.call(model, self.query[task].clone()).detach())
        return torch.stack(outputs)

    def by(self, name):
        """Outputs, slope and name of an engine.

        :raises UsageError: if it takes no such model.
        """
        model = self.model()
        engine = make_engine(name, model, self.kind.criterion, **INNER)
        x, query = self.x.clone(), self.query.clone()
        if self.kind.labels:
            x, query = ((part, torch.zeros(part.shape[:2], dtype=torch.long)) for part in (x, query))
        parameters = dict(model.named_parameters())
        with seeded():
            outputs = engine.predict(parameters, (x, self.y), query)
        trained = [p for p in parameters.values() if p.requires_grad]
        self.right()
        found = torch.autograd.grad(self.loss(outputs), trained, allow_unused=True)
        pairs = zip(found, self.direction.values(), strict=True)
        return outputs.detach(), sum(float(inner(g, d)) for g, d in pairs if g is not None), engine.chosen["engine"]

    def word(self, name):
        """What an engine makes of it: "exact", the name of the one that takes it instead, "refused"; else a fault."""
        try:
            outputs, slope, taken = self.by(name)
        except UsageError as error:
            self.reasons[name] = str(error)
            return "refused" if "\n" not in str(error) else f"refused in several lines: {error}"
        right, right_slope = self.right()
        off = float((outputs - right).abs().norm() / right.abs().norm())
        if off > 1e-9 or abs(slope - right_slope) > 1e-6 * max(abs(right_slope), 1e-2):
            return f"wrong: outputs off by {off:.1e}, slope {slope}, right is {right_slope}"
        return "exact" if taken == name else taken

    def words(self):
        """The words of all engines, by name; what another engine takes is not refused by all."""
        default = torch.get_default_dtype()
        torch.set_default_dtype(torch.float64)  # for what models make themselves
        try:
            with smooth(), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                found = {name: self.word(name) for name in (*ENGINES, "auto")}
        finally:
            torch.set_default_dtype(default)
        other = found["auto"] != "refused"
        return {name: "other" if word == "refused" and other else word for name, word in found.items()}


def inner(a, b):
    """The sum of products, of real and imaginary parts."""
    return (torch.view_as_real(a) * torch.view_as_real(b)).sum() if a.is_complex() else (a * b).sum()


@contextmanager
def seeded():
    """Inside, layers draw from the same states."""
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()
    torch.manual_seed(11)
    random.seed(11)
    np.random.seed(11)
    try:
        yield
    finally:
        torch.set_rng_state(states[0])
        random.setstate(states[1])
        np.random.set_state(states[2])


def table():
    """The table of docs/engines.md, a line a kind."""
    yield "| kind of module | " + " | ".join(f"`{engine}`" for engine in COLUMNS) + " |"
    yield "|---|" + "---|" * len(COLUMNS)
    for name, kind in KINDS.items():
        case = Case(kind)
        yield line(name, case.words())
        print(*case.reasons.items(), sep="\n", file=sys.stderr)


def line(name, words):
    """A line of the table."""
    return "| " + " | ".join([name, *(words[engine] for engine in COLUMNS)]) + " |"


if __name__ == "__main__":
    torch.set_num_threads(1)
    for text in table():
        print(text, flush=True)
