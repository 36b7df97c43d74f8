"""A stack of layers as the list of operations that the compiled part goes through."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from torch import nn

from ftml_bench.models.norm import TaskBatchNorm
from ftml_bench.models.pose_net import BiasTransformation, SpatialSoftArgmax

CONVOLUTION, NORM, ACTIVATION, MAX_POOL, MEAN_POOL, FLATTEN, ARGMAX, APPEND = range(8)
NOTHING, RELU, LEAKY = range(3)  # behind a norm
OP_NUMBERS = 16
Layers = list[tuple[str, nn.Module]]
Shape = tuple[int, ...]


class Program:
    """Operations on points of one shape.

    :param layers: names and modules, of the kinds that `why_not_native` takes.
    :param shape: of a point: (features,) or (channels, height, width).
    :param adapted: names of the parameters that inner steps change.
    :param wanted: names of further ones that a derivative is wanted of.
    :raises ValueError: if the outputs are maps, a window is larger than its map, or a layer takes other channels.
    """

    def __init__(self, layers: Layers, shape: Shape, adapted: list[str], wanted: set[str]) -> None:
        self.names: list[str] = []
        self.norms: list[tuple[str, int, int]] = []  # names, channels and places of a map
        self._parameters: list[list[int]] = []
        self._rows: list[list[int]] = []
        self._reals: list[tuple[float, float]] = []
        self._adapted, self._wanted = adapted, wanted
        self._shape = shape
        left = list(layers)
        while left:
            name, layer = left.pop(0)
            behind = left[0][1] if left else None
            if isinstance(layer, TaskBatchNorm) and isinstance(behind, (nn.ReLU, nn.LeakyReLU)) and _slope(behind) >= 0:
                left.pop(0)
                kind, slope = (RELU, 0.0) if isinstance(behind, nn.ReLU) else (LEAKY, _slope(behind))
                self._norm(name, layer, kind, slope)
            else:
                _FORMS[type(layer)](self, name, layer)
        if len(self._shape) != 1:
            raise ValueError("gives no maps")
        self.outputs = self._shape[0]
        self.input = np.array(_sides(shape), dtype=np.int64)
        self.ops = np.array(self._rows, dtype=np.int64)
        self.reals = np.array(self._reals, dtype=np.float64)
        self.shapes = np.array(self._parameters, dtype=np.int64)

    def _add(
        self, kind: int, shape: Shape, numbers: Any = (), weight: int = -1, bias: int = -1, a: float = 0, b: float = 0
    ) -> None:
        if min(shape) < 1:
            raise ValueError(f"takes no windows larger than their map {self._shape[1:]}")
        row = [kind, *_sides(shape), weight, bias, *map(int, numbers)]
        self._rows.append(row + [0] * (OP_NUMBERS - len(row)))
        self._reals.append((a, b))
        self._shape = shape

    def _takes(self, channels: int, name: str) -> None:
        """See that a layer is given the channels (or features) that its weights are for."""
        if self._shape[0] != channels:
            raise ValueError(f"gives {self._shape[0]} channels to {name or 'the model itself'}, which takes {channels}")

    def _parameter(self, layer_name: str, layer: nn.Module, local: str) -> int:
        """The place of a layer's parameter, -1 if it has none of this name."""
        p = getattr(layer, local)
        if p is None:
            return -1
        name = f"{layer_name}.{local}" if layer_name else local
        outputs, *inputs = p.shape
        size = (inputs[0], p[0, 0].numel()) if inputs else (0, 1)
        self._parameters.append(
            [outputs, *size, name in self._adapted, name in self._wanted or name in self._adapted, 0]
        )
        self.names.append(name)
        return len(self.names) - 1

    def _convolution(self, name: str, layer: nn.Conv2d) -> None:
        self._takes(layer.in_channels, name)
        numbers = [*layer.kernel_size, *layer.stride, *layer.padding, *layer.dilation]
        reach = [(k - 1) * d + 1 for k, d in zip(layer.kernel_size, layer.dilation, strict=True)]
        sides = _slid(self._shape[1:], reach, layer.stride, layer.padding)
        parts = (self._parameter(name, layer, "weight"), self._parameter(name, layer, "bias"))
        self._add(CONVOLUTION, (layer.out_channels, *sides), numbers, *parts)

    def _linear(self, name: str, layer: nn.Linear) -> None:
        self._takes(layer.in_features, name)
        parts = (self._parameter(name, layer, "weight"), self._parameter(name, layer, "bias"))
        self._add(CONVOLUTION, (layer.out_features,), (1, 1, 1, 1, 0, 0, 1, 1), *parts)

    def _norm(self, name: str, layer: TaskBatchNorm, behind: int = NOTHING, slope: float = 0.0) -> None:
        self._takes(layer.num_features, name)
        parts = (self._parameter(name, layer, "weight"), self._parameter(name, layer, "bias"))
        self.norms.append((name, self._shape[0], math.prod(self._shape[1:])))
        self._add(NORM, self._shape, (behind,), *parts, a=layer.eps, b=slope)

    def _activation(self, name: str, layer: nn.Module) -> None:
        number, a, b = _function(layer)
        self._add(ACTIVATION, self._shape, (number,), a=a, b=b)

    def _pool(self, name: str, layer: nn.MaxPool2d | nn.AvgPool2d) -> None:
        kernel, padding = _pair(layer.kernel_size), _pair(layer.padding)
        stride = _pair(layer.stride)
        shape = (self._shape[0], *_slid(self._shape[1:], kernel, stride, padding))
        counts = isinstance(layer, nn.AvgPool2d) and layer.count_include_pad
        kind = MEAN_POOL if isinstance(layer, nn.AvgPool2d) else MAX_POOL
        self._add(kind, shape, [*kernel, *stride, *padding, counts])

    def _adaptive_pool(self, name: str, layer: nn.AdaptiveAvgPool2d) -> None:
        size = _pair(layer.output_size)
        sides = [own if asked is None else asked for asked, own in zip(size, self._shape[1:], strict=True)]
        self._add(MEAN_POOL, (self._shape[0], *sides))

    def _flatten(self, name: str, layer: nn.Flatten) -> None:
        if len(self._shape) == 3:
            channels, height, width = self._shape
            self._add(FLATTEN, (channels * height * width,))

    def _argmax(self, name: str, layer: SpatialSoftArgmax) -> None:
        self._add(ARGMAX, (2 * self._shape[0],))

    def _append(self, name: str, layer: BiasTransformation) -> None:
        self._add(APPEND, (self._shape[0] + len(layer.vector),), weight=self._parameter(name, layer, "vector"))

    def _identity(self, name: str, layer: nn.Identity) -> None:
        pass


