"""The engine `native`: meta-gradients of plain stacks task by task, by hand-derived passes in C++ (`src`).

Every task goes from its first step to its last in one thread, maps as (rows, height, width, channels), so that what it
works on stays in the cache; the Hessian products are tangents of the backward pass, with nothing computed twice as
long as what the passes keep fits.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ftml_bench.adaptation.batched import BatchedEngine
from ftml_bench.adaptation.inner_loop import Criterion, Input, Parameters, UntreatableError
from ftml_bench.adaptation.native.call import Call
from ftml_bench.adaptation.native.library import NotBuiltError, library
from ftml_bench.adaptation.native.program import Program, why_not_native
from ftml_bench.adaptation.rule import PLAIN, InnerRule
from ftml_bench.adaptation.second_derivatives import twice_differentiable
from ftml_bench.adaptation.steps import Weights
from ftml_bench.adaptation.weights import call_with
from ftml_bench.derivatives import once_differentiable
from ftml_bench.models.norm import Moments, batch_statistics

Plainly = Callable[[Weights, Tensor], Tensor]  # of weights and query x (T, Q, *input): the outputs (T, Q, F)
PRECISIONS = (torch.float32, torch.float64)


def see_that_it_is_built() -> None:
    """See that there is a library.

    :raises UsageError: if there is none.
    """
    try:
        library()
    except NotBuiltError as reason:
        raise UntreatableError(NativeEngine.name, str(reason)) from None


class NativeEngine(BatchedEngine):
    """Task by task in C++; takes most of the stacks that `batched` takes, on a CPU.

    What the passes of the inner steps keep, they keep up to `MOST_BYTES`; beyond that they are computed once more on
    the way back, from the weights before each step.
    """

    name = "native"
    by_autograd = False
    adapts_by_itself = True

    def __init__(self, model: nn.Module, criterion: Criterion, **settings: Any) -> None:
        see_that_it_is_built()
        self.library = library()
        super().__init__(model, criterion, **settings)
        reason = why_not_native(self.layers)
        if reason:
            raise UntreatableError(self.name, reason)
        if any(p.device.type != "cpu" for p in self.model.parameters()):
            raise UntreatableError(self.name, "takes tensors on a CPU only")
        self._programs: dict[Any, Program] = {}
        self._moments: dict[str, Moments] | None = None  # of the last call
        parameters = dict(self.model.named_parameters())
        self._own_names = list(self._copies(parameters, 1))  # behind the common layers
        self._shapes = {name: p.shape for name, p in parameters.items()}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "library": None}  # which cannot be copied

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ |= {**state, "library": library()}

    def predict_each(
        self, parameters: Parameters, support: tuple[Tensor, Tensor], query_x: Tensor, memory: str
    ) -> Tensor:
        """See `Engine.predict_each`."""
        if not self.takes_each:
            return super().predict_each(parameters, support, query_x, memory)
        self._refuse_shapes(support[0])
        return self._outputs_of(dict(parameters), *support, query_x, memory=memory, each=True)

    def choose_memory(self, parameters: Parameters, support: tuple[Tensor, Tensor]) -> str:
        """See `Engine.choose_memory`."""
        if self.memory == "auto":
            x, y = support
            self.chosen_memory = Call(self, self._own_weights(parameters), x, y, x, memory=self.memory).memory
        return self.chosen_memory

    def _predict(self, parameters: Parameters, x: Tensor, y: Tensor, query_x: Tensor) -> Tensor:
        if self._every_step:
            raise UntreatableError(self.name, "gives the outputs after the last step only")
        if self._rule.penalty or self._rule.implicit:
            raise UntreatableError(self.name, "takes no penalty of inner steps")
        x, query_x = self._features(parameters, x, query_x)
        self._refuse_shapes(x)
        own = self._own_weights(parameters)
        rates = self._rule.rates_by_step(parameters, self.adapted)
        return self._outputs_of(own, x, y, query_x, rates=rates, memory=self.memory)

    @property
    def moments(self) -> dict[str, Moments] | None:
        """See `Engine.moments`."""
        return None if self.common else self._moments

    def outputs(self, parameters: Parameters, x: Tensor) -> Tensor:
        """Of the model itself: no steps are taken, norms take the statistics of the rows at hand.

        :param x: (T, N, *input), each of T normalised by itself.
        :return: (T, N, *output), differentiable in `parameters`.
        :raises UntreatableError: as `predict`.
        """
        if self.common:
            raise UntreatableError(self.name, "does not run layers that are not adapted")
        self._refuse_shapes(x)
        return self._outputs_of(self._own_weights(parameters), x[:, :1], None, x, plainly=self._plainly)

    def _plainly(self, weights: Weights, x: Tensor) -> Tensor:
        """The same by the model, for derivatives that have a graph of their own."""
        with batch_statistics(groups=len(x)), twice_differentiable(self.model):
            return call_with(self.model, weights, x.flatten(0, 1)).unflatten(0, x.shape[:2])

    def adapt(
        self, parameters: Parameters, x: Input, y: Tensor, steps: int, *, rule: InnerRule = PLAIN
    ) -> dict[str, Tensor]:
        """See `Engine.adapt`."""
        if self.common or not isinstance(x, Tensor) or not rule.is_plain:
            return super().adapt(parameters, x, y, steps, rule=rule)
        [adapted] = self.adapt_each(parameters, x[None], y[None], steps)
        return adapted

    def adapt_each(
        self, parameters: Parameters, x: Tensor, y: Tensor, steps: int, *, rule: InnerRule = PLAIN
    ) -> list[dict[str, Tensor]]:
        """See `Engine.adapt_each`."""
        if self.common or not rule.is_plain:
            return [self.adapt(parameters, *task, steps, rule=rule) for task in zip(x, y, strict=True)]
        self._refuse_shapes(x)
        weights = self._own_weights(parameters)
        with torch.no_grad():
            self._see_that_it_fits(weights, x, y, x)
            adapted = Call(self, weights, x, y, x[:, :1], steps=steps).adapted(self.adapted)
        unchanged = {name: p.detach() for name, p in parameters.items()}
        return [
            {name: adapted[name][t] if name in adapted else p.clone() for name, p in unchanged.items()}
            for t in range(len(x))
        ]

    def _own_weights(self, parameters: Parameters) -> Weights:
        return {name: parameters[name] for name in self._own_names}

    def _outputs_of(
        self,
        weights: Weights,
        x: Tensor,
        y: Tensor | None,
        query_x: Tensor,
        *,
        rates: Sequence[Weights] = (),
        memory: str = "auto",
        each: bool = False,
        plainly: Plainly | None = None,
    ) -> Tensor:
        """The query's outputs, differentiable in the weights (of `each` task, or of all), rates, x and query_x.

        :param y: None: before any inner step; x is not looked at.
        :param plainly: what computes the same by PyTorch's own graph; None: a derivative has no derivative.
        """
        of_rates = [rate for step in rates for rate in step.values()]
        self._see_that_it_fits(weights, x, y, query_x, of_rates, each)
        call = Call(self, weights, x, y, query_x, rates=rates, memory=memory, each=each)
        outputs = _Native.apply(call, plainly, x, y, query_x, *weights.values(), *of_rates)
        self._moments = call.moments
        if y is not None:
            self.chosen_memory = call.memory
        return outputs

    def _see_that_it_fits(
        self,
        weights: Weights,
        x: Tensor,
        y: Tensor | None,
        query_x: Tensor,
        of_rates: Sequence[Tensor] = (),
        each: bool = False,
    ) -> None:
        """The compiled part would read beyond what does not fit.

        :raises UntreatableError: if something does not, in precision, place or shape.
        """
        if torch.is_autocast_enabled("cpu"):
            raise UntreatableError(self.name, "takes no autocast")
        tensors = [x, query_x, *weights.values(), *of_rates]
        if any(t.dtype != x.dtype or t.device.type != "cpu" or t.layout != torch.strided for t in tensors):
            raise UntreatableError(self.name, "takes dense tensors of one precision on a CPU only")
        if x.dtype not in PRECISIONS:
            raise UntreatableError(self.name, f"takes float32 and float64 only, not {x.dtype}")
        if y is not None and torch.is_grad_enabled() and y.requires_grad:
            raise UntreatableError(self.name, "takes no derivative in targets")
        if not x.numel() or not query_x.numel():
            raise UntreatableError(self.name, "takes no empty sets")
        tasks, points = x.shape[0], x.shape[2:]
        if len(query_x) != tasks or query_x.shape[2:] != points or (y is not None and y.shape[:2] != x.shape[:2]):
            raise UntreatableError(self.name, "takes support and query points of one shape, and as many targets")
        for name, weight in weights.items():
            own = self._shapes[name]
            if weight.shape != ((tasks, *own) if each else own):
                raise UntreatableError(self.name, f"takes {name} in the model's shape {tuple(own)} only")

    def program(self, shape: tuple[int, ...], wanted: set[str]) -> Program:
        """The layers behind the common ones as a program.

        :param shape: of a point, in front of them.
        :param wanted: names of the parameters that a derivative is wanted of.
        :raises UntreatableError: if there is none.
        """
        key = shape, frozenset(wanted), tuple(self.adapted)
        if key not in self._programs:
            try:
                self._programs[key] = Program(self.layers, shape, self.adapted, wanted)
            except ValueError as reason:
                raise UntreatableError(self.name, str(reason)) from None
        return self._programs[key]


class _Native(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx, call: Call, plainly: Plainly | None, x: Tensor, y: Tensor, query_x: Tensor, *values: Tensor
    ) -> Tensor:
        outputs = call.forward()
        if call.wants_gradients:
            ctx.call, ctx.plainly = call, plainly
            ctx.save_for_backward(x, y, query_x, *(values if plainly else ()))
        return outputs

    @staticmethod
    def backward(ctx, cotangent: Tensor):
        with_graph = ctx.plainly is not None and torch.is_grad_enabled()
        return (_graph_of_gradients if with_graph else _gradients)(ctx, cotangent)


@once_differentiable
def _gradients(ctx: Any, cotangent: Tensor) -> tuple[Tensor | None, ...]:
    _ = ctx.saved_tensors  # which sees that nobody has written into them
    of_x, of_query, of_weights, of_rates = ctx.call.backward(cotangent)
    of_weights_in_order = [of_weights.get(name) for name in ctx.call.order]
    return None, None, of_x, None, of_query, *of_weights_in_order, *of_rates


def _graph_of_gradients(ctx: Any, cotangent: Tensor) -> tuple[Tensor | None, ...]:
    """The same, differentiable: of outputs without inner steps, which the model computes once more."""
    _, _, query_x, *values = ctx.saved_tensors
    inputs = [query_x, *values]
    wanted = [t for t in inputs if t.requires_grad]
    outputs = ctx.plainly(dict(zip(ctx.call.order, values, strict=True)), query_x)
    found = iter(torch.autograd.grad(outputs, wanted, cotangent, create_graph=True, allow_unused=True))
    return None, None, None, None, *(next(found) if t.requires_grad else None for t in inputs)
