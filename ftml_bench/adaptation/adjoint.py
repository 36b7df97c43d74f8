"""The reverse pass over inner steps that keeps no graph of them: only the weights before each step.

It multiplies by the Hessian of the support loss at these weights, so that every step is computed twice.
"""

from __future__ import annotations

from copy import copy
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ftml_bench.adaptation.rule import RATE
from ftml_bench.derivatives import once_differentiable
from ftml_bench.random_state import RandomState, random_state, replayed

if TYPE_CHECKING:
    from ftml_bench.adaptation.steps import Weights, WrittenSteps


class Adjoint(torch.autograd.Function):
    """The inner steps and the query's outputs; the backward goes over the steps in reverse.

    With w' = w - r g(w) and a cotangent v of w', that of w is v - H(w) r v, where H u is the derivative of <g, u>, and
    that of the rate r is -v g. Weights that are not adapted, x and the anchor of a penalty collect the same term.
    """

    @staticmethod
    def forward(ctx, engine: WrittenSteps, names: list[str], x: Tensor, y: Tensor, query_x: Tensor, *values: Tensor):
        fast = dict(zip(names, values, strict=True))
        kept, states, states_of_outputs, outputs = [], [], [], []
        for step in range(engine.inner_steps):
            if not engine._rule.implicit:
                kept.append([fast[n] for n in engine.adapted])
            states.append(_state_or_none(x))
            engine._move(fast, engine._gradients(fast, x, y), step)
            if engine._every_step:
                states_of_outputs.append(_state_or_none(x))
                outputs.append(engine._outputs(fast, x, query_x))
        if not engine._every_step:
            states_of_outputs.append(_state_or_none(x))
            outputs.append(engine._outputs(fast, x, query_x))
        ctx.save_for_backward(x, y, query_x, *values)
        # with the settings of now: they may be others by the time of the backward pass
        ctx.engine, ctx.names = copy(engine), names
        if isinstance(engine.criterion, nn.Module):
            ctx.engine.criterion = copy(engine.criterion)
        ctx.modes = _modes(engine.model)
        kind = x.device.type
        ctx.precision = (kind, torch.get_autocast_dtype(kind), torch.is_autocast_enabled(kind))
        ctx.kept = [*kept, [fast[n] for n in engine.adapted]]
        drew = engine._drew([*states, *states_of_outputs][0], x)
        ctx.states, ctx.states_of_outputs = (
            some if drew else [None] * len(some) for some in (states, states_of_outputs)
        )
        return torch.stack(outputs) if engine._every_step else outputs[0]

    @staticmethod
    @once_differentiable
    def backward(ctx, cotangent: Tensor):
        modes = _modes(ctx.engine.model)
        _set_modes(ctx.modes)
        try:
            with torch.autocast(*ctx.precision):
                reverse = _OfMinimum if ctx.engine._rule.implicit else _Reverse
                return reverse(ctx).gradients(cotangent)
        finally:
            _set_modes(modes)


class _Reverse:
    """The reverse pass: cotangents of weights and what travels beside them, of x and of the query."""

    def __init__(self, ctx) -> None:
        self.engine: WrittenSteps = ctx.engine
        self.x, self.y, self.query_x, *values = ctx.saved_tensors
        self.first = dict(zip(ctx.names, values, strict=True))
        _, _, self.wants_x, _, self.wants_query, *wants = ctx.needs_input_grad
        self.wanted = [name for name, w in zip(ctx.names, wants, strict=True) if w]
        # weights that need no derivative themselves may still carry one from step to step
        self.carried = list(dict.fromkeys([*self.wanted, *self.engine.adapted]))
        self.kept, self.states, self.states_of_outputs = ctx.kept, ctx.states, ctx.states_of_outputs
        self.v: dict[str, Tensor] = {}
        self.reached: set[str] = set()  # what outputs or losses depend on; the rest has no gradient, as in autograd
        self.of_x: Tensor | None = None
        self.of_query: Tensor | None = None

    def gradients(self, cotangent: Tensor) -> tuple[Tensor | None, ...]:
        """Those of <outputs, cotangent> in every argument of `forward`."""
        steps, every = self.engine.inner_steps, self.engine._every_step
        self._add_outputs(steps, cotangent[-1] if every else cotangent)
        for step in reversed(range(steps)):
            self._pass(step)
            if every and step:
                self._add_outputs(step, cotangent[step - 1])
        return None, None, self.of_x, None, self.of_query, *self._of_names()

    def _of_names(self) -> list[Tensor | None]:
        """The gradients in `values`, in order."""
        wanted = self.reached.intersection(self.wanted)
        return [self.v[name] if name in wanted else None for name in self.first]

    def _note_reached(self, name: str, gradient: Tensor | None) -> None:
        if gradient is not None and (name not in self.engine.unused or bool(gradient.any())):
            self.reached.add(name)

    def _add_outputs(self, steps: int, cotangent: Tensor) -> None:
        """What the outputs after so many steps add."""
        state = self.states_of_outputs[steps - 1 if self.engine._every_step else 0]
        with replayed(state, self.x.device):
            *found, of_x, of_query = self.engine._pullback(
                self._weights(steps), self.x, self.query_x, cotangent, self.carried, (self.wants_x, self.wants_query)
            )
        for name, more in zip(self.carried, found, strict=True):
            total = _sum(self.v.get(name), more)
            self.v[name] = torch.zeros_like(self.first[name]) if total is None else total
            self._note_reached(name, more)
        self.of_x, self.of_query = _sum(self.of_x, of_x), _sum(self.of_query, of_query)

    def _pass(self, step: int) -> None:
        """Carry the cotangents from the weights after a step to those before it."""
        engine, learned = self.engine, self.engine._rule.rates is not None
        fast = self._weights(step)
        direction = [self.v[n] * engine._rate(fast, step, n) if learned else self.v[n] for n in engine.adapted]
        if learned and any(name.startswith(RATE) for name in self.wanted):
            self._add_to_rates(fast, step)
        if not engine.second_order:
            return
        scale = 1.0 if learned else engine.inner_lr
        with replayed(self.states[step], self.x.device):
            *products, of_x = engine._hessian_product(fast, self.x, self.y, direction, self.carried, self.wants_x)
        for name, product in zip(self.carried, products, strict=True):
            if product is not None:
                self.v[name] = torch.sub(self.v[name], product, alpha=scale)
            self._note_reached(name, product)
        self.of_x = _sum(self.of_x, None if of_x is None else torch.mul(of_x, -scale))

    def _add_to_rates(self, fast: Weights, step: int) -> None:
        with replayed(self.states[step], self.x.device):
            gradients = self.engine._gradients(fast, self.x, self.y)
        for name, gradient in zip(self.engine.adapted, gradients, strict=True):
            place = self.engine._rule.place(step, name)
            if place in self.v:
                product = self.v[name] * gradient
                over = list(range(self.v[place].dim(), product.dim()))
                self.reached.add(place)
                self.v[place] = self.v[place] - (product.sum(over) if over else product)

    def _weights(self, steps: int) -> Weights:
        """Those after so many steps, and what travels beside them."""
        return {**self.first, **dict(zip(self.engine.adapted, self.kept[steps], strict=True))}


