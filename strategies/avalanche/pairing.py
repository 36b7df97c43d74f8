"""Whether a loss compares each point with its own target, found out by calling it."""

from __future__ import annotations

import warnings
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from ftml_bench.adaptation import Criterion
from ftml_bench.random_state import preserved_random_state

# compare element by element, and spread one side over the other where shapes differ in any way
ELEMENTWISE = (nn.MSELoss, nn.L1Loss, nn.SmoothL1Loss, nn.HuberLoss)


def spreads(criterion: Criterion, outputs: Tensor, targets: Tensor) -> bool | None:
    """Whether a loss of outputs and targets of different shapes spreads one over the other, across points.

    Such a loss is the same whichever point has which output, or whichever has which target; and it is another one where
    both have as many dimensions.

    :return: None: these values cannot tell.
    """
    if type(criterion) in ELEMENTWISE:
        return True
    sizes = zip(reversed(outputs.shape), reversed(targets.shape), strict=False)
    if any(one != other and 1 not in (one, other) for one, other in sizes):
        return False  # they do not broadcast
    if any(bool((part == part[:1]).all()) for part in (outputs, targets)):
        return None
    with torch.no_grad(), preserved_random_state(outputs.device), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch's own, of shapes
        given = criterion(outputs, targets)
        if not isinstance(given, Tensor) or not given.isfinite().all():
            return None
        others = [(outputs.roll(1, 0), targets), (outputs, targets.roll(1, 0))]
        if not any(_is_like(given, criterion, *other) for other in others):
            return False
        return not any(_is_like(given, criterion, *other) for other in _alike(outputs, targets))


def _alike(outputs: Tensor, targets: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Outputs and targets with as many dimensions."""
    if outputs.numel() == targets.numel():
        yield outputs.reshape(targets.shape), targets
    dimensions = max(outputs.dim(), targets.dim())
    yield tuple(part.reshape(*part.shape, *[1] * (dimensions - part.dim())) for part in (outputs, targets))  # type: ignore[misc]


def _is_like(given: Tensor, criterion: Criterion, outputs: Tensor, targets: Tensor) -> bool:
    try:
        found = criterion(outputs, targets)
    except Exception:  # whatever a loss of somebody else's raises at shapes that it does not take
        return False
    return isinstance(found, Tensor) and found.shape == given.shape and torch.allclose(found, given, rtol=1e-5)
