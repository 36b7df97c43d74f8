"""The small meta-batch of a trial, and the weights and directions that it is tried at."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ftml_bench.adaptation.inner_loop import Input

Weights = dict[str, Tensor]
MOST = 32  # points of a set
NUMBERS = 2**15  # of the inputs of a set


def affordable(x: Input) -> int:
    """So many points of a set a trial takes: up to 32, of large ones fewer, but no fewer than five."""
    return max(5, min(MOST, NUMBERS // max(_inputs(x).shape[2:].numel(), 1)))


def rows_seen(x: Input, query_x: Input) -> tuple[int, ...]:
    """How many support and query points a trial takes."""
    return tuple(min(_inputs(part).shape[1], affordable(x)) for part in (x, query_x))


def views(x: Input, query_x: Input) -> tuple[bool, ...]:
    """The values of `agreeing` (see `few`) for a meta-batch: both where there are as many tasks as points, since such
    sizes may hide a mix-up, but few enough tasks show all of their points at once."""
    tasks, support = _inputs(x).shape[:2]
    if tasks not in (support, _inputs(query_x).shape[1]):
        return (False,)
    return (True,) if tasks <= 3 else (True, False)


def few(x: Input, y: Tensor, query_x: Input, *, rows: int | None, agreeing: bool = False) -> tuple[Any, ...]:
    """Two tasks, and of each so many support and query points at most; None: all.

    :param agreeing: three tasks, and as many points where it is so in the whole.
    """
    tasks, support = y.shape[:2]
    query = _inputs(query_x).shape[1]
    if rows is None:
        return tuple(rows_of(part, slice(2)) for part in (x, y, query_x))
    few = {tasks: 3} if agreeing else {}
    few.setdefault(support, rows)
    few.setdefault(query, rows - 1)  # where both are cut, they stay two sizes
    return tuple(
        rows_of(rows_of(part, slice(3 if agreeing else 2)), (slice(None), slice(few[size])))
        for part, size in ((x, support), (y, support), (query_x, query))
    )


def _inputs(x: Input) -> Tensor:
    return x[0] if isinstance(x, tuple) else x


def rows_of(part: Any, which: Any) -> Any:
    return tuple(p[which] for p in part) if isinstance(part, tuple) else part[which]


def copied(data: Any) -> Any:
    return tuple(map(copied, data)) if isinstance(data, tuple) else data.clone()


def elsewhere(weight: Tensor, generator: torch.Generator) -> Tensor:
    """Weights not far from these, of the same signs; small ones where all are zero."""
    if not (weight.is_floating_point() or weight.is_complex()):
        return weight
    noise = torch.randn(weight.shape, generator=generator).to(weight)
    return weight * (1 + 0.1 * noise) if weight.any() else 0.02 * noise


def random_like(like: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randn(like.shape, generator=generator, dtype=like.dtype).to(like.device)


def inner(a: Tensor, b: Tensor) -> Tensor:
    """The sum of products; of complex numbers, of their real and imaginary parts."""
    return (torch.view_as_real(a) * torch.view_as_real(b)).sum() if a.is_complex() else (a * b).sum()


def leave_out_padding(direction: Weights, model: nn.Module) -> None:
    """In a table's row of padding PyTorch takes no gradient, on purpose."""
    for name, module in model.named_modules():
        row = getattr(module, "padding_idx", None)
        table = direction.get(f"{name}.weight" if name else "weight")
        if isinstance(row, int) and table is not None:
            table[row] = 0
