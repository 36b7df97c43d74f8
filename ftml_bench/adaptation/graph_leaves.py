"""The ends of an autograd graph, and what a backward pass leaves in them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor


def leaves_of(value: Tensor) -> list[Tensor]:
    """The tensors whose `.grad` a `value.backward()` would add to; not what a checkpoint computes anew."""
    if value.grad_fn is None:
        return [value] if value.requires_grad else []
    found = []
    waiting: list[Any] = [value.grad_fn]
    seen = {*waiting}
    while waiting:
        node = waiting.pop()
        if type(node).__name__ == "AccumulateGrad":
            found.append(node.variable)
        new = {following for following, _ in node.next_functions if following is not None} - seen
        seen |= new
        waiting += new
    return found


def has_others(value: Tensor, known: Iterable[Tensor]) -> bool:
    """Whether `value` also depends on tensors that ask for a gradient and are not among `known`."""
    own = {id(tensor) for tensor in known}
    return any(id(leaf) not in own for leaf in leaves_of(value))


@contextmanager
def gradients_kept(tensors: Iterable[Tensor], *, but: Iterable[Tensor]) -> Iterator[None]:
    """Gradients that are added inside are taken back from `tensors`, except `but`."""
    ours = {id(tensor) for tensor in but}
    others = [(tensor, tensor.grad) for tensor in tensors if id(tensor) not in ours]
    for tensor, _ in others:
        tensor.grad = None  # what is there would be added to in place
    try:
        yield
    finally:
        for tensor, gradient in others:
            tensor.grad = gradient
