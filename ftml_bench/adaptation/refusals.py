"""Models that no engine can treat, and modules that do more than their class says."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase
from torch.nn.parameter import is_lazy

from ftml_bench.errors import UsageError
from ftml_bench.models.norm import CONVERTED, TaskBatchNorm

MODULE_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def hooked(model: nn.Module) -> str:
    """A module that does more when it is called than its class says: hooks, a `forward` of its own; empty if none."""
    if any(getattr(torch.nn.modules.module, f"_global{hooks}") for hooks in MODULE_HOOKS):
        return "all modules"
    for name, module in model.named_modules():
        if isinstance(module, nn.ParameterList):  # whose own `__call__` says that it cannot be called
            continue
        own = vars(module)
        is_called_otherwise = "forward" in own or type(module).__call__ is not nn.Module.__call__
        if any(own[hooks] for hooks in MODULE_HOOKS) or is_called_otherwise or own.get("_compiled_call_impl"):
            return f"{type(module).__name__} ({name or 'the model itself'})"
    return ""


def refuse_parameter_hooks(model: nn.Module) -> None:
    """Refuse hooks on parameters' gradients: an inner step works on other tensors, which they do not see.

    :raises UsageError: if there is one.
    """
    for name, p in model.named_parameters():
        if p._backward_hooks:
            raise UsageError(
                f"the gradient hook on parameter {name} would act on the meta-gradient but on no inner step: remove "
                f"it, and freeze parameters by requires_grad or change p.grad in a plugin's before_update"
            )


def refuse_untreatable_layers(model: nn.Module) -> None:
    """Refuse layers that no engine can treat.

    :raises UsageError: for norm layers that change their own statistics in every inner step (an `InstanceNorm` with
        running statistics), batch norms that are more than `nn.BatchNorm1d` to 3d and so cannot be converted, lazy
        layers that have not seen a batch, and TorchScript, which cannot be called with other weights.
    """
    refuse_norms_of_their_own_kind(model)
    for name, module in model.named_modules():
        of = _called(name, module)
        if isinstance(module, torch.jit.ScriptModule):
            raise UsageError(f"{of} is TorchScript, which takes no other weights than its own: give the module itself")
        if isinstance(module, _NormBase) and not isinstance(module, _BatchNorm) and module.track_running_stats:
            raise UsageError(
                f"{of} keeps running statistics, which every inner step would change: expected "
                f"track_running_stats=False"
            )
        if any(p is not None and is_lazy(p) for p in module._parameters.values()):
            raise UsageError(f"{of} has no shape yet: call the model once on a batch before")


def refuse_norms_of_their_own_kind(model: nn.Module) -> None:
    """Refuse batch norms that know nothing of tasks and cannot be taught: subclasses, `nn.SyncBatchNorm`.

    :raises UsageError: if there is one.
    """
    for name, module in model.named_modules():
        if isinstance(module, _BatchNorm) and type(module) not in (TaskBatchNorm, *CONVERTED):
            raise UsageError(
                f"{_called(name, module)} is a batch norm of its own kind, which cannot be converted to one with a "
                f"task's statistics: expected nn.BatchNorm1d to 3d as they are"
            )


def _called(name: str, module: nn.Module) -> str:
    return f"{type(module).__name__} ({name or 'the model itself'})"


def refuse_overlapping_parameters(model: nn.Module) -> None:
    """Refuse parameters that lie in the same memory (`a.weight.data = b.weight.data`): an inner step parts them.

    :raises UsageError: if two do; one parameter in two modules is fine.
    """
    places = sorted(_places(model))
    for (storage, _, end, name), (other_storage, start, _, other) in pairwise(places):
        if storage == other_storage and start < end:
            raise UsageError(
                f"parameters {name} and {other} lie in the same memory, which inner steps would part: tie weights by "
                f"one parameter, as in b.weight = a.weight"
            )


def _places(model: nn.Module) -> Iterator[tuple[int, int, int, str]]:
    """Where parameters lie: storage, first and last place in it, name."""
    for name, p in model.named_parameters():
        if not is_lazy(p) and p.layout is torch.strided and p.numel() and p.untyped_storage().data_ptr():
            extent = 1 + sum((size - 1) * stride for size, stride in zip(p.shape, p.stride(), strict=True))
            size = p.element_size()
            start = int(p.storage_offset()) * size
            yield p.untyped_storage().data_ptr(), start, start + int(extent) * size, name


def holds_tensors_of_vmap(model: nn.Module) -> bool:
    """Whether an attribute of a module is a tensor that exists inside a `vmap` alone."""
    values = [v for module in model.modules() for v in vars(module).values()]
    values += [v for value in values if isinstance(value, (list, tuple, dict)) for v in _items(value)]
    return any(isinstance(v, Tensor) and torch._C._functorch.is_functorch_wrapped_tensor(v) for v in values)


def _items(value: Any) -> list[Any]:
    return list(value.values()) if isinstance(value, dict) else list(value)
