"""The small meta-batch of a trial, and the weights and directions that it is tried at."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ftml_bench.adaptation.inner_loop import Input

Weights = dict[str, Tensor]


def few(x: Input, y: Tensor, query_x: Input, *, rows: int | None) -> tuple[Any, ...]:
    """Two tasks; of each `rows` points of the support set and three queries, but as many tasks as points where it is so
    in the whole, since sizes that happen to agree may hide a mix-up. Without `rows` all points."""
    tasks, support = y.shape[:2]
    query = (query_x[0] if isinstance(query_x, tuple) else query_x).shape[1]
    if rows is None:
        return tuple(rows_of(part, slice(2)) for part in (x, y, query_x))
    few: dict[int, int] = {}
    for size, small in ((tasks, 2), (support, rows), (query, 3)):
        few.setdefault(size, min(size, small))
    if support == tasks or query == tasks:
        few[tasks] = min(tasks, 3)
    return tuple(
        rows_of(rows_of(part, slice(few[tasks])), (slice(None), slice(few[size])))
        for part, size in ((x, support), (y, support), (query_x, query))
    )


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
