"""What a model is made of at the moment: an engine that was built for something else must not be used."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Hashable, Iterable
from functools import cache
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from ftml_bench.adaptation.inner_loop import Criterion
from ftml_bench.adaptation.refusals import MODULE_HOOKS

Composition = dict[tuple[Any, ...], Hashable]


def composition(model: nn.Module, criterion: Criterion) -> Composition:
    """The modules, hooks, settings and parameters of a model and a criterion, as far as an engine depends on them.

    Values of tensors and modes (training, evaluation) are no part of it. Two compositions are equal if nothing has been
    replaced, frozen, hooked or set.
    """
    found: Composition = {("criterion",): id(criterion), ("hooks",): tuple(map(tuple, _global_hooks()))}
    for number, module in enumerate(modules_of(model, criterion)):
        own = vars(module)
        found[number, "module"] = (id(module), type(module), *map(id, own["_modules"].values()))
        found[number, "hooks"] = tuple(tuple(own[hooks]) for hooks in MODULE_HOOKS)
        for name, p in own["_parameters"].items():
            kind = None if p is None else (id(p), p.requires_grad, tuple(p._backward_hooks or ()))
            found[number, "parameter", name] = kind
        for name, value in own.items():
            if name == "training":
                continue
            if value is None or isinstance(value, (bool, int, float, str, tuple)):
                found[number, name] = repr(value) if isinstance(value, tuple) else value
            elif callable(value) and not isinstance(value, nn.Module):  # such as a `forward` of its own
                found[number, name] = id(value)
        for name, values in _containers(own):
            found[number, name] = tuple(id(v) for v in values)
        for name, buffer in _switches(module):
            found[number, "switch", name] = buffer._version
    return found


def _global_hooks() -> list[dict]:
    return [getattr(torch.nn.modules.module, f"_global{hooks}") for hooks in MODULE_HOOKS]


def _containers(own: dict[str, Any]) -> list[tuple[str, list[Any]]]:
    """Lists, dictionaries and objects of settings in a module's attributes, with what stands in them; not nn.Module's
    own."""
    found: list[tuple[str, list[Any]]] = []
    for name, value in own.items():
        kind: Any = type(value)  # mypy takes no class for something with a hash
        if name in ("_parameters", "_modules"):
            continue
        if kind is list:
            found.append((name, value))
        elif kind is dict or _holds_settings(kind):
            found.append((name, list((value if kind is dict else vars(value)).values())))
    return found


@cache
def _holds_settings(kind: type) -> bool:
    """Whether objects of a class are there for their attributes; asked at every step, of each attribute of a model."""
    is_dataclass = hasattr(kind, "__dataclass_fields__") and kind.__dictoffset__ != 0  # without slots
    return is_dataclass or issubclass(kind, (SimpleNamespace, Namespace))


def _switches(module: nn.Module) -> list[tuple[str, Tensor]]:
    """Buffers of whole numbers, by which a layer may decide what it does; norm layers count with theirs."""
    if isinstance(module, _NormBase):
        return []
    return [(n, b) for n, b in module._buffers.items() if b is not None and not b.is_floating_point()]


def modules_of(model: nn.Module, criterion: Criterion) -> list[nn.Module]:
    """All modules that a composition is taken of."""
    return [*model.modules(), *(criterion.modules() if isinstance(criterion, nn.Module) else ())]


def pieces(modules: Iterable[nn.Module]) -> list[object]:
    """The objects that modules consist of, in order.

    A composition is the same as long as these are the same objects, which is found out much faster. (Whoever keeps the
    list keeps them alive, so that no other object can be where one of them was.)
    """
    found: list[object] = [hook for hooks in _global_hooks() for hook in hooks]
    for module in modules:
        own = vars(module)
        found += own.values()
        found += own["_modules"].values()
        for hooks in MODULE_HOOKS:
            found += own[hooks]
        for _, values in _containers(own):
            found += values
        found += [buffer._version for _, buffer in _switches(module)]
        for p in own["_parameters"].values():
            found += (p, None, None) if p is None else (p, p.requires_grad, p._backward_hooks)
    return found
