"""How far outputs are apart, to be measured by how much outputs move with the weights, not by how large they are.

So what is constant among them hides nothing: a mask of -1e9, or of minus infinity, makes a tensor of outputs large,
and the others no less important.
"""

from __future__ import annotations

import torch
from torch import Tensor

ROUNDINGS = 32  # of an element, by which two ways to compute it may differ
HUGE = 1e3  # times as large as others


def distances(found: Tensor, expected: Tensor) -> Tensor:
    """How far elements are apart beyond their own rounding: not at all where both are the same infinity or NaN."""
    if not (expected.is_floating_point() or expected.is_complex()):
        found, expected = found.double(), expected.double()
    if found.shape != expected.shape:
        return torch.full(expected.shape, float("inf"), device=expected.device)
    are_same = (found == expected) | (found.isnan() & expected.isnan())
    apart = (found - expected).abs() - ROUNDINGS * torch.finfo(expected.dtype).eps * expected.abs()
    return apart.nan_to_num(nan=float("inf"), posinf=float("inf")).clamp(min=0).masked_fill(are_same, 0)


def typical(moves: Tensor) -> float:
    """How far those elements move that move; 0 if none does. A few that jump count no more than others."""
    some = moves[(moves > 0) & moves.isfinite()]
    return float(some.median()) if some.numel() else 0.0


def resolved(outputs: Tensor, moves: Tensor) -> Tensor:
    """Which outputs are not so large beside the others that rounding hides how they move, as by a mask that is added.

    :param moves: how far each moves with the weights.
    """
    sizes = outputs.abs()
    moved = sizes[(moves > 0) & sizes.isfinite()]
    if not moved.numel():
        return sizes.isfinite()
    others = max(typical(moves), float(moved.min()))
    return sizes.isfinite() & (sizes <= HUGE * moves.clamp(min=others))
