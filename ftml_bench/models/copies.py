"""Copies of models whose layers keep what they have computed."""

from __future__ import annotations

import copyreg
from copy import deepcopy
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch._C._functorch import is_functorch_wrapped_tensor
from torch.overrides import TorchFunctionMode

Module = TypeVar("Module", bound=nn.Module)


def copy_of(model: Module) -> Module:
    """A deep copy of a model, of one that keeps tensors of its last forward pass, too.

    `copy.deepcopy` refuses tensors that autograd has computed, as a model has that keeps its features in an attribute,
    or in what a forward hook fills. Here they are copied without their history; views of weights, as `weight.t()` that
    is kept, are views of the copy's. Hooks and everything else are as in `copy.deepcopy`.
    """
    with _WithoutHistory():
        return deepcopy(model)


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
