"""Copies of models."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

from torch import Tensor, nn


def copy_of(model: nn.Module) -> nn.Module:
    """A deep copy of a model; what a forward pass has left in its attributes comes along without its graph."""
    memo: dict[int, Any] = {}
    for module in model.modules():
        for value in vars(module).values():
            if isinstance(value, Tensor) and not value.is_leaf:
                memo[id(value)] = value.detach().clone()
    return deepcopy(model, memo)
