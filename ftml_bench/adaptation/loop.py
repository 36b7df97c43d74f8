"""The inner loop task by task, with `torch.func.functional_call`: the reference where `higher` cannot patch a model."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor
from torch.func import functional_call

from ftml_bench.adaptation.inner_loop import InnerLoop, Input, Parameters


class LoopEngine(InnerLoop):
    """One task at a time; exact for every model that `functional_call` takes."""

    name = "loop"

    def predict(self, parameters: Parameters, support: tuple[Input, Tensor], query_x: Input) -> Tensor:
        """See `Engine.predict`; of a model that takes task labels each task has one, that of its first point."""
        x, y = support
        label_of: list[Tensor | None] = [None] * len(y)
        if isinstance(x, tuple):
            x, labels = x
            query_x, _ = query_x
            label_of = list(labels[:, 0])
        tasks = zip(x, y, query_x, label_of, strict=True)
        return torch.stack([self._task(parameters, *task) for task in tasks])

    def _task(self, parameters: Parameters, x: Tensor, y: Tensor, query_x: Tensor, label: Tensor | None) -> Tensor:
        fast = dict(parameters)
        for _ in range(self.inner_steps):
            loss = self._support_loss(partial(self._call, fast, label), x, y)
            gradients = torch.autograd.grad(
                loss,
                [fast[n] for n in self.adapted],
                create_graph=self.second_order,
                # the other tasks' heads are not in this one's loss
                allow_unused=label is not None,
                materialize_grads=label is not None,
            )
            for name, gradient in zip(self.adapted, gradients, strict=True):
                fast[name] = fast[name] - self.inner_lr * gradient
        return self._query_outputs(partial(self._call, fast, label), x, query_x)

    def _call(self, parameters: dict[str, Tensor], label: Tensor | None, x: Tensor) -> Tensor:
        return functional_call(self.model, parameters, (x,) if label is None else (x, label.expand(len(x))))
