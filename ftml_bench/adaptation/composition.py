"""What a model is made of at the moment: an engine that was built for something else must not be used."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

from torch import nn

from ftml_bench.adaptation.inner_loop import MODULE_HOOKS, Criterion

Composition = dict[tuple[Any, ...], Hashable]


def composition(model: nn.Module, criterion: Criterion) -> Composition:
    """The modules, hooks, settings and parameters of a model and a criterion, as far as an engine depends on them.

    Values of tensors and modes (training, evaluation) are no part of it. Two compositions are equal if nothing has been
    replaced, frozen, hooked or set.
    """
    found: Composition = {("criterion",): id(criterion)}
    parts = [*model.modules(), *(criterion.modules() if isinstance(criterion, nn.Module) else ())]
    for number, module in enumerate(parts):
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
    return found
