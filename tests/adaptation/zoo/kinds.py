"""What a kind of module is, and what the kinds are made of."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch.nn.functional as F
from torch import nn


@dataclass(frozen=True)
class Kind:
    """A model (in double precision), the shape of a point, and the loss."""

    build: Callable[[], nn.Module]
    shape: tuple[int, ...] = (3,)
    classes: int = 0  # of integer inputs; 0: real ones
    criterion: Callable = F.cross_entropy
    labels: bool = False  # whether the model takes task labels
    tasks: int = 2  # 1 where layers draw: in which order for several tasks is up to an engine


KINDS: dict[str, Kind] = {}


def kind(name, **settings):
    """Decorates a function that builds a model."""

    def add(build):
        KINDS[name] = Kind(build, **settings)
        return build

    return add


def net(*layers):
    return nn.Sequential(*layers)


class Around(nn.Module):
    """A module whose forward is a function of itself and x."""

    def __init__(self, forward, **parts):
        super().__init__()
        for name, part in parts.items():
            setattr(self, name, part)
        self.function = forward

    def forward(self, x):
        return self.function(self, x)


def lin(i=3, o=2):
    return nn.Linear(i, o)
