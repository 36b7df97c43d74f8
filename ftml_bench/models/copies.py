"""Copies of models whose layers keep what they have computed."""

from __future__ import annotations

import copyreg
from copy import deepcopy
from pickle import PicklingError
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch._C._functorch import is_functorch_wrapped_tensor
from torch.overrides import TorchFunctionMode

from ftml_bench.errors import UsageError
from ftml_bench.models.layer_state import PARTS_OF_MODULES

Module = TypeVar("Module", bound=nn.Module)


def copy_of(model: Module) -> Module:
    """A deep copy of a model, of one that keeps tensors of its last forward pass, too.

    `copy.deepcopy` refuses tensors that autograd has computed, as a model has that keeps its features in an attribute,
    or in what a forward hook fills. Here they are copied without their history; views of weights, as `weight.t()` that
    is kept, are views of the copy's. Hooks and everything else are as in `copy.deepcopy`.

    :raises UsageError: for a model that holds what cannot be copied, as a lock.
    """
    try:
        with _WithoutHistory():
            return deepcopy(model)
    except (TypeError, PicklingError) as error:
        held = _what_cannot_be_copied(model)
        of_it = f"its attribute {held}: " if held else ""
        raise UsageError(f"{type(model).__name__} cannot be copied, as evaluations do: {of_it}{error}") from error


def _what_cannot_be_copied(model: nn.Module) -> str:
    """The first attribute of a layer that cannot be copied, as "layer.attribute"; empty if none is found."""
    for name, module in model.named_modules():
        for attribute, value in vars(module).items():
            if attribute in PARTS_OF_MODULES:
                continue
            try:
                with _WithoutHistory():
                    deepcopy(value)
            except (TypeError, PicklingError):
                return f"{name}.{attribute}" if name else attribute
    return ""


class _WithoutHistory(TorchFunctionMode):
    """Lets `copy.deepcopy` take tensors that have been computed: as values."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is Tensor.__deepcopy__:
            tensor, memo = args
            if is_functorch_wrapped_tensor(tensor):  # left by `torch.func`; nothing can be read from it any more
                return tensor
            base = tensor._base
            if base is not None and base.is_leaf and base.requires_grad:  # part of a weight: so it is of its copy
                whole = deepcopy(base, memo)
                with torch.enable_grad():
                    return whole.as_strided(tensor.size(), tensor.stride(), tensor.storage_offset())
            if not tensor.is_leaf:
                return deepcopy(tensor.detach(), memo)
        return func(*args, **(kwargs or {}))


def _generator_with(state: Tensor, device: torch.device) -> torch.Generator:
    copy = torch.Generator(device)
    copy.set_state(state)
    return copy


if "__reduce__" not in vars(torch.Generator):  # before torch 2.5 a generator cannot be copied
    copyreg.pickle(torch.Generator, lambda g: (_generator_with, (g.get_state(), g.device)))
