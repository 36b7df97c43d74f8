"""Kinds that hook, draw, change themselves or lose in their own way; and those of Avalanche and torchvision."""

from __future__ import annotations

import random

import numpy as np
import torch
import torch.nn.functional as F
from avalanche.models import IncrementalClassifier, LeNet5, MTSimpleMLP, SimpleCNN, SimpleMLP, SlimResNet18
from torch import nn
from torch.utils.checkpoint import checkpoint
from torchvision.models import DenseNet, ShuffleNetV2, VisionTransformer
from torchvision.ops import DropBlock2d, StochasticDepth

from tests.adaptation.zoo.kinds import KINDS, Around, Kind, kind, lin, net

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
