"""Functions of autograd whose gradients are numbers, without a graph of their own."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch

from ftml_bench.errors import UsageError


def once_differentiable(backward: Callable[..., Any]) -> Callable[..., Any]:
    """For the `backward` of a `torch.autograd.Function`: asked for a graph of its gradients, it says that it has none.

    PyTorch's decorator of this name lets `torch.autograd.grad` of such gradients be zero without a word.
    """

    @wraps(backward)
    def once(ctx: Any, *cotangents: Any) -> Any:
        if torch.is_grad_enabled():
            raise UsageError(
                "create_graph=True: the meta-gradient has no graph of its own here: expected engine='loop' with "
                "memory='unroll', which leaves all derivatives to PyTorch"
            )
        return backward(ctx, *cotangents)

    return once
