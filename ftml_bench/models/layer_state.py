"""What layers hold beside parameters, and keeping it over a call."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from enum import Enum
from functools import partial
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch._C._functorch import is_functorch_wrapped_tensor
from torch.nn.modules.batchnorm import _NormBase

from ftml_bench.random_state import OWN

# Classes of these, and of their descendants, are saved in other ways, or nothing in training depends on what changes.
_OF_OTHERS = ("avalanche", "ftml_bench", "logging", "torch")
FUNCTIONS = (type, FunctionType, BuiltinFunctionType, MethodType)
PARTS_OF_MODULES = frozenset(vars(nn.Module()))


def leaves(value: Any) -> Iterator[Any]:
    """What lies in a container, in those in it, and so on; anything else itself."""
    if isinstance(value, Mapping):
        value = [*value.keys(), *value.values()]
    if isinstance(value, list | tuple | set | frozenset | deque):
        for v in value:
            yield from leaves(v)
    else:
        yield value


def is_plain(value: Any) -> bool:
    """Whether it is numbers and text throughout."""
    return all(leaf is None or isinstance(leaf, bool | int | float | str | np.generic) for leaf in leaves(value))


def is_object(value: Any) -> bool:
    """Whether it is of a class of somebody's own, whose attributes may change."""
    others = (*FUNCTIONS, Enum, ModuleType, partial, *OWN)
    return (
        hasattr(value, "__dict__")
        and not isinstance(value, others)
        and all(cls.__module__.split(".")[0] not in _OF_OTHERS for cls in type(value).__mro__)
    )


def parts_of(value: object) -> list[object]:
    """What holds attributes: the layers of a module, or an object of somebody's own class itself."""
    if isinstance(value, nn.Module):
        return [*value.modules()]
    return [value] if is_object(value) else []


# -- buffers that `state_dict` leaves out


def unsaved_buffers(module: nn.Module) -> dict[str, Tensor | None]:
    """Those that were registered with persistent=False, by name."""
    return {
        f"{prefix}.{name}" if prefix else name: layer._buffers[name]
        for prefix, layer in module.named_modules()
        for name in sorted(layer._non_persistent_buffers_set)
    }


def put_buffer(module: nn.Module, name: str, value: Tensor | None) -> None:
    """Give one of these buffers a value; in place where its shape allows it, since others may hold it."""
    path, _, last = name.rpartition(".")
    layer = module.get_submodule(path)
    current = layer._buffers.get(last)
    if current is not None and value is not None and current.shape == value.shape:
        with torch.no_grad():
            current.copy_(value)
    else:
        layer.register_buffer(last, None if value is None else value.clone(), persistent=False)


def all_tensors(module: nn.Module) -> dict[str, Any]:
    """As `state_dict`, with these buffers."""
    return {**module.state_dict(), **{name: b.detach() for name, b in unsaved_buffers(module).items() if b is not None}}


def put_tensors(module: nn.Module, tensors: Mapping[str, Any]) -> None:
    """Give a module some of its `all_tensors`, in place."""
    state = module.state_dict()
    module.load_state_dict({**state, **{name: value for name, value in tensors.items() if name in state}})
    for name, value in tensors.items():
        if name not in state:
            put_buffer(module, name, value)


# -- whose a tensor or layer is


class Owned:
    """The layers and tensors of some modules, and views of these tensors: `x in owned`."""

    def __init__(self, modules: Iterable[nn.Module]) -> None:
        self._layers = {layer for module in modules for layer in module.modules()}
        self._storages = {
            _storage(t) for layer in self._layers for t in (*layer.parameters(False), *layer.buffers(False))
        }

    def __contains__(self, value: object) -> bool:
        if isinstance(value, Tensor):
            return not is_functorch_wrapped_tensor(value) and _storage(value) in self._storages
        return isinstance(value, nn.Module) and value in self._layers


def _storage(tensor: Tensor) -> int:
    try:
        return tensor.untyped_storage()._cdata
    except NotImplementedError:  # sparse tensors have none
        return -id(tensor)


# -- keeping


@contextmanager
def kept(parts: Iterable[object]) -> Iterator[None]:
    """Plain attributes and buffers of these layers, or other objects, are afterwards what they were.

    Buffers of norm layers aside, which have rules of their own.
    """
    before = [(vars(part), _plain_attributes(part), _buffers(part)) for part in parts]
    try:
        yield
    finally:
        for attributes, values, buffers in before:
            attributes.update({name: v for name, v in values.items() if attributes.get(name) != v})
            for name, (buffer, value) in buffers.items():
                attributes["_buffers"][name] = buffer
                if not torch.equal(buffer, value):
                    buffer.copy_(value)


def _plain_attributes(part: object) -> dict[str, Any]:
    left_out = PARTS_OF_MODULES if isinstance(part, nn.Module) else ()
    return {n: deepcopy(v) for n, v in vars(part).items() if n not in left_out and is_plain(v)}


def _buffers(part: object) -> dict[str, tuple[Tensor, Tensor]]:
    if not isinstance(part, nn.Module) or isinstance(part, _NormBase):
        return {}
    strided = {name: b for name, b in part._buffers.items() if b is not None and b.layout == torch.strided}
    return {name: (b, b.detach().clone()) for name, b in strided.items()}
