"""The inner loop of all tasks of a meta-batch at once, for plain stacks of layers.

Every task has its own copy of the weights, so a convolution over T tasks is one grouped convolution on merged channels
(N, T*C, H, W), and a linear layer one batched matrix product on (T, N, F). Norm layers normalise merged channels, which
is each task by itself. No derivative goes through vmap, so autograd's is exact.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from ftml_bench.adaptation.inner_loop import (
    Criterion,
    Input,
    Parameters,
    UntreatableError,
    scalar,
    without_labels,
)
from ftml_bench.adaptation.kernels import batch_norm, batch_norm_by_first, conv2d
from ftml_bench.adaptation.refusals import hooked
from ftml_bench.adaptation.rule import PLAIN, InnerRule
from ftml_bench.adaptation.steps import Weights, WrittenSteps
from ftml_bench.models.norm import TaskBatchNorm, batch_statistics, has_norm, normalise
from ftml_bench.models.pose_net import BiasTransformation, SpatialSoftArgmax


class BatchedEngine(WrittenSteps):
    """All tasks in one pass; takes `nn.Sequential` models (nested too) of the layer types in `LAYERS`.

    Layers before the first one that is adapted are the same for all tasks and steps: they are run once, as they are.
    """

    name = "batched"
    task_dimensions = 1

    def __init__(self, model: nn.Module, criterion: Criterion, **settings: Any) -> None:
        super().__init__(model, criterion, **settings)
        reason = why_not_batched(self.model)
        if reason:
            raise UntreatableError(self.name, reason)
        layers = list(_leaves(self.model))
        adapted = {name.rpartition(".")[0] for name in self.adapted}
        fixed = [name not in adapted and not isinstance(layer, nn.Dropout) for name, layer in layers]
        cut = fixed.index(False) if False in fixed else len(layers)
        self.common, self.layers = layers[:cut], layers[cut:]
        self.takes_each = not self.common
        self.rows_ride = self.query_needs_support and any(has_norm(layer) for _, layer in self.layers)

    def predict(
        self,
        parameters: Parameters,
        support: tuple[Input, Tensor],
        query_x: Input,
        *,
        rule: InnerRule = PLAIN,
        every_step: bool = False,
    ) -> Tensor:
        """See `Engine.predict`."""
        self._rule, self._every_step = rule, every_step
        x, query_x = without_labels(self.name, support[0], query_x)
        if torch.is_autocast_enabled(x.device.type):
            raise UntreatableError(self.name, "takes no autocast")
        return self._by_graphs(self._predict, parameters, x, support[1], query_x)

    def choose_memory(self, parameters: Parameters, support: tuple[Tensor, Tensor]) -> str:
        """See `Engine.choose_memory`."""
        return self._memory_of(parameters, *support) if self.takes_each else super().choose_memory(parameters, support)

    def predict_each(
        self, parameters: Parameters, support: tuple[Tensor, Tensor], query_x: Tensor, memory: str
    ) -> Tensor:
        """See `Engine.predict_each`."""
        if not self.takes_each:
            return super().predict_each(parameters, support, query_x, memory)
        self._rule, self._every_step = PLAIN, False
        self._refuse_shapes(support[0])
        return self._adapted_outputs(dict(parameters), *support, query_x, memory)

    @torch.no_grad()
    def adapt_each(
        self, parameters: Parameters, x: Tensor, y: Tensor, steps: int, *, rule: InnerRule = PLAIN
    ) -> list[dict[str, Tensor]]:
        """See `Engine.adapt_each`; as many tasks in one pass as `memory_budget` allows."""
        if not rule.is_plain:
            return super().adapt_each(parameters, x, y, steps, rule=rule)
        self._rule, self._every_step = PLAIN, False
        one = self._common_features(parameters, x[:1])
        self._refuse_shapes(one)
        at_once = max(1, self.memory_budget // self._bytes_of_a_step(self._copies(parameters, 1), one, y[:1]))
        found = []
        for some_x, some_y in zip(x.split(at_once), y.split(at_once), strict=True):
            features = self._common_features(parameters, some_x)
            fast = self._copies(parameters, len(some_x))
            for step in range(steps):
                # a layer may write into what it is given, and no trial may have been yet that would have found out
                self._move(fast, self._gradients(fast, features.clone(), some_y), step)
            for task in range(len(some_x)):
                own = {name: weights[task] for name, weights in fast.items()}
                found.append({name: own.get(name, p).detach() for name, p in parameters.items()})
        return found

    def _predict(self, parameters: Parameters, x: Tensor, y: Tensor, query_x: Tensor) -> Tensor:
        x, query_x = self._features(parameters, x, query_x)
        self._refuse_shapes(x)
        memory = self._memory_of(parameters, x, y)
        beside = self._rule.tensors(parameters, self.adapted)
        fast = self._copies(parameters, len(x)) | {n: t.expand(len(x), *t.shape) for n, t in beside.items()}
        return self._adapted_outputs(fast, x, y, query_x, memory)

    def _refuse_shapes(self, x: Tensor) -> None:
        """See that x (T, N, *input) has the shape that each layer's form is written for.

        :raises UntreatableError: if it has not: some products would be of other numbers, and fit all the same.
        """
        point = x.dim() - 2
        for name, layer in self.layers:
            taken, given = DIMENSIONS.get(type(layer), (None, None))
            if taken is not None and point not in taken:
                raise UntreatableError(
                    self.name,
                    f"takes {type(layer).__name__} ({name or 'the model itself'}) on points of "
                    f"{' or '.join(map(str, taken))} dimensions only, not of {point}",
                )
            point = point if given is None else given

    def _copies(self, parameters: Parameters, tasks: int) -> Weights:
        """The parameters behind the common layers, for each task."""
        own = [
            f"{name}.{local}" if name else local for name, layer in self.layers for local, _ in layer.named_parameters()
        ]
        return {name: parameters[name].expand(tasks, *parameters[name].shape) for name in own}

    def _memory_of(self, parameters: Parameters, x: Tensor, y: Tensor) -> str:
        """ "unroll" or "adjoint" for support sets whose x are features behind the common layers."""
        return self._memory_for(len(x), lambda: (self._copies(parameters, 1), x[:1], y[:1]))

    def _features(self, parameters: Parameters, x: Tensor, query_x: Tensor) -> tuple[Tensor, Tensor]:
        """Support and query behind the common layers."""
        if not self.common:
            return x, query_x
        tasks, rows = x.shape[:2]
        if self.query_needs_support:
            with batch_statistics(groups=tasks, first=rows):
                both = self._through_common(parameters, torch.cat([x, query_x], dim=1))
            return both[:, :rows], both[:, rows:]
        return self._common_features(parameters, x), self._common_features(parameters, query_x)

    def _common_features(self, parameters: Parameters, x: Tensor) -> Tensor:
        """x (T, N, *input) behind the common layers, each task normalised by itself."""
        if not self.common:
            return x
        with batch_statistics(groups=len(x)):
            return self._through_common(parameters, x)

    def _through_common(self, parameters: Parameters, x: Tensor) -> Tensor:
        tasks = len(x)
        x = self._own(x).flatten(0, 1)
        for name, layer in self.common:
            x = functional_call(layer, _of_layer(name, layer, parameters), (x,))
        return x.unflatten(0, (tasks, -1))

    def _loss(self, fast: Weights, x: Tensor, y: Tensor) -> Tensor:
        return self._sum_of_tasks(self._forward(fast, x, None), y)

    def _outputs(self, fast: Weights, support_x: Tensor, query_x: Tensor) -> Tensor:
        if not self.rows_ride:
            return self._forward(fast, query_x, None)
        rows = support_x.shape[1]
        return self._forward(fast, torch.cat([support_x, query_x], dim=1), rows)[:, rows:]

    def _forward(self, fast: Weights, x: Tensor, first: int | None) -> Tensor:
        """(T, N, *input) -> (T, N, *output); norms take their statistics from the first `first` rows."""
        tasks, x = len(x), self._own(x)
        for name, layer in self.layers:
            x = LAYERS[type(layer)](layer, _of_layer(name, layer, fast), x, tasks, first)
        return _by_task(x, tasks)

    def _sum_of_tasks(self, outputs: Tensor, y: Tensor) -> Tensor:
        """The sum over tasks of the criterion of each, in one call where that is the same number."""
        criterion = self.criterion
        if isinstance(criterion, nn.CrossEntropyLoss) and _is_plain(criterion) and criterion.weight is None:
            if outputs.dim() > 2 and outputs.shape == y.shape:  # probabilities
                return len(y) * criterion(outputs.flatten(0, 1), y.flatten(0, 1))
            if outputs.dim() == 3 and y.dim() == 2:  # ignored targets are left out of a task's mean
                points = F.cross_entropy(
                    outputs.flatten(0, 1),
                    y.flatten(),
                    ignore_index=criterion.ignore_index,
                    label_smoothing=criterion.label_smoothing,
                    reduction="none",
                )
                return (points.view_as(y).sum(1) / (y != criterion.ignore_index).sum(1)).sum()
        # where shapes differ, the criterion spreads one over the other, and is to see one task's alone
        if isinstance(criterion, _PLAIN_MEANS) and _is_plain(criterion) and outputs.shape == y.shape and y.dim() > 1:
            return len(y) * criterion(outputs.flatten(0, 1), y.flatten(0, 1))
        return torch.stack([scalar(criterion(o, t)) for o, t in zip(outputs, y, strict=True)]).sum()


# Their mean over tasks of equal size is the mean over all rows.
_PLAIN_MEANS = (nn.MSELoss, nn.L1Loss, nn.SmoothL1Loss, nn.HuberLoss)


def _is_plain(criterion: nn.Module) -> bool:
    """Whether a criterion is a mean by a class of PyTorch's, and nothing more."""
    return (
        type(criterion) in (nn.CrossEntropyLoss, *_PLAIN_MEANS)
        and criterion.reduction == "mean"
        and not hooked(criterion)
    )


