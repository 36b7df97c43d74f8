"""The inner loop with `higher` (Grefenstette et al. 2019), used as its documentation shows: the reference engine."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from ftml_bench.adaptation.inner_loop import (
    Criterion,
    InnerLoop,
    Input,
    Parameters,
    UntreatableError,
    without_labels,
)
from ftml_bench.adaptation.refusals import hooked
from ftml_bench.adaptation.rule import PLAIN, InnerRule
from ftml_bench.recorded.graphs import first_line

Gradients = list[Tensor | None]


class HigherEngine(InnerLoop):
    """One task at a time through a functional copy of the model that `higher` patches together."""

    name = "higher"
    memories = ("unroll",)

    def __init__(self, model: nn.Module, criterion: Criterion, **settings: Any) -> None:
        super().__init__(model, criterion, **settings)
        if hooked(self.model):
            raise UntreatableError(self.name, f"leaves out the hooks of {hooked(self.model)}")

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
        if rule.implicit:
            raise UntreatableError(self.name, "takes no derivative of a minimum (implicit)")
        x, query_x = without_labels(self.name, support[0], query_x)
        wanted = torch.is_grad_enabled()
        with torch.enable_grad():
            sets = zip(x, support[1], query_x, strict=True)
            tasks = [self._task(parameters, rule, every_step, *task) for task in sets]
            outputs = torch.stack([torch.stack(t) if every_step else t[-1] for t in tasks], dim=1 if every_step else 0)
        return outputs if wanted else outputs.detach()

    def _task(
        self, parameters: Parameters, rule: InnerRule, every_step: bool, x: Tensor, y: Tensor, query_x: Tensor
    ) -> list[Tensor]:
        """The query's outputs after every step, or after the last alone."""
        import higher  # only where it is used: the package is not maintained, and no other engine needs it

        named = dict(self.model.named_parameters())
        beside = rule.tensors(parameters, self.adapted)
        optimizer = torch.optim.SGD([{"params": [named[n]]} for n in self.adapted], lr=self.inner_lr)
        with ExitStack() as stack:
            try:
                model, inner = stack.enter_context(
                    higher.innerloop_ctx(self.model, optimizer, copy_initial_weights=False)
                )
            except TypeError as error:
                kind = type(self.model).__name__
                raise UntreatableError(self.name, f"cannot patch {kind} ({first_line(error)})") from error
            # what asks for no gradient is adapted all the same
            model.update_params(
                [
                    p if p.requires_grad else p.detach().requires_grad_(n in self.adapted)
                    for n, p in ((name, parameters[name]) for name in named)
                ]
            )
            outputs = []
            for step in range(self.inner_steps):
                fast = dict(zip(named, model.parameters(), strict=True))
                loss = rule.penalised(self._support_loss(model, x, y), beside | fast)
                rates = None if rule.rates is None else {"lr": [rule.rate(beside, step, n) for n in self.adapted]}
                inner.step(loss, override=rates, grad_callback=self._callback())
                if every_step or step == self.inner_steps - 1:
                    outputs.append(self._query_outputs(model, x, query_x))
            return outputs or [self._query_outputs(model, x, query_x)]

    def _callback(self) -> Callable[[Gradients], Gradients] | None:
        """What becomes of the inner gradients before a step: clipped, and in first order cut from their graph.

        `higher`'s own `track_higher_grads=False` would cut the path to the initial weights too; first-order MAML keeps
        that path and treats the inner gradients alone as constants.
        """
        if self.second_order and self.inner_clip is None:
            return None

        def call(gradients: Gradients) -> Gradients:
            known = iter(self._clipped(g for g in gradients if g is not None))  # a frozen parameter has none
            found = [None if g is None else next(known) for g in gradients]
            return found if self.second_order else [None if g is None else g.detach() for g in found]

        return call
