"""Calling a model with other weights than its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn
from torch.func import functional_call


def call_with(model: nn.Module, weights: Mapping[str, Tensor], *inputs: Tensor) -> Any:
    """`model(*inputs)` with the parameters `weights`, by the names of `named_parameters()`; the model keeps its own."""
    return functional_call(model, _wherever_they_stand(model, weights), inputs, tie_weights=False)


def while_holding(model: nn.Module, weights: Mapping[str, Tensor], function: Callable[[], Any]) -> Any:
    """`function()`, while the parameters of `model` are `weights`: also what is computed backwards sees them.

    `call_with` puts the model's own back before anybody goes backwards, when a checkpoint (`torch.utils.checkpoint`)
    computes its part of the model once more.
    """
    held = {f"model.{name}": w for name, w in _wherever_they_stand(model, weights).items()}
    return functional_call(_Holder(model), held, (function,), tie_weights=False)


class _Holder(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, function: Callable[[], Any]) -> Any:
        return function()


def _wherever_they_stand(model: nn.Module, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights by every name under which a module holds them, each module once.

    `functional_call` can find shared parameters itself, but leaves a module that stands twice without its own weights.
    """
    names = {id(p): name for name, p in model.named_parameters()}
    return {
        f"{place}.{local}" if place else local: weights[names[id(p)]]
        for place, module in model.named_modules()
        for local, p in module._parameters.items()
        if p is not None and names[id(p)] in weights
    }