def _of_layer(name: str, layer: nn.Module, parameters: Parameters) -> Weights:
    """A layer's own parameters by their local names."""
    return {local: parameters[f"{name}.{local}" if name else local] for local, _ in layer.named_parameters()}


def why_not_batched(model: nn.Module) -> str:
    """The reason why the engine cannot treat `model` exactly; empty if it can."""
    if hooked(model):
        return f"leaves out the hooks of {hooked(model)}"
    for name, layer in _leaves(model):
        if type(layer) not in LAYERS:
            return f"has no batched form of {type(layer).__name__} ({name or 'the model itself'})"
        if isinstance(layer, nn.Conv2d) and (layer.padding_mode != "zeros" or isinstance(layer.padding, str)):
            return f"takes zero padding given by numbers only ({name})"
        if isinstance(layer, TaskBatchNorm) and (layer.weight is None) != (layer.bias is None):
            return f"takes norms with scale and offset or with none ({name})"
        if isinstance(layer, TaskBatchNorm) and layer.frozen:
            return f"takes no frozen norms ({name})"
        if isinstance(layer, nn.Flatten) and (layer.start_dim, layer.end_dim) != (1, -1):
            return f"takes Flatten(1, -1) only ({name})"
    names = {name for name, _ in model.named_parameters(remove_duplicate=True)}
    return "" if names == {n for n, _ in model.named_parameters(remove_duplicate=False)} else "takes no shared weights"


