"""The inner loop task by task, with `torch.func.functional_call`: the reference where `higher` cannot patch a model."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor
from torch.func import functional_call

from ftml_bench.adaptation.inner_loop import InnerLoop, Parameters


class LoopEngine(InnerLoop):
    """One task at a time; exact for every model that `functional_call` takes."""

    name = "loop"

    def predict(self, parameters: Parameters, support: tuple[Tensor, Tensor], query_x: Tensor) -> Tensor:
        """See `Engine.predict`."""
        return torch.stack([self._task(parameters, x, y, query) for x, y, query in zip(*support, query_x, strict=True)])

    def _task(self, parameters: Parameters, x: Tensor, y: Tensor, query_x: Tensor) -> Tensor:
        fast = dict(parameters)
        for _ in range(self.inner_steps):
            loss = self._support_loss(partial(self._call, fast), x, y)
            gradients = torch.autograd.grad(loss, [fast[n] for n in self.adapted], create_graph=self.second_order)
            for name, gradient in zip(self.adapted, gradients, strict=True):
                fast[name] = fast[name] - self.inner_lr * gradient
        return self._query_outputs(partial(self._call, fast), x, query_x)

    def _call(self, parameters: dict[str, Tensor], x: Tensor) -> Tensor:
        return functional_call(self.model, parameters, (x,))
