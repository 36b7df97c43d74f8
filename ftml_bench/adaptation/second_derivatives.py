"""Operations whose second derivative PyTorch lacks or computes wrongly, in forms that have the right one.

Weight normalisation (Salimans & Kingma 2016): that of `torch._weight_norm`, which both of PyTorch's forms call, is
wrong, as `torch.autograd.gradgradcheck` finds; its value and first derivative are right. Attention: the fused kernels
have none, the plain one has.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.utils.parametrizations import _WeightNorm
from torch.nn.utils.weight_norm import WeightNorm
from torch.overrides import TorchFunctionMode


@contextmanager
def twice_differentiable(model: nn.Module) -> Iterator[None]:
    """Inside, what `model` computes has the second derivatives that it should have."""
    with sdpa_kernel(SDPBackend.MATH), _PlainWeightNorm() if has_weight_norm(model) else nullcontext():
        yield


class _PlainWeightNorm(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        function = _weight_norm if func is torch._weight_norm else func
        return function(*args, **(kwargs or {}))


def _weight_norm(v: Tensor, g: Tensor, dim: int = 0) -> Tensor:
    """g v / |v|, the norm over all dimensions but `dim`; over all of them if that is -1."""
    others = [d for d in range(v.dim()) if d != dim]
    return v * (g / v.square().sum(others, keepdim=True).sqrt())


def has_weight_norm(model: nn.Module) -> bool:
    """Whether any weight of the model is normalised, by a parametrisation or by the older hook."""
    return any(
        isinstance(part, (_WeightNorm, WeightNorm))
        for module in model.modules()
        for part in (module, *module._forward_pre_hooks.values())
    )
