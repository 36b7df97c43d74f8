"""A meta-gradient by JAX: convolutions as patches and a matrix product, task after task, a task's gradient compiled.

`vmap` over tasks, and steps as a `scan`, are slower on a CPU.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from torch import Tensor, nn

from ftml_bench.models import SpatialSoftArgmax
from ftml_bench.speed.subjects import Subject

Weights = dict[str, Any]


def meta_gradient(subject: Subject) -> Any:
    """See `peers.MetaGradient`; in the precision of the model, in float64 operation by operation, not compiled.

    :raises NotImplementedError: a layer or a loss that has no form here.
    """
    layers = list(subject.model.named_children())
    for _, layer in layers:
        if not isinstance(layer, _TAKEN):
            raise NotImplementedError(f"no form of {type(layer).__name__} for JAX is written here")
    loss_of = _loss_of(subject.criterion)
    n, lr = subject.support, subject.inner_lr
    is_double = next(subject.model.parameters()).dtype == torch.float64

    def loss(weights: Weights, x: Any, y: Any) -> Any:
        return loss_of(_outputs(layers, weights, x), y)

    def adapted_loss(weights: Weights, x: Any, y: Any) -> Any:
        for _ in range(subject.inner_steps):
            gradients = jax.grad(loss)(weights, x[:n], y[:n])
            weights = {name: w - lr * gradients[name] for name, w in weights.items()}
        return loss(weights, x[n:], y[n:])

    of_task = jax.grad(adapted_loss)
    if not is_double:
        of_task = jax.jit(of_task)

    def gradient(xs: Tensor, ys: Tensor) -> list[Tensor]:
        with jax.enable_x64(is_double):
            weights = {name: jnp.asarray(p.detach().numpy()) for name, p in subject.model.named_parameters()}
            tasks = [
                of_task(weights, jnp.asarray(x.numpy()), jnp.asarray(y.numpy())) for x, y in zip(xs, ys, strict=True)
            ]
            means = [sum(task[name] for task in tasks) / len(tasks) for name in weights]
            return [torch.from_numpy(np.array(mean)) for mean in means]

    return gradient


_TAKEN = (nn.Conv2d, nn.BatchNorm2d, nn.ReLU, nn.Flatten, nn.Linear, SpatialSoftArgmax)


def _outputs(layers: list[tuple[str, nn.Module]], weights: Weights, x: Any) -> Any:
    """Of a stack for x (N, C, H, W) or (N, F); maps are (N, H, W, C) in between."""
    if x.ndim == 4:
        x = x.transpose(0, 2, 3, 1)
    for name, layer in layers:
        own = {key.rpartition(".")[2]: w for key, w in weights.items() if key.rpartition(".")[0] == name}
        if isinstance(layer, nn.Conv2d):
            x = _convolution(x, own["weight"], layer.stride[0], int(layer.padding[0]))
            x = x + own["bias"] if "bias" in own else x
        elif isinstance(layer, nn.BatchNorm2d):
            axes = tuple(range(x.ndim - 1))
            mean = x.mean(axes)
            variance = ((x - mean) ** 2).mean(axes)
            x = (x - mean) / jnp.sqrt(variance + layer.eps) * own["weight"] + own["bias"]
        elif isinstance(layer, nn.ReLU):
            x = jax.nn.relu(x)
        elif isinstance(layer, nn.Flatten):
            x = x.transpose(0, 3, 1, 2).reshape(len(x), -1)
        elif isinstance(layer, SpatialSoftArgmax):
            places = jnp.arange(x.shape[1], dtype=x.dtype) / x.shape[1] - 0.5
            share = jax.nn.softmax(x.reshape(len(x), -1, x.shape[-1]), axis=1).reshape(x.shape)
            x = jnp.concatenate([(share.sum(d) * places[:, None]).sum(1) for d in (1, 2)], axis=1)
        else:
            x = x @ own["weight"].T
            x = x + own["bias"] if "bias" in own else x
    return x


def _convolution(x: Any, weight: Any, stride: int, padding: int) -> Any:
    """(N, H, W, C) and (O, C, k, k) -> (N, H', W', O)."""
    k = weight.shape[-1]
    x = jnp.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    out = (x.shape[1] - k) // stride + 1
    reach = stride * (out - 1) + 1
    shifts = [x[:, i : i + reach : stride, j : j + reach : stride] for i in range(k) for j in range(k)]
    patches = jnp.stack(shifts, axis=3).reshape(len(x) * out * out, -1)  # k * k * C numbers each
    matrix = weight.transpose(2, 3, 1, 0).reshape(-1, len(weight))
    return (patches @ matrix).reshape(len(x), out, out, -1)


def _loss_of(criterion: nn.Module) -> Any:
    if isinstance(criterion, nn.MSELoss):
        return lambda outputs, y: ((outputs - y) ** 2).mean()
    if not isinstance(criterion, nn.CrossEntropyLoss):
        raise NotImplementedError(f"no form of {type(criterion).__name__} for JAX is written here")
    smoothing = criterion.label_smoothing

    def cross_entropy(outputs: Any, y: Any) -> Any:
        logs = jax.nn.log_softmax(outputs)
        of_class = jnp.take_along_axis(logs, y[:, None], axis=1)[:, 0]
        return -((1 - smoothing) * of_class + smoothing * logs.mean(-1)).mean()

    return cross_entropy
