"""Models that no engine can treat, and modules that do more than their class says."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase
from torch.nn.parameter import is_lazy
from torch.utils._pytree import tree_leaves

from ftml_bench.adaptation.graph_leaves import leaves_of
from ftml_bench.errors import UsageError
from ftml_bench.models.copies import copy_of
from ftml_bench.models.norm import CONVERTED, TaskBatchNorm
from ftml_bench.random_state import preserved_random_state

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


def is_pytorchs(criterion: Any) -> bool:
    """Whether a loss is one of PyTorch's own, as it is: it looks at outputs and targets alone."""
    if isinstance(criterion, nn.Module):
        return type(criterion).__module__.startswith("torch.nn.") and not hooked(criterion)
    return str(getattr(criterion, "__module__", "")).startswith("torch.nn.")


def refuse_parameter_hooks(model: nn.Module) -> None:
    """Refuse hooks on parameters' gradients: inner steps and update procedures work on other tensors, which they do not
    see.

    :raises UsageError: if there is one.
    """
    for name, p in model.named_parameters():
        if p._backward_hooks:
            raise UsageError(
                f"the gradient hook on parameter {name} would act in training but on no inner step: remove "
                f"it, and freeze parameters by requires_grad or change p.grad in a plugin's before_update"
            )


def view_of_weight(model: nn.Module) -> str:
    """An attribute that is a view of a parameter, as `weight.t()`, with its name; empty if there is none."""
    names = {id(p): name for name, p in model.named_parameters()}
    for place, module in model.named_modules():
        for name, value in vars(module).items():
            if isinstance(value, Tensor) and id(value._base) in names:
                return f"{f'{place}.{name}' if place else name}, a view of parameter {names[id(value._base)]}"
    return ""


def refuse_views_of_weights(model: nn.Module) -> None:
    """Refuse views of parameters in attributes: a model that is called with other weights does not find them there.

    :raises UsageError: if there is one.
    """
    if kept := view_of_weight(model):
        raise UsageError(
            f"{type(model).__name__} keeps {kept}, which does not follow other weights: expected it to be made when "
            f"the model is called"
        )


def refuse_what_evaluations_leave_out(model: nn.Module, missing: Collection[str], inputs: tuple[Tensor, ...]) -> None:
    """Refuse a model that uses a parameter in training mode alone, as one that merges or averages weights for
    evaluations: an update procedure, which is in evaluation mode, would leave it as it is.

    :param missing: the names of parameters that outputs in evaluation mode do not depend on.
    :raises UsageError: if outputs in training mode depend on one of them, or by a view of it in any mode.
    """
    if not missing:
        return
    refuse_views_of_weights(model)
    if model.training:
        return
    copy = copy_of(model).train()
    try:
        with torch.enable_grad(), preserved_random_state(inputs[0].device):
            outputs = tree_leaves(copy(*(part.clone() for part in inputs)))
    except Exception:  # it may not take so few points in training mode
        return
    used = {id(leaf) for part in outputs if isinstance(part, Tensor) for leaf in leaves_of(part)}
    for name, p in copy.named_parameters():
        if name in missing and id(p) in used:
            raise UsageError(
                f"{type(model).__name__} uses parameter {name} in training mode alone: in evaluation mode, as update "
                f"procedures are, it could not be adapted; expected a model that computes alike in both"
            )


def refuse_untreatable_layers(model: nn.Module) -> None:
    """Refuse layers that no engine can treat.

    :raises UsageError: for norm layers that change their own statistics in every inner step (an `InstanceNorm` with
        running statistics), batch norms that are more than `nn.BatchNorm1d` to 3d and so cannot be converted, lazy
        layers that have not seen a batch, and TorchScript, which cannot be called with other weights.
    """
    refuse_norms_of_their_own_kind(model)
    refuse_scripts(model)
    for name, module in model.named_modules():
        of = _called(name, module)
        if isinstance(module, _NormBase) and not isinstance(module, _BatchNorm) and module.track_running_stats:
            raise UsageError(
                f"{of} keeps running statistics, which every inner step would change: expected "
                f"track_running_stats=False"
            )
        if any(p is not None and is_lazy(p) for p in module._parameters.values()):
            raise UsageError(f"{of} has no shape yet: call the model once on a batch before")


def refuse_scripts(model: nn.Module) -> None:
    """Refuse TorchScript, where inner steps are to be taken.

    :raises UsageError: if there is any.
    """
    for name, module in model.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            of = _called(name, module)
            raise UsageError(f"{of} is TorchScript, which takes no other weights than its own: give the module itself")


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