def _leaves(module: nn.Module, name: str = "") -> list[tuple[str, nn.Module]]:
    """The layers of (nested) plain Sequentials in order of execution; anything else is a leaf.

    A layer that stands in several places is there as often (`named_children` would name it once).
    """
    if not isinstance(module, nn.Sequential) or any(
        getattr(type(module), method) is not getattr(nn.Sequential, method) for method in ("forward", "__iter__")
    ):
        return [(name, module)]
    prefix = f"{name}." if name else ""
    return [leaf for child, m in zip(module._modules, module, strict=True) for leaf in _leaves(m, prefix + child)]


# -- layers: (layer, its parameters with a leading task dimension, x, number of tasks, rows for statistics) -> x


def _merged(x: Tensor) -> Tensor:
    """(T, N, C, H, W) -> (N, T*C, H, W); merged maps stay."""
    return x.transpose(0, 1).flatten(1, 2) if x.dim() == 5 else x


def _by_task(x: Tensor, tasks: int) -> Tensor:
    """(N, T*C, H, W) -> (T, N, C, H, W); (T, N, F) stays."""
    return x.unflatten(1, (tasks, -1)).transpose(0, 1) if x.dim() == 4 else x


def _conv(layer: nn.Conv2d, own: Parameters, x: Tensor, tasks: int, first: int | None) -> Tensor:
    geometry = (layer.stride, layer.padding, layer.dilation, tasks * layer.groups)
    x = conv2d(_merged(x), own["weight"], geometry)
    return x + own["bias"].reshape(-1, 1, 1) if "bias" in own else x


def _linear(layer: nn.Linear, own: Parameters, x: Tensor, tasks: int, first: int | None) -> Tensor:
    weight = own["weight"].transpose(1, 2)
    return torch.baddbmm(own["bias"].unsqueeze(1), x, weight) if "bias" in own else torch.bmm(x, weight)


def _norm(layer: TaskBatchNorm, own: Parameters, x: Tensor, tasks: int, first: int | None) -> Tensor:
    if x.dim() == 3:  # (T, N, F)
        x, _, _ = normalise(x, x[:, :first], [1], layer.eps)
        return x * own["weight"].unsqueeze(1) + own["bias"].unsqueeze(1) if own else x
    x = _merged(x)
    weight, bias = (own["weight"].flatten(), own["bias"].flatten()) if own else (None, None)
    if first is None:
        return batch_norm(x, weight, bias, layer.eps)
    return batch_norm_by_first(x, first, weight, bias, layer.eps)


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
            nn.Dropout,
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

# Dimensions of a point: those that a layer's form is written for, and what comes out; a layer that is not here takes
# any and leaves them.
ROWS, MAPS = 1, 3
DIMENSIONS: dict[type[nn.Module], tuple[tuple[int, ...] | None, int | None]] = {
    nn.Conv2d: ((MAPS,), MAPS),
    nn.Linear: ((ROWS,), ROWS),
    TaskBatchNorm: ((ROWS, MAPS), None),
    nn.GroupNorm: ((MAPS,), MAPS),
    nn.Flatten: ((ROWS, MAPS), ROWS),
    SpatialSoftArgmax: ((MAPS,), ROWS),
    BiasTransformation: ((ROWS,), ROWS),
    **dict.fromkeys([nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d], ((MAPS,), MAPS)),
}
