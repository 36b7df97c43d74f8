"""The engine `native`: meta-gradients of plain stacks task by task, by hand-derived passes in C++ (`src`).

Every task goes from its first step to its last in one thread, maps as (rows, height, width, channels), so that what it
works on stays in the cache; the Hessian products are tangents of the backward pass, with nothing computed twice as
long as what the passes keep fits.
"""

from __future__ import annotations

import ctypes
from copy import copy
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from ftml_bench.adaptation.batched import BatchedEngine
from ftml_bench.adaptation.inner_loop import Criterion, Parameters, UntreatableError, trained_in
from ftml_bench.adaptation.native.library import CALLBACK_FAILED, NO_MEMORY, Job, NotBuiltError, library
from ftml_bench.adaptation.native.losses import CalledBack, Plain, plain
from ftml_bench.adaptation.native.program import Program, why_not_native
from ftml_bench.adaptation.steps import Weights
from ftml_bench.random_state import random_state

MOST_BYTES = 2**26  # that passes of one meta-step keep
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

    def __init__(self, model: nn.Module, criterion: Criterion, **settings: Any) -> None:
        see_that_it_is_built()
        self._library = library()
        super().__init__(model, criterion, **settings)
        reason = why_not_native(self.layers)
        if reason:
            raise UntreatableError(self.name, reason)
        if any(p.device.type != "cpu" for p in self.model.parameters()):
            raise UntreatableError(self.name, "takes tensors on a CPU only")
        if trained_in(criterion, self.model):
            raise UntreatableError(self.name, "takes no criterion with parameters of its own")
        self._programs: dict[Any, Program] = {}
        self._own_names = list(self._copies(dict(self.model.named_parameters()), 1))  # behind the common layers

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_library": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ |= {**state, "_library": library()}

    def predict_each(
        self, parameters: Parameters, support: tuple[Tensor, Tensor], query_x: Tensor, memory: str
    ) -> Tensor:
        """See `Engine.predict_each`."""
        if not self.takes_each:
            return super().predict_each(parameters, support, query_x, memory)
        self._refuse_shapes(support[0])
        return self._outputs_of(dict(parameters), [], *support, query_x, memory, each=True)

    def choose_memory(self, parameters: Parameters, support: tuple[Tensor, Tensor]) -> str:
        """See `Engine.choose_memory`."""
        if self.memory == "auto":
            x, y = support
            own = {name: parameters[name] for name in self._own_names}
            self.chosen_memory = _Call(self, own, [], x, y, x, self.memory, each=False).memory
        return self.chosen_memory

    def _predict(self, parameters: Parameters, x: Tensor, y: Tensor, query_x: Tensor) -> Tensor:
        if self._every_step:
            raise UntreatableError(self.name, "gives the outputs after the last step only")
        if self._rule.penalty:
            raise UntreatableError(self.name, "takes no penalty of inner steps")
        x, query_x = self._features(parameters, x, query_x)
        self._refuse_shapes(x)
        own = {name: parameters[name] for name in self._own_names}
        rates = self._rule.rates_by_step(parameters, self.adapted)
        return self._outputs_of(own, rates, x, y, query_x, self.memory, each=False)

    def _outputs_of(
        self,
        weights: Weights,
        rates: list[Weights],
        x: Tensor,
        y: Tensor,
        query_x: Tensor,
        memory: str,
        each: bool,
    ) -> Tensor:
        """The query's outputs, differentiable in the weights (of `each` task, or of all), rates, x and query_x."""
        of_rates = [rate for step in rates for rate in step.values()]
        tensors = [x, query_x, *weights.values(), *of_rates]
        if any(t.dtype != x.dtype or t.device.type != "cpu" or t.layout != torch.strided for t in tensors):
            raise UntreatableError(self.name, "takes dense tensors of one precision on a CPU only")
        if x.dtype not in PRECISIONS:
            raise UntreatableError(self.name, f"takes float32 and float64 only, not {x.dtype}")
        if y.requires_grad:
            raise UntreatableError(self.name, "takes no derivative in targets")
        if not x.numel() or not query_x.numel():
            raise UntreatableError(self.name, "takes no empty sets")
        call = _Call(self, weights, rates, x, y, query_x, memory, each)
        outputs = _Native.apply(call, x, y, query_x, *weights.values(), *of_rates)
        self.chosen_memory = call.memory
        return outputs

    def _program(self, shape: tuple[int, ...], wanted: set[str]) -> Program:
        key = shape, frozenset(wanted), tuple(self.adapted)
        if key not in self._programs:
            try:
                self._programs[key] = Program(self.layers, shape, self.adapted, wanted)
            except ValueError as reason:
                raise UntreatableError(self.name, str(reason)) from None
        return self._programs[key]


