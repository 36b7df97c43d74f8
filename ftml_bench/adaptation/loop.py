"""The inner loop task by task, with `torch.func.functional_call`: the reference where `higher` cannot patch a model."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from ftml_bench.adaptation.inner_loop import Criterion, Parameters
from ftml_bench.adaptation.steps import Weights, WrittenSteps, random_state, replayed
from ftml_bench.errors import UsageError


class LoopEngine(WrittenSteps):
    """One task at a time; exact for every model that `functional_call` takes."""

    name = "loop"

    def __init__(self, model: nn.Module, criterion: Criterion, **settings: Any) -> None:
        super().__init__(model, criterion, **settings)
        self._tried = False

    def predict(self, parameters: Parameters, support: tuple[Tensor, Tensor], query_x: Tensor) -> Tensor:
        """See `Engine.predict`."""
        fast = dict(parameters)
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
