"""The inner steps of the engines that write them out, and the two ways to differentiate through them.

*Unrolled*, autograd keeps the graph of every step: fast, but memory grows with the steps. By the *adjoint* (see
`adjoint`), only the weights before each step are kept. The gradient is the same; every step is computed twice.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ftml_bench.adaptation.adjoint import Adjoint
from ftml_bench.adaptation.inner_loop import Criterion, InnerLoop, Parameters, UntreatableError
from ftml_bench.adaptation.rule import PLAIN
from ftml_bench.errors import UsageError
from ftml_bench.models.layer_state import kept, parts_of
from ftml_bench.random_state import RandomState, own_generator, random_state, replayed
from ftml_bench.recorded.graphs import fixed_by

Weights = dict[str, Tensor]


class WrittenSteps(InnerLoop):
    """Inner steps on weights by name, `fast`, of one task or with a leading task dimension, as the engine has it."""

    task_dimensions = 0

    def __init__(self, model: nn.Module, criterion: Criterion, **settings: Any) -> None:
        super().__init__(model, criterion, **settings)
        self._rule, self._every_step = PLAIN, False  # of the call at hand
        self._draws = False
        layer = own_generator(self.model)
        if layer and self.memory == "adjoint":
            raise UntreatableError(
                self.name, f"with memory='adjoint' cannot draw twice alike from the generator of {layer}"
            )

    def _loss(self, fast: Weights, x: Tensor, y: Tensor) -> Tensor:
        """The support loss; with a task dimension, the sum of the tasks' losses: each copy gets its own gradient."""
        raise NotImplementedError

    def _outputs(self, fast: Weights, support_x: Tensor, query_x: Tensor) -> Tensor:
        """The query's outputs at the weights `fast`."""
        raise NotImplementedError

    def _held(self, fast: Weights, function: Callable[[], list], first: int | None = None) -> list:
        """`function()`, while the model holds the weights `fast`, if the engine calls the model itself.

        :param first: norm layers take their statistics from so many first rows; None: from all.
        """
        return function()

    def _by_graphs(
        self, predict: Callable[..., Tensor], parameters: Parameters, x: Tensor, y: Tensor, query_x: Tensor
    ) -> Tensor:
        """`predict(parameters, x, y, query_x)`, on a GPU by CUDA graphs."""
        if not x.is_cuda or not self._is_plain or self.trains_others:
            return predict(parameters, x, y, query_x)
        names = list(parameters)

        def function(x: Tensor, y: Tensor, query_x: Tensor, *values: Tensor) -> Tensor:
            return predict(dict(zip(names, values, strict=True)), x, y, query_x)

        constants = (*names, self.inner_lr, self.inner_steps, self.second_order, fixed_by(self.model, self.criterion))
        return self.graphs.call(function, [x, y, query_x, *parameters.values()], constants)

    def _adapted_outputs(self, fast: Weights, x: Tensor, y: Tensor, query_x: Tensor, memory: str) -> Tensor:
        """The query's outputs after the inner steps, differentiable in `fast`, x and query_x."""
        wanted = self.trains_others or any(t.requires_grad for t in (*fast.values(), x, query_x))
        wanted = wanted and torch.is_grad_enabled()
        if self._rule.implicit and wanted:
            self._refuse_no_minimum()
            memory = "adjoint"
        if memory == "adjoint" and torch.is_grad_enabled() and y.requires_grad:
            raise UntreatableError(self.name, "by the adjoint takes no derivative in targets")
        if memory == "adjoint" or not wanted:  # which keeps no graph
            return Adjoint.apply(self, list(fast), x, y, query_x, *fast.values())
        # what asks for no gradient is adapted all the same
        fast = {
            n: w if w.requires_grad or n not in self.adapted else w.detach().requires_grad_() for n, w in fast.items()
        }
        if x.is_cuda and self._is_plain:
            return self._adapted_outputs_of_one_tensor(fast, x, y, query_x)
        after_steps = []
        for step in range(self.inner_steps):
            loss = self._inner_loss(fast, x, y)
            self._move(fast, self._derive(loss, [fast[n] for n in self.adapted], self.second_order), step)
            if self._every_step:
                after_steps.append(self._outputs(fast, x, query_x))
        return torch.stack(after_steps) if self._every_step else self._outputs(fast, x, query_x)

    def _refuse_no_minimum(self) -> None:
        """See that the derivative of a minimum can be taken."""
        if self._every_step:
            raise UsageError("every_step: the derivative of a minimum (implicit) is of the last step alone")
        if not self.second_order:
            raise UsageError("second_order=False: the derivative of a minimum (implicit) is of second order")
        if own_generator(self.model) or self.trains_others:
            raise UntreatableError(self.name, "takes no derivative of a minimum of what it cannot compute twice alike")

    @property
    def _is_plain(self) -> bool:
        """Whether the call at hand is of plain gradient steps, and asks for nothing but the outputs at their end."""
        return self._rule.is_plain and not self._every_step

    def _inner_loss(self, fast: Weights, x: Tensor, y: Tensor) -> Tensor:
        """The support loss, and the penalty of the inner loop if it has one."""
        return self._rule.penalised(self._loss(fast, x, y), fast)

    def _derive(self, loss: Tensor, weights: list[Tensor], create_graph: bool) -> list[Tensor]:
        """The (clipped) gradients of the support loss; zero where the loss does not depend on a weight."""
        gradients = torch.autograd.grad(
            loss, weights, create_graph=create_graph, allow_unused=True, materialize_grads=True
        )
        return self._clipped(gradients)

    def _adapted_outputs_of_one_tensor(self, fast: Weights, x: Tensor, y: Tensor, query_x: Tensor) -> Tensor:
        """The same with all adapted weights in one tensor, `flat`.

        A step on it is one kernel instead of one for each weight, which is what counts on a GPU; on a CPU it is slower.
        """
        flat = self._joined(fast)
        for _ in range(self.inner_steps):
            (gradient,) = self._derive(self._loss(self._parted(flat, fast), x, y), [flat], self.second_order)
            flat = torch.sub(flat, gradient, alpha=self.inner_lr)
        return self._outputs(self._parted(flat, fast), x, query_x)

    def _joined(self, fast: Weights) -> Tensor:
        """The adapted weights side by side, behind the task dimension if the engine has one."""
        return torch.cat([fast[n].flatten(self.task_dimensions) for n in self.adapted], dim=self.task_dimensions)

    def _parted(self, flat: Tensor, fast: Weights) -> Weights:
        """`fast` with the adapted weights from where they lie in `flat`."""
        sizes = [fast[n].shape[self.task_dimensions :].numel() for n in self.adapted]
        pieces = flat.split(sizes, dim=self.task_dimensions)
        return {**fast, **{n: piece.view(fast[n].shape) for n, piece in zip(self.adapted, pieces, strict=True)}}

    def _move(self, fast: Weights, gradients: Any, step: int) -> None:
        """One gradient step, in the dictionary.

        :param step: which, from 0.
        """
        for name, gradient in zip(self.adapted, gradients, strict=True):
            if self._rule.rates is None:
                fast[name] = torch.sub(fast[name], gradient, alpha=self.inner_lr)
            else:
                fast[name] = fast[name] - self._rate(fast, step, name) * gradient

    def _rate(self, fast: Weights, step: int, name: str) -> Tensor:
        """The rate of a weight, spread over it."""
        rate = self._rule.rate(fast, step, name)
        return rate.reshape(*rate.shape, *[1] * (fast[name].dim() - rate.dim()))

    def _memory_for(self, tasks: int, one_task: Callable[[], tuple[Weights, Tensor, Tensor]]) -> str:
        """ "unroll" or "adjoint"; where the engine may choose, by what the graph of all steps would take.

        :param one_task: the weights and the support set (x, y) of a single task, in the engine's own form.
        """
        if self.memory == "auto":
            # first order keeps no graph, and what cannot be drawn again cannot be computed again
            needs_graph = self.trains_others or self.criterion_sees_weights
            if not self.second_order or own_generator(self.model) or needs_graph:
                return "unroll"
            fast, x, y = one_task()
            if y.requires_grad:
                return "unroll"
            if x.shape not in self._step_bytes:
                self._step_bytes[x.shape] = self._bytes_of_a_step(fast, x, y)
            # the query's pass counts as one more step
            graph = tasks * (self.inner_steps + 1) * self._step_bytes[x.shape]
            if graph <= self.memory_budget:
                return "unroll"
            self.chosen_memory = "adjoint"
            self.memory_note = f"unrolled steps would keep {graph >> 20} MiB, more than {self.memory_budget >> 20}"
            return "adjoint"
        return self.memory

    def _bytes_of_a_step(self, fast: Weights, x: Tensor, y: Tensor) -> int:
        """What autograd keeps of one inner step of one task, counted while the step is taken."""
        found: dict[int, int] = {}  # by storage

        def count(tensor: Tensor) -> Tensor:
            if tensor.layout is torch.strided:  # sparse gradients are small
                storage = tensor.untyped_storage()
                found[storage.data_ptr()] = storage.nbytes()
            return tensor

        # what asks for no gradient is adapted all the same
        leaves = {n: p.detach().clone().requires_grad_(p.requires_grad or n in self.adapted) for n, p in fast.items()}
        parts = [*parts_of(self.model), *parts_of(self.criterion)]
        with replayed(random_state(x.device), x.device), kept(parts), torch.enable_grad():
            with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
                loss = self._loss(leaves, x, y)
                gradients = self._derive(loss, [leaves[n] for n in self.adapted], True)
            for known in (*leaves.values(), x, y):
                found.pop(known.untyped_storage().data_ptr(), None)
            # the new weights are kept too
            return sum(found.values()) + sum(g.numel() * g.element_size() for g in gradients)

    def _drew(self, before: RandomState | None, x: Tensor) -> bool:
        """Whether layers that draw, such as dropout, have drawn since: the adjoint must draw the same again."""
        if before is None:  # while a graph is recorded, after calls that were not
            if self._draws:
                raise RuntimeError("the adjoint draws again what layers such as dropout drew")
            return False
        self._draws = before != random_state(x.device)
        return self._draws

    # -- what the adjoint asks for; nothing of it leaves a graph behind

    def _gradients(self, fast: Weights, x: Tensor, y: Tensor) -> list[Tensor]:
        """The gradients of the support loss in the adapted weights."""
        leaves = _leaves(fast, self.adapted)
        moved = {**fast, **leaves}
        with torch.enable_grad():
            return self._held(moved, lambda: self._derive(self._inner_loss(moved, x, y), list(leaves.values()), False))

    def _hessian_product(
        self, fast: Weights, x: Tensor, y: Tensor, direction: list[Tensor], wanted: list[str], wants_x: bool
    ) -> list[Tensor | None]:
        """The derivative of <gradients, direction> in the weights `wanted`, and in x last; None is zero."""
        leaves = _leaves(fast, dict.fromkeys([*self.adapted, *wanted]))
        x = x.detach().requires_grad_(wants_x)
        moved = {**fast, **leaves}
        inputs = [leaves[n] for n in wanted] + ([x] if wants_x else [])

        def products() -> list[Tensor | None]:
            with torch.enable_grad():
                gradients = self._derive(self._inner_loss(moved, x, y), [leaves[n] for n in self.adapted], True)
            # a gradient that depends on nothing (of a linear loss) has no graph
            pairs = [(g, d) for g, d in zip(gradients, direction, strict=True) if g.requires_grad]
            if not pairs or not inputs:
                return [None] * len(inputs)
            return list(torch.autograd.grad([g for g, _ in pairs], inputs, [d for _, d in pairs], allow_unused=True))

        return self._held(moved, products) + ([] if wants_x else [None])

    def _pullback(
        self, fast: Weights, x: Tensor, query_x: Tensor, cotangent: Tensor, wanted: list[str], wants: tuple[bool, bool]
    ) -> list[Tensor | None]:
        """The derivative of <outputs, cotangent> in the weights `wanted`, in x and in query_x; None is zero."""
        leaves = _leaves(fast, wanted)
        x, query_x = x.detach().requires_grad_(wants[0]), query_x.detach().requires_grad_(wants[1])
        moved = {**fast, **leaves}
        inputs = [*leaves.values(), *(t for t, wanted_too in zip((x, query_x), wants, strict=True) if wanted_too)]

        def pulled() -> list[Tensor | None]:
            with torch.enable_grad():
                outputs = self._outputs(moved, x, query_x)
            return list(torch.autograd.grad(outputs, inputs, cotangent, allow_unused=True))

        found = iter(self._held(moved, pulled, len(x) if self.query_needs_support else None))
        return [next(found) for _ in wanted] + [next(found) if wanted_too else None for wanted_too in wants]


def _leaves(fast: Weights, names: Any) -> Weights:
    return {name: fast[name].detach().requires_grad_() for name in names}
