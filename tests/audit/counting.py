"""What PyTorch is asked to do, counted: the same on every machine with one version of it, unlike time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Operators(TorchDispatchMode):
    """Inside, counts calls of ATen's operators, those of backward passes and of `torch.func` included.

    - `.calls`: all of them, views too;
    - `.tensors`, `.bytes`: results that are no view of an argument and not written in place, so that memory was
      allocated for them, and its size. What an operator allocates inside and frees again is not seen.
    """

    def __init__(self) -> None:
        super().__init__()
        self.calls = self.tensors = self.bytes = 0

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        known = {_memory(t) for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        results = func(*args, **kwargs)
        self.calls += 1
        for t in tree_leaves(results):
            if isinstance(t, Tensor) and _memory(t) not in known:
                known.add(_memory(t))
                self.tensors += 1
                self.bytes += t.untyped_storage().nbytes()
        return results


def _memory(t: Tensor) -> int:
    """What is alike for tensors that share their memory."""
    return t.untyped_storage()._cdata
