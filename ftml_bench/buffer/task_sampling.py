"""Which tasks a meta-batch is of: the paper's ν_t, uniform or given by weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Generator, Tensor

from ftml_bench.errors import UsageError

TaskSampler = Callable[[int], Tensor]  # the number t of rounds so far -> t weights, in the order of arrival


def weights_of(rounds: Sequence[int], known: Sequence[int], sampler: TaskSampler | None) -> Tensor:
    """How often each of `rounds` is drawn, up to a factor, (len(rounds),).

    :param known: the rounds so far, in the order of arrival.
    :param sampler: gives their weights; None: uniform.
    :raises UsageError: unless it gives a weight of at least 0 for each, one of them above 0.
    """
    if sampler is None:
        return torch.ones(len(rounds))
    weights = torch.as_tensor(sampler(len(known)), dtype=torch.float)
    if weights.shape != (len(known),):
        raise UsageError(f"task_sampler: expected {len(known)} weights, a round each, got {tuple(weights.shape)}")
    places = {number: place for place, number in enumerate(known)}
    weights = weights[torch.tensor([places[number] for number in rounds])]
    if not (weights >= 0).all() or not 0 < float(weights.sum()) < float("inf"):
        raise UsageError(
            f"task_sampler: expected weights of at least 0, one of them above 0, for rounds {list(rounds)}, "
            f"got {weights.tolist()}"
        )
    return weights


def sample_tasks(rounds: Sequence[int], weights: Tensor, number: int, rng: Generator) -> list[int]:
    """`number` of the rounds, drawn with replacement."""
    return [rounds[i] for i in torch.multinomial(weights, number, replacement=True, generator=rng).tolist()]
