"""CUDA graphs of an engine's forward and backward passes.

The inner loop of a small network is some thousand short kernels, which a GPU finishes faster than a processor can ask
for them. A CUDA graph is recorded once for the shapes of a meta-batch and then asks for all of them at once: the same
kernels on the same memory. What comes in is copied there, what goes out is copied from there, so nobody else's tensor
is overwritten by the next replay.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

WARM_UP = 3  # calls before a recording: libraries choose their kernels and allocate what they keep


class Graphs:
    """Calls a function of tensors by CUDA graphs, which it records when it sees a new form of inputs."""

    def __init__(self) -> None:
        self.note = ""  # why there are none, once a recording has failed
        self._recorded: dict[tuple, Recording] = {}
        self._off = False

    @contextmanager
    def off(self):
        """Inside, functions are called as they are: for what records a larger graph around them."""
        before, self._off = self._off, True
        try:
            yield
        finally:
            self._off = before

    def call(self, function: Callable[..., Tensor], inputs: list[Tensor], constants: tuple = ()) -> Tensor:
        """`function(*inputs)`, differentiable once in those inputs that require a gradient.

        :param function: launches the same kernels whenever it is called with tensors of these shapes.
        :param constants: what else decides what it does; hashable.
        """
        if self._off or self.note or not inputs[0].is_cuda:
            return function(*inputs)
        wanted = tuple(torch.is_grad_enabled() and t.requires_grad for t in inputs)
        key = (constants, wanted, *((t.shape, t.dtype, t.device) for t in inputs))
        if key not in self._recorded:
            try:
                self._recorded[key] = Recording(function, inputs, wanted)
            except RuntimeError as error:  # it asks the device for a number, say, on which it would decide
                self.note = f"no CUDA graph ({str(error).strip().splitlines()[0]})"
                return function(*inputs)
        return _Replay.apply(self._recorded[key], *inputs)


class Recording:
    """A function's forward and backward pass as two graphs over tensors of their own."""

    def __init__(self, function: Callable[..., Tensor], inputs: list[Tensor], wanted: tuple[bool, ...]) -> None:
        self.inputs = [t.detach().clone().requires_grad_(w) for t, w in zip(inputs, wanted, strict=True)]
        self.wanted = wanted
        self.turn = 0  # how often the forward pass was replayed
        leaves = [t for t in self.inputs if t.requires_grad]
        device = self.inputs[0].device

        def gradients(outputs: Tensor, cotangent: Tensor) -> list[Tensor | None]:
            return list(torch.autograd.grad(outputs, leaves, cotangent, allow_unused=True)) if leaves else []

        with torch.random.fork_rng([device]), torch.set_grad_enabled(bool(leaves)), on_side_stream():
            for _ in range(WARM_UP):
                outputs = function(*self.inputs)
                gradients(outputs, torch.ones_like(outputs))
        self._forward, self._backward = torch.cuda.CUDAGraph(), torch.cuda.CUDAGraph()
        with torch.set_grad_enabled(bool(leaves)), recording(self._forward):
            outputs = function(*self.inputs)
        self.outputs = outputs.detach()
        self.cotangent = torch.empty_like(self.outputs)
        self.gradients: list[Tensor | None] = []
        if leaves:
            with recording(self._backward, pool=self._forward.pool()):
                self.gradients = gradients(outputs, self.cotangent)

    @torch.no_grad()
    def forward(self, inputs: list[Tensor] | tuple[Tensor, ...]) -> Tensor:
        """The outputs; they are overwritten by the next call."""
        copy_all(self.inputs, inputs)
        self._forward.replay()
        self.turn += 1
        return self.outputs

    @torch.no_grad()
    def backward(self, cotangent: Tensor) -> list[Tensor | None]:
        """The gradients of <outputs, cotangent> in the inputs that are wanted; overwritten by the next call."""
        self.cotangent.copy_(cotangent)
        self._backward.replay()
        return self.gradients


class _Replay(torch.autograd.Function):
    @staticmethod
    def forward(ctx, recording: Recording, *inputs: Tensor) -> Tensor:
        outputs = recording.forward(inputs).clone()
        ctx.save_for_backward(*inputs)
        ctx.recording, ctx.turn = recording, recording.turn
        return outputs

    @staticmethod
    @once_differentiable
    def backward(ctx, cotangent: Tensor):
        recording: Recording = ctx.recording
        if recording.turn != ctx.turn:  # another forward pass has been there since
            recording.forward(ctx.saved_tensors)
        found = iter(recording.backward(cotangent))
        gradients = [next(found) if wanted else None for wanted in recording.wanted]
        return None, *(None if g is None else g.clone() for g in gradients)


def copy_all(targets: list[Tensor], sources: Any) -> None:
    """Copy tensors into others, those of one type in one kernel."""
    with torch.no_grad():
        torch._foreach_copy_(list(targets), [s.detach() for s in sources])


@contextmanager
def recording(graph: torch.cuda.CUDAGraph, *generators: torch.Generator, pool: Any = None):
    """Inside, kernels are recorded in `graph` instead of run.

    If that fails, generators go on where they were: the default one of the device, and `generators`, those other ones
    that are drawn from.
    """
    device = torch.cuda.current_device()
    drawn_from = [torch.cuda.default_generators[device], *generators]
    states = [generator.get_state() for generator in drawn_from]
    for generator in generators:
        graph.register_generator_state(generator)
    # A graph that the garbage collector found meanwhile would be destroyed, which no recording survives.
    gc.collect()
    collecting = gc.isenabled()
    gc.disable()
    try:
        with torch.cuda.graph(graph, pool=pool):
            yield
    except RuntimeError:
        for generator, state in zip(drawn_from, states, strict=True):
            fresh = torch.Generator(generator.device)
            fresh.set_state(state)
            generator.graphsafe_set_state(fresh.graphsafe_get_state())
        raise
    finally:
        if collecting:
            gc.enable()


@contextmanager
def on_side_stream():
    """Inside, kernels go to another stream, as a recording needs of the calls before it; nothing on a CPU."""
    if not torch.cuda.is_available():
        yield
        return
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        yield
    torch.cuda.current_stream().wait_stream(side)
