"""The random states that layers draw from, and drawing from them once more."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
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


@contextmanager
def fixed_random_state() -> Iterator[None]:
    """Inside, draws on the CPU from the global generators are the same each time; they leave no trace."""
    with preserved_random_state(torch.device("cpu")):
        torch.default_generator.manual_seed(0)  # `torch.manual_seed` would reach accelerators, too
        np.random.seed(0)
        random.seed(0)
        yield


OWN = (torch.Generator, np.random.Generator, np.random.RandomState, random.Random)


def state_of(generator: Any) -> Any:
    """Where one of these generators is."""
    if isinstance(generator, np.random.Generator):
        return generator.bit_generator.state
    return generator.getstate() if isinstance(generator, random.Random) else generator.get_state()


def put_state(generator: Any, state: Any) -> None:
    """Bring one of these generators to where `state_of` said."""
    if isinstance(generator, np.random.Generator):
        generator.bit_generator.state = state
    elif isinstance(generator, random.Random):
        generator.setstate(state)
    else:
        generator.set_state(state)


@contextmanager
def own_generators_kept(parts: Iterable[object]) -> Iterator[None]:
    """Generators that these layers, or other objects, have of their own are afterwards where they were."""
    generators = [value for part in parts for value in vars(part).values() if isinstance(value, OWN)]
    states = list(map(state_of, generators))
    try:
        yield
    finally:
        for generator, state in zip(generators, states, strict=True):
            put_state(generator, state)


def own_generator(model: nn.Module) -> str:
    """A layer that draws from a generator of its own, whose draws cannot be repeated; empty if there is none."""
    for name, layer in model.named_modules():
        if any(isinstance(value, OWN) for value in vars(layer).values()):
            return f"{type(layer).__name__} ({name or 'the model itself'})"
    return ""
