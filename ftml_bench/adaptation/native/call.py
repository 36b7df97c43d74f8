"""One call of the compiled part, forward and backward."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from copy import copy
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from ftml_bench.adaptation.inner_loop import UntreatableError
from ftml_bench.adaptation.native.library import CALLBACK_FAILED, NO_MEMORY, Job
from ftml_bench.adaptation.native.losses import CalledBack, Plain, plain
from ftml_bench.adaptation.steps import Weights
from ftml_bench.models.norm import Moments
from ftml_bench.random_state import random_state

if TYPE_CHECKING:
    from ftml_bench.adaptation.native.engine import NativeEngine

MOST_BYTES = 2**26  # that passes of one meta-step keep


class Call:
    """One meta-batch: what the library is told about it, and the memory that it works in.

    :param y: the support sets' targets; None: no inner steps, x is not looked at.
    :param steps: inner steps; None: the engine's.
    """

    def __init__(
        self,
        engine: NativeEngine,
        weights: Weights,
        x: Tensor,
        y: Tensor | None,
        query_x: Tensor,
        *,
        rates: Sequence[Weights] = (),
        steps: int | None = None,
        memory: str = "auto",
        each: bool = False,
    ) -> None:
        self.is_double = int(x.dtype == torch.float64)
        self.native = engine.library
        self.engine = engine.name
        self.order = list(weights)
        grad = torch.is_grad_enabled()
        self.wanted = wanted = {name for name, w in weights.items() if grad and w.requires_grad}
        self.wants_x = grad and (x.requires_grad or query_x.requires_grad)
        self.rates = rates
        self.full_rates: list[Tensor | None] = []
        wants_rates = grad and any(rate.requires_grad for step in rates for rate in step.values())
        self.wants_gradients = bool(wanted) or self.wants_x or wants_rates
        self.program = program = engine.program(tuple(x.shape[2:]), wanted)
        self.x, self.query_x = (t.detach().contiguous() for t in (x, query_x))
        self.weights = [weights[name].detach().contiguous() for name in program.names]
        self.shape = (len(x), query_x.shape[1], program.outputs)
        self.job = job = Job()
        job.input, job.ops, job.reals = (part.ctypes.data for part in (program.input, program.ops, program.reals))
        job.nops, job.nparameters, job.shapes = len(program.ops), len(program.shapes), program.shapes.ctypes.data
        job.wants_x = self.wants_x
        job.tasks, job.support, job.query = len(x), x.shape[1], query_x.shape[1]
        job.steps = 0 if y is None else engine.inner_steps if steps is None else steps
        job.rides = y is not None and engine.rows_ride
        job.second_order = engine.second_order
        job.clip, job.wants_rates = engine.inner_clip or 0.0, wants_rates
        if job.steps:
            self._tell_rates(engine)
        job.threads = torch.get_num_threads()
        self.called_back: CalledBack | None = None
        if y is not None:
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
            self.held = found.tell(self.job, y)
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

    def _run_without_draws(self) -> None:
        before = random_state(self.x.device) if self.called_back else None
        self.run()
        if before is not None and before != random_state(self.x.device):
            raise UntreatableError(self.engine, "takes no criterion that draws")

    def adapted(self, names: Sequence[str]) -> dict[str, Tensor]:
        """The weights of those names after the last step, (T, *weight)."""
        by_name = dict(zip(self.program.names, self.weights, strict=True))
        adapted = {name: self.x.new_empty(len(self.x), *by_name[name].shape) for name in names}
        pointers = _pointers([adapted.get(name) for name in self.program.names])
        self.job.adapted = pointers.ctypes.data
        self._run_without_draws()
        return adapted

    def forward(self) -> Tensor:
        """The outputs (T, Q, F); beside them `moments`, by norm layer, of the first pass."""
        outputs = self.x.new_empty(self.shape)
        rows = self.job.support if self.job.steps else self.job.query
        found = [self.x.new_empty(len(self.x), 2, channels) for _, channels, _ in self.program.norms]
        pointers = _pointers(found)
        self.job.statistics = pointers.ctypes.data
        self.moments = {
            name: Moments(both[:, 0], both[:, 1], rows * places)
            for (name, _, places), both in zip(self.program.norms, found, strict=True)
        }
        self.job.outputs = outputs.data_ptr()
        self._run_without_draws()
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
        job.backward, job.statistics = 1, None
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
