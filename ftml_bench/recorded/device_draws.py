"""Meta-batches drawn on the device that trains, from tables there: the host neither waits nor is waited for.

What is drawn are rounds by weight, and disjoint support and query points of each, as `TaskBuffer.split` draws them,
from other random numbers: a run on a GPU is not the run on a CPU.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ftml_bench.benchmarks.stacked import as_input
from ftml_bench.buffer import Batch, Round, TaskBuffer
from ftml_bench.seeding import derive


class DeviceDraws:
    """Draws from a buffer whose points lie in tensors on the device.

    All shapes are those of tables with room for more rounds and points, so that a recorded CUDA graph goes on drawing
    rightly while they fill; `places` says when it has to be recorded again.

    :param seed: of the draws.
    """

    def __init__(self, buffer: TaskBuffer, seed: int) -> None:
        self._buffer = buffer
        self._device = buffer.device
        self.rng = torch.Generator(self._device).manual_seed(derive(seed, "device draws"))
        self._make_room(64, 1024)

    def _make_room(self, rounds: int, points: int) -> None:
        self._numbers = torch.zeros(rounds, points, dtype=torch.int64, device=self._device)  # of a round's points
        self._sizes = torch.zeros(rounds, dtype=torch.int64, device=self._device)
        self._labels = torch.zeros(rounds, dtype=torch.int64, device=self._device)
        self._weights = torch.zeros(rounds, dtype=torch.float64, device=self._device)
        self._known: dict[int, Tensor] = {}  # row -> the numbers that stand there

    def take_in(self, weights: dict[int, float]) -> bool:
        """Bring the tables up to what the buffer holds now.

        :param weights: of the rounds that may be drawn; each has two points at least.
        :return: False if the buffer's points are not in tensors on the device, or a round holds several tasks:
            nothing can be drawn here.
        """
        rounds = self._buffer.rounds
        if self._buffer.tensors() is None or any(r.numbers is None for r in rounds.values()):
            return False
        if any(len(r.labels or ()) > 1 for r in rounds.values()):
            return False
        room = self._numbers.shape
        needed = len(rounds), max(len(r) for r in rounds.values())
        if needed[0] > room[0] or needed[1] > room[1]:
            self._make_room(*(2 * n if n > there else there for n, there in zip(needed, room, strict=True)))
        for row, round in enumerate(rounds.values()):
            self._put(row, round)
        given = torch.tensor([weights.get(number, 0.0) for number in rounds], dtype=torch.float64)
        self._weights.zero_()[: len(given)] = given.to(self._device, non_blocking=True)
        return True

    def _put(self, row: int, round: Round) -> None:
        if self._known.get(row) is round.numbers:
            return
        assert round.numbers is not None
        self._numbers[row, : len(round)] = round.numbers.to(self._device, non_blocking=True)
        self._sizes[row] = len(round)
        self._labels[row] = round.task_label
        self._known[row] = round.numbers

    @property
    def places(self) -> tuple[int, ...]:
        """Where everything lies that a draw reads."""
        tensors = self._buffer.tensors() or ()
        return tuple(t.data_ptr() for t in (self._numbers, self._sizes, self._labels, self._weights, *tensors))

    def split(self, tasks: int, support: int, query: int) -> tuple[Batch, Batch, Tensor]:
        """Support x (T, S, *input) and y, query x (T, Q, *input) and y, and its points' task labels, (T, Q).

        As `TaskBuffer.split`: a round with fewer than S + Q points is cut into two disjoint halves, each
        repeated in turn.
        """
        tensors = self._buffer.tensors()
        assert tensors is not None
        base, rows, y = tensors
        ends = self._weights.cumsum(0)
        drawn = torch.rand(tasks, generator=self.rng, device=self._device, dtype=torch.float64) * ends[-1]
        chosen = torch.searchsorted(ends, drawn, right=True)  # never a round of weight 0
        sizes = self._sizes[chosen].unsqueeze(1)
        keys = torch.rand(tasks, self._numbers.shape[1], generator=self.rng, device=self._device)
        column = torch.arange(keys.shape[1], device=self._device)
        most = min(support + query, keys.shape[1])  # a round that has more makes the table wider
        order = keys.masked_fill_(column >= sizes, 2.0).topk(most, dim=1, largest=False).indices
        numbers = self._numbers[chosen].gather(1, order.gather(1, _positions(sizes, support, query))).flatten()
        x = base.index_select(0, rows.index_select(0, numbers)).unflatten(0, (tasks, -1))
        targets = y.index_select(0, numbers).unflatten(0, (tasks, -1))
        return (
            (as_input(x[:, :support].contiguous()), targets[:, :support].contiguous()),
            (as_input(x[:, support:].contiguous()), targets[:, support:].contiguous()),
            self._labels[chosen].unsqueeze(1).expand(-1, query),
        )


def _positions(sizes: Tensor, support: int, query: int) -> Tensor:
    """Which places of a random order of n points, sizes (T, 1), are support and query, (T, S + Q)."""
    first, second = (torch.arange(n, device=sizes.device).unsqueeze(0) for n in (support, query))
    half = (sizes // 2).clamp_min(1)  # rows of fewer than two points are never drawn
    halves = torch.cat([first % half, half + second % (sizes - half).clamp_min(1)], dim=1)
    return torch.where(sizes >= support + query, torch.cat([first, support + second], dim=1), halves)
