"""CUDA graphs of an engine's forward and backward passes.

The inner loop of a small network is some thousand short kernels, which a GPU finishes faster than a processor can ask
for them. A CUDA graph is recorded once for the shapes of a meta-batch and then asks for all of them at once: the same
kernels on the same memory. What comes in is copied there, what goes out is copied from there, so nobody else's tensor
is overwritten by the next replay.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from ftml_bench.derivatives import once_differentiable
from ftml_bench.random_state import host_state, random_state, replayed

WARM_UP = 3  # calls before a recording: libraries choose their kernels and allocate what they keep
MOST_RECORDINGS = 4  # of a function at a time; each keeps the memory of its forward pass
MOST_IN_ALL = 100  # more are no help: something changes all the time
DRAWS_ON_HOST = "draws from random or NumPy, which a recording would repeat"


class Graphs:
    """Calls a function of tensors by CUDA graphs, which it records when it sees a new form of inputs."""

    def __init__(self) -> None:
        self.note = ""  # why there are none, once a recording has failed
        self._recorded: dict[tuple, Recording] = {}
        self._count = 0
        self._off = False

    @contextmanager
    def off(self) -> Iterator[None]:
        """Inside, functions are called as they are: for what records a larger graph around them."""
        before, self._off = self._off, True
        try:
            yield
        finally:
            self._off = before

    def call(self, function: Callable[..., Tensor], inputs: list[Tensor], constants: tuple = ()) -> Tensor:
        """`function(*inputs)`, differentiable once in those inputs that require a gradient.

        :param function: launches the same kernels whenever it is called with tensors of these shapes.
        :param inputs: on a GPU.
        :param constants: what else decides what it does; hashable.
        """
        if self._off or self.note:
            return function(*inputs)
        wanted = tuple(torch.is_grad_enabled() and t.requires_grad for t in inputs)
        key = (constants, wanted, torch.is_autocast_enabled("cuda"), *((t.shape, t.dtype, t.device) for t in inputs))
        if key not in self._recorded:
            while len(self._recorded) >= MOST_RECORDINGS:
                del self._recorded[next(iter(self._recorded))]
            self._count += 1
            reason = why_not_recorded(inputs[0].device)
            if self._count > MOST_IN_ALL:
                reason = f"recorded {MOST_IN_ALL} times: shapes or settings change all the time"
            try:
                if not reason:
                    self._recorded[key] = Recording(function, inputs, wanted)
            except RuntimeError as error:  # it asks the device for a number, say, on which it would decide
                reason = first_line(error)
            if reason:
                self._recorded.clear()
                outputs = function(*inputs)  # raises by itself if the call was wrong
                self.note = f"no CUDA graph ({reason})"
                return outputs
        return _Replay.apply(self._recorded[key], *inputs)


class Recording:
    """A function's forward and backward pass as two graphs over tensors of their own."""

    def __init__(self, function: Callable[..., Tensor], inputs: list[Tensor], wanted: tuple[bool, ...]) -> None:
        self.inputs = [t.detach().clone().requires_grad_(w) for t, w in zip(inputs, wanted, strict=True)]
        self.wanted = wanted
        self.turn = 0  # counts what has overwritten the memory that the backward pass reads
        leaves = [t for t in self.inputs if t.requires_grad]

        def gradients(outputs: Tensor, cotangent: Tensor) -> list[Tensor | None]:
            return list(torch.autograd.grad(outputs, leaves, cotangent, allow_unused=True)) if leaves else []

        with torch.random.fork_rng([self.inputs[0].device]), torch.set_grad_enabled(bool(leaves)), on_side_stream():
            before = host_state()
            for _ in range(WARM_UP):
                outputs = function(*self.inputs)
                gradients(outputs, torch.ones_like(outputs))
            if host_state() != before:
                raise RuntimeError(DRAWS_ON_HOST)
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
        self.turn += 1  # it works in memory that the forward pass had kept until then
        return self.gradients


class _Replay(torch.autograd.Function):
    @staticmethod
    def forward(ctx, recording: Recording, *inputs: Tensor) -> Tensor:
        ctx.state = random_state(inputs[0].device)
        outputs = recording.forward(inputs).clone()
        ctx.save_for_backward(*inputs)
        ctx.recording, ctx.turn = recording, recording.turn
        return outputs

    @staticmethod
    @once_differentiable
    def backward(ctx, cotangent: Tensor):
        recording: Recording = ctx.recording
        if recording.turn != ctx.turn:  # another pass has been there since: once more, with the same draws
            with replayed(ctx.state, cotangent.device):
                recording.forward(ctx.saved_tensors)
        found = iter(recording.backward(cotangent))
        gradients = [next(found) if wanted else None for wanted in recording.wanted]
        return None, *(None if g is None else g.clone() for g in gradients)


def fixed_by(*parts: Any) -> tuple:
    """What a recording fixes of modules, for its key: numbers and modes, and where buffers lie."""
    layers = [layer for part in parts if isinstance(part, nn.Module) for layer in part.modules()]
    numbers = [(type(layer).__qualname__, "") for layer in layers] + [
        (name, repr(value))
        for layer in layers
        for name, value in vars(layer).items()
        if isinstance(value, (bool, int, float, str, tuple))
    ]
    places = [(b.data_ptr(), b.shape) for layer in layers for b in layer.buffers(recurse=False)]
    return tuple(numbers), tuple(places)


def why_not_recorded(device: torch.device) -> str:
    """The reason why nothing is recorded on `device` now; empty if there is none."""
    if device.index is None or device.index == (current := torch.cuda.current_device()):
        return ""
    return f"tensors on {device}, current device cuda:{current}: torch.cuda.set_device({device.index})"


def first_line(error: BaseException) -> str:
    """What an error says, in short."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def copy_all(targets: list[Tensor], sources: Any) -> None:
    """Copy tensors into others, those of one type in one kernel."""
    with torch.no_grad():
        torch._foreach_copy_(list(targets), [s.detach() for s in sources])


@contextmanager
def recording(graph: torch.cuda.CUDAGraph, *generators: torch.Generator, pool: Any = None) -> Iterator[None]:
    """Inside, kernels of the current device are recorded in `graph` instead of run.

    If that fails, generators go on where they were: the default one of the device, and `generators`, those other ones
    that are drawn from.
    """
    drawn_from = [torch.cuda.default_generators[torch.cuda.current_device()], *generators]
    states = [generator.get_state() for generator in drawn_from]
    if torch.__version__ < "2.14":  # since then a graph finds out itself
        for generator in generators:
            graph.register_generator_state(generator)
    # A graph that the garbage collector found meanwhile would be destroyed, which no recording survives.
    gc.collect()
    collecting = gc.isenabled()
    gc.disable()
    try:
        with torch.cuda.graph(graph, pool=pool):
            yield
    except BaseException:
        for generator, state in zip(drawn_from, states, strict=True):
            fresh = torch.Generator(generator.device)
            fresh.set_state(state)
            generator.graphsafe_set_state(fresh.graphsafe_get_state())
        raise
    finally:
        if collecting:
            gc.enable()


@contextmanager
def on_side_stream() -> Iterator[None]:
    """Inside, kernels go to another stream, as a recording needs of the calls before it; nothing on a CPU."""
    if not torch.cuda.is_available():
        yield
        return
    side = _side_stream(torch.cuda.current_device())
    side.wait_stream(torch.cuda.current_stream())
    try:
        with torch.cuda.stream(side):
            yield
    finally:
        torch.cuda.current_stream().wait_stream(side)


@cache
def _side_stream(device: int) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)  # libraries keep memory for each stream that they have worked on
