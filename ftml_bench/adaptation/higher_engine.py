"""The inner loop with `higher` (Grefenstette et al. 2019), used as its documentation shows: the reference engine."""

from __future__ import annotations

from contextlib import ExitStack

import torch
from torch import Tensor

from ftml_bench.adaptation.inner_loop import InnerLoop, Input, Parameters, without_labels
from ftml_bench.errors import UsageError


class HigherEngine(InnerLoop):
    """One task at a time through a functional copy of the model that `higher` patches together."""

    name = "higher"
    memories = ("unroll",)

    def predict(self, parameters: Parameters, support: tuple[Input, Tensor], query_x: Input) -> Tensor:
        """See `Engine.predict`."""
        x, query_x = without_labels(self.name, support[0], query_x)
        tasks = zip(x, support[1], query_x, strict=True)
        return torch.stack([self._task(parameters, *task) for task in tasks])

    def _task(self, parameters: Parameters, x: Tensor, y: Tensor, query_x: Tensor) -> Tensor:
        import higher  # only where it is used: the package is not maintained, and no other engine needs it

        named = dict(self.model.named_parameters())
        optimizer = torch.optim.SGD([named[n] for n in self.adapted], lr=self.inner_lr)
        # `track_higher_grads=False` would cut the path to the initial weights too; first-order MAML keeps that path
        # and treats only the inner gradients as constants.
        constant = None if self.second_order else _constant
        with ExitStack() as stack:
            try:
                model, inner = stack.enter_context(
                    higher.innerloop_ctx(self.model, optimizer, copy_initial_weights=False)
                )
            except TypeError as error:
                kind = type(self.model).__name__
                raise UsageError(f"higher cannot patch {kind} ({error}): use engine='loop'") from error
            model.update_params([parameters[name] for name in named])
            for _ in range(self.inner_steps):
                inner.step(self._support_loss(model, x, y), grad_callback=constant)
            return self._query_outputs(model, x, query_x)


def _constant(gradients: list[Tensor | None]) -> list[Tensor | None]:
    """The gradients cut from their graph; a frozen parameter has none."""
    return [None if g is None else g.detach() for g in gradients]