class _Call:
    """One meta-batch: what the library is told about it, and the memory that it works in."""

    def __init__(
        self,
        engine: NativeEngine,
        weights: Weights,
        rates: list[Weights],
        x: Tensor,
        y: Tensor,
        query_x: Tensor,
        memory: str,
        each: bool,
    ) -> None:
        self.is_double = int(x.dtype == torch.float64)
        self.native = engine._library
        self.engine = engine.name
        self.order = list(weights)
        grad = torch.is_grad_enabled()
        self.wanted = wanted = {name for name, w in weights.items() if grad and w.requires_grad}
        self.wants_x = grad and (x.requires_grad or query_x.requires_grad)
        self.rates = rates
        wants_rates = grad and any(rate.requires_grad for step in rates for rate in step.values())
        self.wants_gradients = bool(wanted) or self.wants_x or wants_rates
        self.program = program = engine._program(tuple(x.shape[2:]), wanted)
        self.x, self.query_x = (t.detach().contiguous() for t in (x, query_x))
        self.weights = [weights[name].detach().contiguous() for name in program.names]
        self.shape = (len(x), query_x.shape[1], program.outputs)
        self.job = job = Job()
        job.input, job.ops, job.reals = (part.ctypes.data for part in (program.input, program.ops, program.reals))
        job.nops, job.nparameters, job.shapes = len(program.ops), len(program.shapes), program.shapes.ctypes.data
        job.wants_x = self.wants_x
        job.tasks, job.steps, job.support, job.query = len(x), engine.inner_steps, x.shape[1], query_x.shape[1]
        job.rides, job.second_order = engine.rows_ride, engine.second_order
        job.clip, job.wants_rates = engine.inner_clip or 0.0, wants_rates
        self._tell_rates(engine)
        job.threads = torch.get_num_threads()
        self._tell_loss(engine, y)
        job.x, job.query_x = self.x.data_ptr(), self.query_x.data_ptr()
        self.pointers = _pointers(self.weights)
        self.steps_of_weights = np.array([w[0].numel() if each else 0 for w in self.weights], dtype=np.int64)
        job.weights, job.weight_steps = self.pointers.ctypes.data, self.steps_of_weights.ctypes.data
        self.memory = "adjoint"
        if self.wants_gradients:
            self._take_memory(memory, engine.memory_budget)

    def _tell_loss(self, engine: NativeEngine, y: Tensor) -> None:
        criterion = engine.criterion
        found: Plain | CalledBack | None = plain(criterion)
        if isinstance(found, Plain) and found.fits(y, self.program.outputs, self.x.dtype):
            self.called_back, self.held = None, found.tell(self.job, y)
            return
        if isinstance(criterion, nn.Module):  # it may have other settings by the time of the backward pass
            criterion = copy(criterion)
        self.called_back = CalledBack(criterion, y.detach(), self.program.outputs, self.x.dtype)
        self.held = self.called_back.tell(self.job)

    def _tell_rates(self, engine: NativeEngine) -> None:
        """A rate for every number of the adapted weights, in each step that has its own."""
        steps = self.rates or [dict.fromkeys(engine.adapted, self.x.new_tensor(engine.inner_lr))]
        shapes = dict(zip(self.program.names, (w.shape for w in self.weights), strict=True))
        self.full_rates = [
            rates[name].detach().expand(shapes[name]).contiguous() if name in rates else None
            for rates in steps
            for name in self.program.names
        ]
        self.rate_pointers = _pointers(self.full_rates)
        self.job.nrates, self.job.rates = len(steps), self.rate_pointers.ctypes.data

    def _take_memory(self, memory: str, budget: int) -> None:
        """Memory for the weights before each step, and for what passes keep of as many tasks as is allowed."""
        sizes = (ctypes.c_int64 * 3)()
        self.native.native_sizes(ctypes.byref(self.job), self.is_double, sizes)
        weights, step, query = sizes
        tasks, steps = self.job.tasks, self.job.steps
        self.kept = self.x.new_empty(tasks * (steps + 1) * weights)
        tape = steps * step + query if self.job.second_order or self.job.wants_rates else query
        fit = min(MOST_BYTES, budget) // (tape * self.x.element_size())
        taped = {"unroll": tasks, "adjoint": 0, "auto": min(tasks, fit)}[memory]
        self.memory = "unroll" if taped == tasks else "adjoint"
        # one by one, since what is large is given back to the system and fetched anew page by page (see `memory`)
        self.tapes = [self.x.new_empty(steps * step + query) for _ in range(taped)]
        self.tape_pointers = _pointers(self.tapes)
        self.job.kept, self.job.tapes, self.job.taped = self.kept.data_ptr(), self.tape_pointers.ctypes.data, taped

    def run(self) -> None:
        """Let the library do it.

        :raises MemoryError: if there is none left. What a criterion raises goes through.
        """
        outcome = self.native.native_run(ctypes.byref(self.job), self.is_double)
        if outcome == NO_MEMORY:
            raise MemoryError("no memory for the passes of the native engine")
        if outcome == CALLBACK_FAILED:
            assert self.called_back is not None
            assert self.called_back.error is not None
            raise self.called_back.error

    def forward(self) -> Tensor:
        """The outputs (T, Q, F)."""
        outputs = self.x.new_empty(self.shape)
        self.job.outputs = outputs.data_ptr()
        before = random_state(outputs.device) if self.called_back else None
        self.run()
        if before is not None and before != random_state(outputs.device):
            raise UntreatableError(self.engine, "takes no criterion that draws")
        return outputs

    def backward(
        self, cotangent: Tensor
    ) -> tuple[Tensor | None, Tensor | None, dict[str, Tensor], list[Tensor | None]]:
        """The derivatives in x, in query_x, in the weights that are wanted, by name, and in the rates, step by step."""
        cotangent = cotangent.contiguous()
        names = self.program.names
        gradients = [
            torch.empty_like(w) if n in self.wanted else None for n, w in zip(names, self.weights, strict=True)
        ]
        pointers = _pointers(gradients)
        job = self.job
        job.backward = 1
        job.cotangent, job.gradients = cotangent.data_ptr(), pointers.ctypes.data
        of_x = of_query = None
        if self.wants_x:
            of_x, of_query = torch.empty_like(self.x), torch.empty_like(self.query_x)
            job.gradient_x, job.gradient_query = of_x.data_ptr(), of_query.data_ptr()
        of_rates: list[Tensor | None] = [None] * len(self.full_rates)
        if job.wants_rates:
            of_rates = [None if rate is None else torch.empty_like(rate) for rate in self.full_rates]
            rate_pointers = _pointers(of_rates)
            job.gradient_rates = rate_pointers.ctypes.data
        self.run()
        of_weights = {n: g for n, g in zip(names, gradients, strict=True) if g is not None}
        return of_x, of_query, of_weights, self._summed(of_rates)

    def _summed(self, of_rates: list[Tensor | None]) -> list[Tensor | None]:
        """The derivatives in the rates as they were given: of one number, the sum of those of all numbers."""
        numbers = iter(of_rates)
        found = [dict(zip(self.program.names, numbers, strict=False)) for _ in self.rates]
        return [
            None if (full := by_name[name]) is None else full if rate.dim() else full.sum()
            for by_name, rates in zip(found, self.rates, strict=True)
            for name, rate in rates.items()
        ]


def _pointers(tensors: list[Any]) -> np.ndarray:
    return np.array([0 if t is None else t.data_ptr() for t in tensors], dtype=np.uint64)


class _Native(torch.autograd.Function):
    @staticmethod
    def forward(ctx, call: _Call, x: Tensor, y: Tensor, query_x: Tensor, *values: Tensor) -> Tensor:
        outputs = call.forward()
        if call.wants_gradients:
            ctx.call = call
            ctx.save_for_backward(x, y, query_x)
        return outputs

    @staticmethod
    @once_differentiable
    def backward(ctx, cotangent: Tensor):
        _ = ctx.saved_tensors  # which sees that nobody has written into them
        of_x, of_query, of_weights, of_rates = ctx.call.backward(cotangent)
        of_weights_in_order = [of_weights.get(name) for name in ctx.call.order]
        return None, of_x, None, of_query, *of_weights_in_order, *of_rates
