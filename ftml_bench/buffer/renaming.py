"""Classes of a task renamed among themselves, in one draw: `permute_labels`."""

from __future__ import annotations

import torch
from torch import Generator, Tensor

from ftml_bench.errors import UsageError


def renaming(found: Tensor, ignore_index: int, rng: Generator) -> tuple[Tensor, Tensor]:
    """The targets of a round (sorted), and what each is called after a random renaming of its classes among themselves.

    :raises UsageError: for a number below 0, which is no class.
    """
    places = (found != ignore_index).nonzero().flatten()
    classes, names = found[places], found.clone()
    if (classes < 0).any():
        raise UsageError(
            f"permute_labels needs classes 0, 1, ..., and {ignore_index} for points to ignore: a target is {classes[0]}"
        )
    names[places] = classes[torch.randperm(len(classes), generator=rng)]
    return found, names


def renamed(y: Tensor, old: Tensor, new: Tensor) -> Tensor:
    """Targets y by their new names.

    :raises UsageError: for a target that is not among the old ones.
    """
    places = torch.searchsorted(old, y).clamp_(max=len(old) - 1)
    if not torch.equal(old[places], y):
        raise UsageError("permute_labels needs targets that are the same in every draw: a transform changes them")
    return new[places]