class _OfMinimum(_Reverse):
    """The derivative of outputs at θ, the minimum of L(θ) + λ/2 ‖θ - a‖² (Rajeswaran et al. 2019, Lemma 1).

    With a cotangent v of θ and (H + λ) d = v, what θ depends on collects the derivative of -<g(θ), d>, g that of the
    penalised loss: the anchor a collects λ d = (I + H/λ)⁻¹ v. Where the steps began does not matter.
    """

    def gradients(self, cotangent: Tensor) -> tuple[Tensor | None, ...]:
        engine = self.engine
        self._add_outputs(-1, cotangent)
        fast, state = self._weights(-1), [*self.states, *self.states_of_outputs][0]
        with replayed(state, self.x.device):
            direction = self._solved(fast, state)
            *products, of_x = engine._hessian_product(fast, self.x, self.y, direction, self.carried, self.wants_x)
        for name, product in zip(self.carried, products, strict=True):
            if name in engine.adapted:
                self.v[name] = torch.zeros_like(self.v[name])
            elif product is not None:
                self.v[name] = self.v[name] - product
            self._note_reached(name, product)
        self.of_x = _sum(self.of_x, None if of_x is None else -of_x)
        return None, None, self.of_x, None, self.of_query, *self._of_names()

    def _solved(self, fast: Weights, state: RandomState | None) -> list[Tensor]:
        """d by conjugate gradients, each task by itself."""
        engine = self.engine
        rest = [self.v[name] for name in engine.adapted]
        found, way, size = [torch.zeros_like(r) for r in rest], rest, self._products(rest, rest)
        for _ in range(engine._rule.implicit):
            with replayed(state, self.x.device):
                *products, _ = engine._hessian_product(fast, self.x, self.y, way, engine.adapted, False)
            curved = [torch.zeros_like(w) if p is None else p for w, p in zip(way, products, strict=True)]
            length = _ratio(size, self._products(way, curved))
            found = [f + _spread(length, w) * w for f, w in zip(found, way, strict=True)]
            rest = [r - _spread(length, c) * c for r, c in zip(rest, curved, strict=True)]
            before, size = size, self._products(rest, rest)
            way = [r + _spread(_ratio(size, before), w) * w for r, w in zip(rest, way, strict=True)]
        return found

    def _products(self, a: list[Tensor], b: list[Tensor]) -> Tensor:
        """<a, b> of each task."""
        parts = [(x * y).flatten(self.engine.task_dimensions).sum(-1) for x, y in zip(a, b, strict=True)]
        return torch.stack(parts).sum(0)


def _ratio(a: Tensor, b: Tensor) -> Tensor:
    """a / b; 0 where a is 0: there is nothing left to go."""
    return torch.where(a == 0, a, a / b)


def _spread(of_tasks: Tensor, like: Tensor) -> Tensor:
    """A number of each task, to be multiplied with tensors of its weights."""
    return of_tasks.reshape(*of_tasks.shape, *[1] * (like.dim() - of_tasks.dim()))


def _sum(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    """Of two gradients, of which None is zero."""
    return b if a is None else a if b is None else a + b


def _state_or_none(x: Tensor) -> RandomState | None:
    """The random states that layers draw from; None while a CUDA graph is recorded, which has no state to read."""
    recording = x.is_cuda and torch.cuda.is_current_stream_capturing()
    return None if recording else random_state(x.device)


def _modes(model: nn.Module) -> list[tuple[nn.Module, bool]]:
    return [(module, module.training) for module in model.modules()]


def _set_modes(modes: list[tuple[nn.Module, bool]]) -> None:
    for module, training in modes:
        if module.training != training:
            module.training = training
