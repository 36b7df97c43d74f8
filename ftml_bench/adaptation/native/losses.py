"""The loss as the compiled part takes it: two kinds by itself, any other by calls back."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ftml_bench.adaptation.inner_loop import Criterion, scalar
from ftml_bench.adaptation.native.library import CALLED_BACK, CROSS_ENTROPY, SQUARED_ERROR, Callback, Job
from ftml_bench.adaptation.refusals import hooked


@dataclass(frozen=True)
class Plain:
    """Cross entropy or squared error."""

    kind: int
    is_mean: bool = True
    weight: Tensor | None = None
    ignore_index: int = -100
    smoothing: float = 0.0

    def fits(self, y: Tensor, outputs: int, dtype: torch.dtype) -> bool:
        """Whether targets (T, N, ...) are of the kind for outputs (T, N, outputs)."""
        if self.kind == SQUARED_ERROR:
            return y.dtype == dtype and y.shape[2:] == (outputs,)
        if y.dtype != torch.int64 or y.dim() != 2 or not y.numel():
            return False
        if self.weight is not None and (self.weight.dtype != dtype or self.weight.shape != (outputs,)):
            return False
        return bool((((y >= 0) & (y < outputs)) | (y == self.ignore_index)).all())

    def tell(self, job: Job, y: Tensor) -> tuple[Any, ...]:
        """Write it into a job; what is returned must live as long."""
        y = y.contiguous()
        weight = None if self.weight is None else self.weight.detach().contiguous()
        job.loss, job.is_mean = self.kind, self.is_mean
        job.targets = y.data_ptr()
        job.class_weights = None if weight is None else weight.data_ptr()
        job.smoothing, job.ignore = self.smoothing, self.ignore_index
        return y, weight


def plain(criterion: Criterion) -> Plain | None:
    """A criterion that is computed without calls back."""
    if criterion is F.cross_entropy:
        return Plain(CROSS_ENTROPY)
    if criterion is F.mse_loss:
        return Plain(SQUARED_ERROR)
    if not isinstance(criterion, nn.Module) or hooked(criterion):
        return None
    if type(criterion) is nn.MSELoss and criterion.reduction != "none":
        return Plain(SQUARED_ERROR, criterion.reduction == "mean")
    if type(criterion) is nn.CrossEntropyLoss and criterion.reduction != "none":
        is_mean = criterion.reduction == "mean"
        weight, ignored, smoothing = criterion.weight, criterion.ignore_index, criterion.label_smoothing
        return Plain(CROSS_ENTROPY, is_mean, weight, ignored, smoothing)
    return None


class CalledBack:
    """Any criterion: its derivatives in the outputs of a task, by PyTorch."""

    def __init__(self, criterion: Criterion, y: Tensor, outputs: int, dtype: torch.dtype) -> None:
        self._criterion = criterion
        self._y = y
        self._shape = (y.shape[1], outputs)
        self._dtype = dtype
        self._callback = Callback(self._call)
        self.error: Exception | None = None

    def tell(self, job: Job) -> tuple[Any, ...]:
        """Write it into a job; what is returned must live as long."""
        job.loss, job.callback, job.threads = CALLED_BACK, self._callback, 1
        return (self._callback,)

    def _call(self, task: int, what: int, outputs: int, direction: int, result: int) -> int:
        try:
            found = self._derive(task, self._tensor(outputs), self._tensor(direction) if what else None)
            self._tensor(result).copy_(found)
        except Exception as error:  # whatever a criterion of others raises goes on where the library was called
            self.error = error
            return 1
        return 0

    def _derive(self, task: int, outputs: Tensor, direction: Tensor | None) -> Tensor:
        """The gradient of the loss; with a direction, the product of its Hessian with that."""
        with torch.enable_grad():
            outputs = outputs.clone().requires_grad_()
            loss = scalar(self._criterion(outputs, self._y[task]))
            zero = partial(torch.autograd.grad, allow_unused=True, materialize_grads=True)
            (gradient,) = zero(loss, outputs, create_graph=direction is not None)
            if direction is None or not gradient.requires_grad:
                return gradient if direction is None else torch.zeros_like(outputs)
            return zero(gradient, outputs, direction)[0]

    def _tensor(self, address: int) -> Tensor:
        numbers = self._shape[0] * self._shape[1]
        kind = ctypes.c_double if self._dtype == torch.float64 else ctypes.c_float
        return torch.frombuffer((kind * numbers).from_address(address), dtype=self._dtype).view(self._shape)
