"""The random states that layers draw from, and drawing from them once more."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn

HostState = tuple[Any, ...]  # of Python's `random` and of NumPy's global generator; comparable
RandomState = tuple[bytes, HostState]


def host_state() -> HostState:
    """The states of `random` and of NumPy's global generator, from which models draw branches or augmentations."""
    kind, keys, *rest = np.random.get_state()
    return random.getstate(), (kind, np.asarray(keys).tobytes(), *rest)


def random_state(device: torch.device) -> RandomState:
    """The states that layers on `device` may draw from; equal if nothing was drawn in between."""
    of_device = torch.cuda.get_rng_state(device) if device.type == "cuda" else torch.get_rng_state()
    return of_device.numpy().tobytes(), host_state()


def restore(state: RandomState, device: torch.device) -> None:
    """Let layers on `device` draw as from `state`."""
    of_device, (of_python, (kind, keys, *rest)) = state
    tensor = torch.frombuffer(bytearray(of_device), dtype=torch.uint8)
    if device.type == "cuda":
        torch.cuda.set_rng_state(tensor, device)
    else:
        torch.set_rng_state(tensor)
    random.setstate(of_python)
    np.random.set_state((kind, np.frombuffer(keys, np.uint32), *rest))


@contextmanager
def replayed(state: RandomState | None, device: torch.device) -> Iterator[None]:
    """Inside, layers draw as from `state`; afterwards all states are as they were. None: nothing draws."""
    if state is None:
        yield
        return
    before = random_state(device)
    restore(state, device)
    try:
        yield
    finally:
        restore(before, device)


@contextmanager
def preserved_random_state(device: torch.device) -> Iterator[None]:
    """Inside, draws from the global generators of Python, NumPy and PyTorch leave no trace."""
    python, numpy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)


def _put_back(generator: Any) -> Callable[[], object]:
    """What puts a generator back to where it is now."""
    if isinstance(generator, torch.Generator):
        return partial(generator.set_state, generator.get_state())
    if isinstance(generator, np.random.Generator):
        return partial(setattr, generator.bit_generator, "state", generator.bit_generator.state)
    if isinstance(generator, np.random.RandomState):
        return partial(generator.set_state, generator.get_state())
    return partial(generator.setstate, generator.getstate())


OWN = (torch.Generator, np.random.Generator, np.random.RandomState, random.Random)


@contextmanager
def own_generators_kept(model: nn.Module) -> Iterator[None]:
    """Generators that layers have of their own are afterwards where they were."""
    values = [value for layer in model.modules() for value in vars(layer).values() if isinstance(value, OWN)]
    back = list(map(_put_back, values))
    try:
        yield
    finally:
        for put in back:
            put()


def own_generator(model: nn.Module) -> str:
    """A layer that draws from a generator of its own, whose draws cannot be repeated; empty if there is none."""
    for name, layer in model.named_modules():
        if any(isinstance(value, OWN) for value in vars(layer).values()):
            return f"{type(layer).__name__} ({name or 'the model itself'})"
    return ""
