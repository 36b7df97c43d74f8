"""What a loss is derived in: the leaves of its graph."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor


def leaves_of(value: Tensor) -> list[Tensor]:
    """The tensors that would get a gradient from `value.backward()`."""
    found, seen, waiting = [], set(), [value.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            found.append(node.variable)
        waiting += [following for following, _ in node.next_functions]
    return found


def has_others(value: Tensor, known: Iterable[Tensor]) -> bool:
    """Whether `value` also depends on tensors that ask for a gradient and are not among `known`."""
    own = {id(tensor) for tensor in known}
    return any(id(leaf) not in own for leaf in leaves_of(value))
