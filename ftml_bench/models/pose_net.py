"""The network of the pose stream, and the two layers that it needs."""

from __future__ import annotations

from collections import OrderedDict
from typing import Literal

import torch
from torch import Tensor, nn

from ftml_bench.errors import UsageError, unknown
from ftml_bench.models.norm import TaskBatchNorm

_OUTPUTS = 4  # x, y, sin, cos


class SpatialSoftArgmax(nn.Module):
    """Where each map is large: (N, C, H, W) -> (N, 2C), all columns first, then all rows.

    The mean place under a softmax over the map (Levine et al. 2016; temperature 1). A place is (index - size / 2) /
    size, from -0.5 up to 0.5, as in the authors' code.
    """

    def forward(self, input: Tensor) -> Tensor:
        weights = input.flatten(2).softmax(-1).view_as(input)
        columns = (weights.sum(2) * self._places(input, 3)).sum(2)
        rows = (weights.sum(3) * self._places(input, 2)).sum(2)
        return torch.cat([columns, rows], dim=1)

    @staticmethod
    def _places(input: Tensor, dim: int) -> Tensor:
        size = input.shape[dim]
        return torch.arange(size, dtype=input.dtype, device=input.device) / size - 0.5


class BiasTransformation(nn.Module):
    """Appends a learned vector, the same for every row: (N, F) -> (N, F + size).

    Adapted in the inner loop, it lets one gradient step change the next layer's bias apart from its weights (Finn, Yu,
    et al. 2017, section 4.2).
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        self.vector = nn.Parameter(torch.zeros(size))

    def forward(self, input: Tensor) -> Tensor:
        return torch.cat([input, self.vector.expand(len(input), -1)], dim=1)


class PoseNet(nn.Sequential):
    """The paper's network: 5x5 convolutions of stride 2, norm and ReLU, spatial soft-argmax, two layers, linear.

    Input (N, 3, image_size, image_size) float in [0, 1], output (N, 4): x, y, sin, cos (section 6.3).

    :param layers: number of convolutions; each halves the map (64 pixels: 32 16 8 4), of which 2x2 must be left.
    :param filters: filters of each convolution.
    :param hidden: units of each of the two layers.
    :param image_size: side of the input in pixels.
    :param variant: "paper": batch norm after every layer but the last; or "authors", as the released code has it: a
        bias transformation of 20 numbers behind the soft-argmax, no norm on linear layers, norm offsets without scales,
        linear weights drawn from N(0, 0.01) (its TensorFlow padding puts even maps half a pixel elsewhere).

    >>> [tuple(p.shape) for n, p in PoseNet().named_parameters() if n.startswith("linear")]
    [(200, 32), (200, 200)]
    """

    def __init__(
        self,
        *,
        layers: int = 4,
        filters: int = 16,
        hidden: int = 200,
        image_size: int = 64,
        variant: Literal["paper", "authors"] = "paper",
    ) -> None:
        for name, value in {"layers": layers, "filters": filters, "hidden": hidden, "image_size": image_size}.items():
            if value < 1:
                raise UsageError(f"{name}={value}: expected a number of at least 1")
        if variant not in ("paper", "authors"):
            raise unknown("variant of PoseNet", variant, ["paper", "authors"])
        if image_size <= 2**layers:  # a soft-argmax over one place says nothing
            raise UsageError(
                f"image_size={image_size}: {layers} convolutions leave a single place of it, expected "
                f"{2**layers + 1} or more"
            )
        super().__init__(_parts(layers, filters, hidden, variant == "authors"))
        if variant == "authors":
            for module in self:
                if isinstance(module, TaskBatchNorm):
                    module.weight.requires_grad_(False)
                elif isinstance(module, nn.Conv2d):
                    nn.init.xavier_uniform_(module.weight)
                elif isinstance(module, nn.Linear):
                    nn.init.normal_(module.weight, std=0.01)
            for name, parameter in self.named_parameters():
                if name.endswith("bias") and "norm" not in name:
                    nn.init.zeros_(parameter)


def _parts(layers: int, filters: int, hidden: int, authors: bool) -> OrderedDict[str, nn.Module]:
    parts: OrderedDict[str, nn.Module] = OrderedDict()
    eps = 1e-3 if authors else 1e-5
    for i in range(1, layers + 1):
        # no bias in ours: the norm's offset follows at once
        parts[f"conv{i}"] = nn.Conv2d(3 if i == 1 else filters, filters, 5, stride=2, padding=2, bias=authors)
        parts[f"norm{i}"] = TaskBatchNorm(filters, eps=eps)
        parts[f"relu{i}"] = nn.ReLU()
    parts["argmax"] = SpatialSoftArgmax()
    width = 2 * filters
    if authors:
        parts["transformation"] = BiasTransformation(20)
        width += 20
    for i in (1, 2):
        parts[f"linear{i}"] = nn.Linear(width, hidden, bias=authors)
        if not authors:
            parts[f"linear_norm{i}"] = TaskBatchNorm(hidden)
        parts[f"linear_relu{i}"] = nn.ReLU()
        width = hidden
    parts["head"] = nn.Linear(hidden, _OUTPUTS)
    return parts
