"""The inner loop of all tasks of a meta-batch at once, for plain stacks of layers.

Every task has its own copy of the weights, so a convolution over T tasks is one grouped convolution on merged channels
(N, T*C, H, W), and a linear layer one batched matrix product on (T, N, F). Norm layers normalise merged channels, which
is each task by itself. The graph is unrolled through plain operations, so autograd's derivative is exact.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ftml_bench.adaptation.inner_loop import InnerLoop, Parameters
from ftml_bench.errors import UsageError
from ftml_bench.models.norm import TaskBatchNorm, normalise
from ftml_bench.models.pose_net import BiasTransformation, SpatialSoftArgmax


class BatchedEngine(InnerLoop):
    """All tasks in one pass; takes `nn.Sequential` models (nested too) of the layer types in `LAYERS`."""

    name = "batched"

    def __init__(self, *args, **settings) -> None:
        super().__init__(*args, **settings)
        reason = why_not_batched(self.model)
        if reason:
            raise UsageError(f"engine 'batched' {reason}: use engine='loop' or 'auto'")
        self.layers = list(_leaves(self.model))

    def predict(self, parameters: Parameters, support: tuple[Tensor, Tensor], query_x: Tensor) -> Tensor:
        """See `Engine.predict`."""
        x, y = support
        fast = {name: p.expand(len(x), *p.shape) for name, p in parameters.items()}
        loss_of = self._loss_of_tasks(y)
        for _ in range(self.inner_steps):
            # A sum over tasks: each copy's gradient is that of its own task's loss.
            loss = loss_of(self._forward(fast, x, None))
            gradients = torch.autograd.grad(loss, [fast[n] for n in self.adapted], create_graph=self.second_order)
            for name, gradient in zip(self.adapted, gradients, strict=True):
                fast[name] = fast[name] - self.inner_lr * gradient
        if not self.query_needs_support:
            return self._forward(fast, query_x, None)
        rows = x.shape[1]
        return self._forward(fast, torch.cat([x, query_x], dim=1), rows)[:, rows:]

    def _forward(self, fast: Parameters, x: Tensor, first: int | None) -> Tensor:
        """(T, N, *input) -> (T, N, *output); norms take their statistics from the first `first` rows."""
        tasks = len(x)
        for name, layer in self.layers:
            own = {local: fast[f"{name}.{local}" if name else local] for local, _ in layer.named_parameters()}
            x = LAYERS[type(layer)](layer, own, x, tasks, first)
        return _by_task(x, tasks)

    def _loss_of_tasks(self, y: Tensor) -> Callable[[Tensor], Tensor]:
        """The sum over tasks of the criterion of each, as one call where that is the same number."""
        if _is_plain_mean(self.criterion, y):
            return lambda outputs: len(y) * self.criterion(outputs.flatten(0, 1), y.flatten(0, 1))
        return lambda outputs: torch.stack([self.criterion(o, t) for o, t in zip(outputs, y, strict=True)]).sum()


def _is_plain_mean(criterion: object, y: Tensor) -> bool:
    """Whether the mean over tasks of equal size is the mean over all rows."""
    if type(criterion) is nn.CrossEntropyLoss:
        # ignored targets are left out of the mean, so tasks with unequal numbers of them would weigh unequally
        plain = criterion.weight is None and not (y == criterion.ignore_index).any()
    else:
        plain = type(criterion) in {nn.MSELoss, nn.L1Loss, nn.SmoothL1Loss, nn.HuberLoss}
    return plain and criterion.reduction == "mean"  # type: ignore[attr-defined]


def why_not_batched(model: nn.Module) -> str:
    """The reason why the engine cannot treat `model` exactly; empty if it can."""
    for name, layer in _leaves(model):
        if type(layer) not in LAYERS:
            return f"has no batched form of {type(layer).__name__} ({name or 'the model itself'})"
        if isinstance(layer, nn.Conv2d) and (layer.padding_mode != "zeros" or isinstance(layer.padding, str)):
            return f"takes zero padding given by numbers only ({name})"
        if isinstance(layer, nn.Flatten) and (layer.start_dim, layer.end_dim) != (1, -1):
            return f"takes Flatten(1, -1) only ({name})"
    names = {name for name, _ in model.named_parameters(remove_duplicate=True)}
    return "" if names == {n for n, _ in model.named_parameters(remove_duplicate=False)} else "takes no shared weights"


def _leaves(module: nn.Module, name: str = "") -> list[tuple[str, nn.Module]]:
    """The layers of (nested) plain Sequentials in order of execution; anything else is a leaf."""
    if type(module).forward is not nn.Sequential.forward:
        return [(name, module)]
    prefix = f"{name}." if name else ""
    return [leaf for child, m in module.named_children() for leaf in _leaves(m, prefix + child)]


# -- layers: (layer, its parameters with a leading task dimension, x, number of tasks, rows for statistics) -> x


def _merged(x: Tensor) -> Tensor:
    """(T, N, C, H, W) -> (N, T*C, H, W); merged maps stay."""
    return x.transpose(0, 1).flatten(1, 2) if x.dim() == 5 else x


def _by_task(x: Tensor, tasks: int) -> Tensor:
    """(N, T*C, H, W) -> (T, N, C, H, W); (T, N, F) stays."""
    return x.unflatten(1, (tasks, -1)).transpose(0, 1) if x.dim() == 4 else x


def _conv(layer: nn.Conv2d, own: Parameters, x: Tensor, tasks: int, first: int | None) -> Tensor:
    bias = own["bias"].flatten(0, 1) if "bias" in own else None
    weight = own["weight"].flatten(0, 1)
    return F.conv2d(_merged(x), weight, bias, layer.stride, layer.padding, layer.dilation, tasks * layer.groups)


def _linear(layer: nn.Linear, own: Parameters, x: Tensor, tasks: int, first: int | None) -> Tensor:
    weight = own["weight"].transpose(1, 2)
    return torch.baddbmm(own["bias"].unsqueeze(1), x, weight) if "bias" in own else torch.bmm(x, weight)


def _norm(layer: TaskBatchNorm, own: Parameters, x: Tensor, tasks: int, first: int | None) -> Tensor:
    if x.dim() == 3:  # (T, N, F)
        x, _, _ = normalise(x, x[:, :first], [1], layer.eps)
        return x * own["weight"].unsqueeze(1) + own["bias"].unsqueeze(1) if own else x
    x = _merged(x)
    if first is None:  # the fused kernel: exact to the second order here, where no vmap is involved
        weight, bias = (own["weight"].flatten(), own["bias"].flatten()) if own else (None, None)
        return F.batch_norm(x, None, None, weight, bias, training=True, eps=layer.eps)
    x, _, _ = normalise(x, x[:first], [0, 2, 3], layer.eps)
    return x * own["weight"].reshape(-1, 1, 1) + own["bias"].reshape(-1, 1, 1) if own else x


def _group_norm(layer: nn.GroupNorm, own: Parameters, x: Tensor, tasks: int, first: int | None) -> Tensor:
    x = F.group_norm(_merged(x), tasks * layer.num_groups, eps=layer.eps)
    return x * own["weight"].reshape(-1, 1, 1) + own["bias"].reshape(-1, 1, 1) if own else x


def _flatten(layer: nn.Flatten, own: Parameters, x: Tensor, tasks: int, first: int | None) -> Tensor:
    return _by_task(x, tasks).flatten(2)


def _pool(layer: nn.Module, own: Parameters, x: Tensor, tasks: int, first: int | None) -> Tensor:
    return layer(_merged(x))


def _soft_argmax(layer: SpatialSoftArgmax, own: Parameters, x: Tensor, tasks: int, first: int | None) -> Tensor:
    maps = _by_task(x, tasks)
    return layer(maps.flatten(0, 1)).unflatten(0, maps.shape[:2])


def _bias_transformation(
    layer: BiasTransformation, own: Parameters, x: Tensor, tasks: int, first: int | None
) -> Tensor:
    return torch.cat([x, own["vector"].unsqueeze(1).expand(-1, x.shape[1], -1)], dim=2)


def _elementwise(layer: nn.Module, own: Parameters, x: Tensor, tasks: int, first: int | None) -> Tensor:
    return layer(x)


LAYERS: dict[type[nn.Module], Callable[..., Tensor]] = {
    nn.Conv2d: _conv,
    nn.Linear: _linear,
    TaskBatchNorm: _norm,
    nn.GroupNorm: _group_norm,
    nn.Flatten: _flatten,
    SpatialSoftArgmax: _soft_argmax,
    BiasTransformation: _bias_transformation,
    **dict.fromkeys([nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d], _pool),
    **dict.fromkeys(
        [
            nn.Identity,
            nn.ReLU,
            nn.LeakyReLU,
            nn.ELU,
            nn.SELU,
            nn.SiLU,
            nn.GELU,
            nn.Tanh,
            nn.Sigmoid,
            nn.Softplus,
        ],
        _elementwise,
    ),
}