def why_not_native(layers: Layers) -> str:
    """The reason why there is no program of these layers, of which each is `batched`'s; empty if there is one."""
    for name, layer in layers:
        of = f"{type(layer).__name__} ({name or 'the model itself'})"
        if type(layer) not in _FORMS:
            return f"has no form of {of}"
        if isinstance(layer, nn.Conv2d) and layer.groups != 1:
            return f"takes no groups of channels ({name})"
        if isinstance(layer, (nn.MaxPool2d, nn.AvgPool2d)) and layer.ceil_mode:
            return f"takes pools of whole windows only ({name})"
        if isinstance(layer, nn.MaxPool2d) and (_pair(layer.dilation) != (1, 1) or layer.return_indices):
            return f"takes plain pools only ({name})"
        if isinstance(layer, nn.AvgPool2d) and layer.divisor_override is not None:
            return f"takes plain pools only ({name})"
    return ""


def _sides(shape: Shape) -> tuple[int, int, int]:
    """Height, width, channels."""
    return (1, 1, shape[0]) if len(shape) == 1 else (shape[1], shape[2], shape[0])


def _pair(value: Any) -> tuple[Any, Any]:
    return tuple(value) if isinstance(value, (tuple, list)) else (value, value)


def _slid(sides: Any, kernel: Any, stride: Any, padding: Any) -> list[int]:
    return [(n + 2 * p - k) // s + 1 for n, k, s, p in zip(sides, kernel, stride, padding, strict=True)]


def _slope(layer: nn.Module) -> float:
    return layer.negative_slope if isinstance(layer, nn.LeakyReLU) else 0.0


def _function(layer: nn.Module) -> tuple[int, float, float]:
    """An activation's number in `src/layers.hpp`, and its two constants."""
    if isinstance(layer, nn.GELU):
        return (6 if layer.approximate == "tanh" else 5), 0.0, 0.0
    if isinstance(layer, nn.LeakyReLU):
        return 1, layer.negative_slope, 0.0
    if isinstance(layer, nn.Softplus):
        return 7, layer.beta, layer.threshold
    if isinstance(layer, nn.ELU):
        return 8, 1.0, layer.alpha
    if isinstance(layer, nn.SELU):
        return 8, 1.0507009873554804934193349852946, 1.6732632423543772848170429916717
    return {nn.ReLU: 0, nn.Tanh: 2, nn.Sigmoid: 3, nn.SiLU: 4}[type(layer)], 0.0, 0.0


_FORMS: dict[type[nn.Module], Callable[[Program, str, Any], None]] = {
    nn.Conv2d: Program._convolution,
    nn.Linear: Program._linear,
    TaskBatchNorm: Program._norm,
    nn.AdaptiveAvgPool2d: Program._adaptive_pool,
    nn.Flatten: Program._flatten,
    SpatialSoftArgmax: Program._argmax,
    BiasTransformation: Program._append,
    nn.Identity: Program._identity,
    **dict.fromkeys([nn.MaxPool2d, nn.AvgPool2d], Program._pool),
    **dict.fromkeys(
        [nn.ReLU, nn.LeakyReLU, nn.ELU, nn.SELU, nn.SiLU, nn.GELU, nn.Tanh, nn.Sigmoid, nn.Softplus],
        Program._activation,
    ),
}
