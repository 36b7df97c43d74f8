"""The inner loop task by task, with `torch.func.functional_call`: the reference where `higher` cannot patch a model."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from ftml_bench.adaptation.graphs import random_state, replayed
from ftml_bench.adaptation.inner_loop import Criterion, Input, Parameters, UntreatableError
from ftml_bench.adaptation.steps import Weights, WrittenSteps
from ftml_bench.errors import UsageError


class LoopEngine(WrittenSteps):
    """One task at a time; exact for every model that `functional_call` takes."""

    name = "loop"

    def __init__(self, model: nn.Module, criterion: Criterion, **settings: Any) -> None:
        super().__init__(model, criterion, **settings)
        self._tried = False

    def predict(self, parameters: Parameters, support: tuple[Input, Tensor], query_x: Input) -> Tensor:
        """See `Engine.predict`; of a model that takes task labels each task has one, that of its first point."""
        fast = dict(parameters)
        if isinstance(support[0], tuple):
            return self._with_labels(fast, *support[0], support[1], query_x[0])
        if not self._tried:
            self._try(fast, support[0][0], support[1][0])
            self._tried = True
        memory = self._memory_for(len(query_x), lambda: (fast, support[0][0], support[1][0]))
        return torch.stack(
            [self._adapted_outputs(fast, x, y, query, memory) for x, y, query in zip(*support, query_x, strict=True)]
        )

    def _loss(self, fast: Weights, x: Tensor, y: Tensor) -> Tensor:
        return self._support_loss(partial(self._call, fast), x, y)

    def _outputs(self, fast: Weights, support_x: Tensor, query_x: Tensor) -> Tensor:
        return self._query_outputs(partial(self._call, fast), support_x, query_x)

    def _call(self, fast: Weights, x: Tensor) -> Tensor:
        return functional_call(self.model, fast, (x,))

    def _with_labels(self, fast: Weights, x: Tensor, labels: Tensor, y: Tensor, query_x: Tensor) -> Tensor:
        """Tasks of a model that takes task labels; unrolled."""
        if self.memory == "adjoint":
            raise UntreatableError(self.name, "with memory='adjoint' passes no task labels")
        return torch.stack([self._of_label(fast, *task) for task in zip(labels[:, 0], x, y, query_x, strict=True)])

    def _of_label(self, fast: Weights, label: Tensor, x: Tensor, y: Tensor, query_x: Tensor) -> Tensor:
        fast = dict(fast)

        def call(x: Tensor) -> Tensor:
            return functional_call(self.model, fast, (x, label.expand(len(x))))

        for _ in range(self.inner_steps):
            gradients = torch.autograd.grad(
                self._support_loss(call, x, y),
                [fast[n] for n in self.adapted],
                create_graph=self.second_order,
                allow_unused=True,  # the other tasks' heads are not in this one's loss
                materialize_grads=True,
            )
            self._move(fast, gradients)
        return self._query_outputs(call, x, query_x)

    def _try(self, fast: Weights, x: Tensor, y: Tensor) -> None:
        """Take one task's derivatives, to find out whether there are any.

        :raises UsageError: if the model changes its own buffers, or has no second derivative where one is needed.
        """
        generators = [
            v for layer in self.model.modules() for v in vars(layer).values() if isinstance(v, torch.Generator)
        ]
        states = [g.get_state() for g in generators]
        buffers = {name: (buffer, buffer._version) for name, buffer in self.model.named_buffers()}
        try:
            with replayed(random_state(x.device), x.device):
                leaves = {n: p.detach().requires_grad_(n in self.adapted) for n, p in fast.items()}
                loss = self._loss(leaves, x, y)
                if self.second_order and self.inner_steps:
                    gradients = torch.autograd.grad(loss, [leaves[n] for n in self.adapted], create_graph=True)
                    # not `grad`, which silently leaves out what is marked as differentiable once
                    sum(g.square().sum() for g in gradients).backward()  # type: ignore[union-attr]
        except (RuntimeError, NotImplementedError) as error:
            reason = str(error).strip().splitlines()[0]
            raise UsageError(f"no engine can treat {type(self.model).__name__}: {reason}") from error
        finally:
            for generator, state in zip(generators, states, strict=True):
                generator.set_state(state)
        for name, buffer in self.model.named_buffers():
            if buffer is not buffers[name][0] or buffer._version != buffers[name][1]:
                raise UsageError(
                    f"no engine can treat {type(self.model).__name__}: its buffer {name} changes when it is called, "
                    f"and would in every inner step"
                )
