"""The inner loop of all tasks at once by `torch.func.vmap`, for models that have no batched form.

A derivative that is taken outside of vmap, through it, is silently wrong in the second order where stock norm layers
stand in the model (pytorch/functorch issue 534). So every derivative here is one task's, taken inside vmap, and the
adjoint joins them: exact for every layer, in memory that does not grow with the steps.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import grad, vjp

from ftml_bench.adaptation.inner_loop import (
    Criterion,
    Input,
    Parameters,
    UntreatableError,
    without_labels,
)
from ftml_bench.adaptation.refusals import hooked
from ftml_bench.adaptation.rule import PLAIN, InnerRule, weights_among
from ftml_bench.adaptation.steps import Weights, WrittenSteps
from ftml_bench.adaptation.weights import call_with


class VmapEngine(WrittenSteps):
    """All tasks in one pass for any model that `torch.func` can treat.

    :raises UsageError (UntreatableError): at the first `predict`, for a model that it cannot.
    """

    name = "vmap"
    memories = ("adjoint",)
    by_autograd = False
    task_dimensions = 1

    def __init__(self, model: nn.Module, criterion: Criterion, **settings: Any) -> None:
        super().__init__(model, criterion, **settings)
        if hooked(self.model):
            raise UntreatableError(self.name, f"would hand tensors of vmap to the hooks of {hooked(self.model)}")

    def predict(
        self,
        parameters: Parameters,
        support: tuple[Input, Tensor],
        query_x: Input,
        *,
        rule: InnerRule = PLAIN,
        every_step: bool = False,
    ) -> Tensor:
        """See `Engine.predict`."""
        self._rule, self._every_step = rule, every_step
        x, query_x = without_labels(self.name, support[0], query_x)
        if torch.is_autocast_enabled(x.device.type):  # of which not every operator under vmap takes notice
            raise UntreatableError(self.name, "takes no autocast")
        if x.requires_grad or query_x.requires_grad:
            raise UntreatableError(self.name, "takes no derivative in its inputs")
        return self._by_graphs(self._predict, parameters, x, support[1], query_x)

    def _predict(self, parameters: Parameters, x: Tensor, y: Tensor, query_x: Tensor) -> Tensor:
        copies = {
            name: p.expand(len(x), *p.shape)
            for name, p in {**parameters, **self._rule.tensors(parameters, self.adapted)}.items()
        }
        return self._adapted_outputs(copies, x, y, query_x, "adjoint")

    def _task_loss(self, fast: Weights, x: Tensor, y: Tensor) -> Tensor:
        return self._rule.penalised(self._support_loss(partial(self._call, fast), x, y), fast)

    def _task_outputs(self, fast: Weights, support_x: Tensor, query_x: Tensor) -> Tensor:
        return self._query_outputs(partial(self._call, fast), support_x, query_x)

    def _call(self, fast: Weights, x: Tensor) -> Tensor:
        return call_with(self.model, weights_among(fast), x)

    def _outputs(self, fast: Weights, support_x: Tensor, query_x: Tensor) -> Tensor:
        return _by_task(self._task_outputs)(fast, support_x, query_x)

    def _task_gradients(self, fast: Weights, x: Tensor, y: Tensor) -> list[Tensor]:
        def loss(adapted: Weights) -> Tensor:
            return self._task_loss({**fast, **adapted}, x, y)

        return self._clipped(grad(loss)({n: fast[n] for n in self.adapted}).values())

    def _gradients(self, fast: Weights, x: Tensor, y: Tensor) -> list[Tensor]:
        return _by_task(self._task_gradients)(fast, x, y)

    def _hessian_product(
        self, fast: Weights, x: Tensor, y: Tensor, direction: list[Tensor], wanted: list[str], wants_x: bool
    ) -> list[Tensor | None]:
        def product(fast: Weights, x: Tensor, y: Tensor, direction: list[Tensor]) -> list[Tensor]:
            pull = vjp(lambda some: self._task_gradients({**fast, **some}, x, y), {n: fast[n] for n in wanted})[1]
            return list(pull(direction)[0].values())

        return [*_by_task(product)(fast, x, y, direction), None]

    def _pullback(
        self, fast: Weights, x: Tensor, query_x: Tensor, cotangent: Tensor, wanted: list[str], wants: tuple[bool, bool]
    ) -> list[Tensor | None]:
        def pulled(fast: Weights, x: Tensor, query_x: Tensor, cotangent: Tensor) -> list[Tensor]:
            pull = vjp(lambda some: self._task_outputs({**fast, **some}, x, query_x), {n: fast[n] for n in wanted})[1]
            return list(pull(cotangent)[0].values())

        return [*_by_task(pulled)(fast, x, query_x, cotangent), None, None]


def _by_task(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function` of one task over the leading dimension of everything; layers that draw, draw for each task anew."""
    return torch.func.vmap(function, randomness="different")
