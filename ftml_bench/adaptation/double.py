"""Double precision for models and losses that ask for single precision, as by `.float()`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

DOUBLE = {torch.float32: torch.float64, torch.complex64: torch.complex128}


class SingleMeansDouble(TorchDispatchMode):
    """Inside, what would be cast to single precision is cast to double, and tensors of both are joined in double.

    Below autograd and `torch.func`, so that it also holds for what is computed backwards and inside `vmap`.
    """

    def __init__(self) -> None:
        super().__init__()
        self.was_needed = False

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        given = (args, kwargs or {})
        leaves = tree_leaves(given)
        # an operation that writes, or that reads bits as numbers, is left as it is
        dtypes = {v.dtype for v in leaves if isinstance(v, Tensor)}
        joins = not func._schema.is_mutable and not dtypes.isdisjoint(DOUBLE.values())
        casts = func is not torch.ops.aten.view.dtype

        def doubled(value: Any) -> Any:
            if casts and isinstance(value, torch.dtype) and value in DOUBLE:
                self.was_needed = True
                return DOUBLE[value]
            if joins and isinstance(value, Tensor) and value.dtype in DOUBLE:
                self.was_needed = True
                return value.to(DOUBLE[value.dtype])
            return value

        args, kwargs = tree_map(doubled, given)
        return func(*args, **kwargs)
