"""The convolutional networks of Rainbow MNIST."""

from __future__ import annotations

from collections import OrderedDict
from typing import Literal

from torch import nn

from ftml_bench.errors import UsageError, unknown
from ftml_bench.models.norm import TaskBatchNorm
from ftml_bench.models.stack import Stack


class RainbowNet(Stack):
    """The paper's network: 3x3 convolutions with batch norm and ReLU, flatten, linear (section 6.1).

    Input (N, 3, image_size, image_size) float in [0, 1], output (N, classes). The paper names no strides; ours halve
    the map until it is 2x2 and keep it there (28 pixels: 2 2 2 2 1), so that no norm layer ever sees a single value.

    :param layers: number of convolutions of the paper's variant.
    :param filters: filters of each convolution.
    :param image_size: side of the input in pixels.
    :param variant: "paper", or "authors": six convolutions with strides 2 1 2 2 1 2, no ReLU after the second and the
        fifth, the mean over the map instead of a flatten, a head drawn from N(0, 1), norm offsets without scales (as
        the released code has it; its TensorFlow padding puts even maps half a pixel elsewhere).

    >>> [tuple(p.shape) for n, p in RainbowNet().named_parameters() if n.startswith("head")]
    [(10, 128), (10,)]
    """

    def __init__(
        self,
        *,
        layers: int = 5,
        filters: int = 32,
        image_size: int = 28,
        classes: int = 10,
        channels: int = 3,
        variant: Literal["paper", "authors"] = "paper",
    ) -> None:
        sizes = {
            "layers": layers,
            "filters": filters,
            "image_size": image_size,
            "classes": classes,
            "channels": channels,
        }
        for name, value in sizes.items():
            if not isinstance(value, int) or value < 1:
                raise UsageError(f"{name}={value!r}: expected a whole number of at least 1")
        if variant == "paper":
            super().__init__(_paper(layers, filters, image_size, classes, channels))
        elif variant == "authors":
            super().__init__(_authors(filters, classes, channels))
            head = self[-1]
            nn.init.normal_(head.weight)
            nn.init.zeros_(head.bias)
            for name, parameter in self.named_parameters():
                if name.startswith("norm") and name.endswith("weight"):
                    parameter.requires_grad_(False)
                elif name.startswith("conv"):
                    (nn.init.xavier_uniform_ if name.endswith("weight") else nn.init.zeros_)(parameter)
        else:
            raise unknown("variant of RainbowNet", variant, ["paper", "authors"])


def _paper(layers: int, filters: int, image_size: int, classes: int, channels: int) -> OrderedDict[str, nn.Module]:
    parts: OrderedDict[str, nn.Module] = OrderedDict()
    size = image_size
    for i in range(1, layers + 1):
        stride = 2 if size > 2 else 1
        size = -(-size // stride)
        # no bias: the norm's offset follows at once
        parts[f"conv{i}"] = nn.Conv2d(channels if i == 1 else filters, filters, 3, stride, padding=1, bias=False)
        parts[f"norm{i}"] = TaskBatchNorm(filters)
        parts[f"relu{i}"] = nn.ReLU()
    parts["flatten"] = nn.Flatten()
    parts["head"] = nn.Linear(filters * size * size, classes)
    return parts


def _authors(filters: int, classes: int, channels: int) -> OrderedDict[str, nn.Module]:
    parts: OrderedDict[str, nn.Module] = OrderedDict()
    for name, stride in {"1": 2, "1b": 1, "2": 2, "3": 2, "3b": 1, "4": 2}.items():
        parts[f"conv{name}"] = nn.Conv2d(channels if name == "1" else filters, filters, 3, stride, padding=1)
        parts[f"norm{name}"] = TaskBatchNorm(filters, eps=1e-3)
        if not name.endswith("b"):
            parts[f"relu{name}"] = nn.ReLU()
    parts["mean"] = nn.AdaptiveAvgPool2d(1)
    parts["flatten"] = nn.Flatten()
    parts["head"] = nn.Linear(filters, classes)
    return parts
