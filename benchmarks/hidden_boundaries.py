"""Any stream of tasks with its boundaries hidden: small windows, whose task stays, changes, blurs and returns."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ftml_bench import registry
from ftml_bench.benchmarks.checks import check_int
from ftml_bench.benchmarks.stacked import StackedDataset
from ftml_bench.benchmarks.stream import TaskStream
from ftml_bench.errors import UsageError
from ftml_bench.seeding import generator


class HiddenBoundaries(TaskStream):
    """The tasks of another stream, a window of points at a time, as in OSAKA (Caccia et al. 2020).

    A window is a round here: it has a number and a task label of its own, which say nothing of its task. With
    probability `stay` it is of the same task as the window before, else of another one, drawn uniformly: tasks come
    back. Of the two windows at a change each point is of the other's task with probability `overlap`. The points of a
    task arrive in random order, and again in another one when all have arrived.

    What is held out with window t are points of the window to come, t + 1: an evaluation after window t says how well
    the learner will predict what it sees next, before it has any label of it. They come from the held-out data of their
    task and are never trained on. The first window, which nobody could know anything of, is not evaluated.

    - `.tasks` (rounds + 1,) int64: the task of each window, and of the one after the last. No learner sees it.
    """

    version = 1

    def __init__(
        self,
        *,
        seed: int = 0,
        rounds: int = 100,
        images_per_round: int = 10,
        held_out_per_round: int = 20,
        of: str = "RainbowDigits",
        of_settings: Mapping[str, Any] | None = None,
        stay: float = 0.9,
        overlap: float = 0.0,
        root: str | None = None,
    ) -> None:
        """
        :param seed: decides the other stream and everything here. With another number of rounds the windows that both
            have are the same.
        :param rounds: windows, 1 or more.
        :param images_per_round: points of a window, 1 or more.
        :param held_out_per_round: held-out points of a window, 1 or more.
        :param of: the other stream, by its name or as "module:Class"; one of stacked tensors.
        :param of_settings: keywords of its constructor; its `rounds` are the tasks, two or more.
        :param stay: from 0 to 1, 1 excluded.
        :param overlap: from 0 to 0.5.
        :param root: the data folder, for a stream that reads files.
        :raises UsageError: for arguments outside these ranges, or what the other stream refuses.
        """
        seed = check_int("seed", seed)
        rounds = check_int("rounds", rounds, least=1)
        sizes = {
            "train": check_int("images_per_round", images_per_round, least=1),
            "test": check_int("held_out_per_round", held_out_per_round, least=1),
        }
        if not 0 <= stay < 1:
            raise UsageError(f"stay {stay:g}: expected a number from 0 to below 1")
        if not 0 <= overlap <= 0.5:
            raise UsageError(f"overlap {overlap:g}: expected a number from 0 to 0.5")
        self._of = _stream(of, dict(of_settings or {}), seed, root)
        path = _path(seed, rounds + 2, len(self._of.train_stream), stay)
        mixtures = {
            "train": [_mixture(seed, path, t, sizes["train"], overlap, "train") for t in range(rounds)],
            "test": [_mixture(seed, path, t + 1, sizes["test"], overlap, "test") for t in range(rounds)],
        }
        self.tasks = path[: rounds + 1]
        super().__init__(
            title=f"{self._of.title}, boundaries hidden",
            train=_windows(seed, self._of.train_stream, mixtures["train"], "train"),
            held_out=_windows(seed, self._of.test_stream, mixtures["test"], "test"),
            threshold=None,
            checkpoints=[images_per_round],
            arrivals=images_per_round,
            criterion=self._of.criterion,
            inner_lr=self._of.inner_lr,
            update_steps=self._of.update_steps,
            measures=("online",),
        )

    def model(self) -> nn.Module:
        """The other stream's."""
        return self._of.model()


def _stream(name: str, settings: dict[str, Any], seed: int, root: str | None) -> TaskStream:
    cls = registry.load("benchmark", name)
    if root is not None and "root" in inspect.signature(cls).parameters:
        settings.setdefault("root", root)
    try:
        stream = cls(**{"seed": seed, **settings})
    except TypeError as error:
        raise UsageError(f"of_settings: {name}: {error}") from error
    if not isinstance(stream, TaskStream) or len(stream.train_stream) < 2:
        raise UsageError(f"of {name!r}: expected a stream of stacked tensors with two rounds or more, which are tasks")
    return stream


def _path(seed: int, windows: int, tasks: int, stay: float) -> Tensor:
    """The task of each window, (windows,) int64."""
    path: list[int] = []
    for t in range(windows):
        rng = generator(seed, "stream", "hidden-boundaries", "task", t)
        stays = bool(path) and float(torch.rand((), generator=rng)) < stay
        if not path:
            path.append(int(torch.randint(tasks, (), generator=rng)))
        else:
            other = (path[-1] + 1 + int(torch.randint(tasks - 1, (), generator=rng))) % tasks
            path.append(path[-1] if stays else other)
    return torch.tensor(path)


def _mixture(seed: int, path: Tensor, t: int, n: int, overlap: float, split: str) -> Tensor:
    """The task of each of the n points of window t, (n,) int64."""
    rng = generator(seed, "stream", "hidden-boundaries", f"{split} mixture", t)
    of_points, chance = path[t].repeat(n), torch.rand(n, generator=rng)
    for neighbour, other in ((t - 1, chance < overlap), (t + 1, chance >= 1 - overlap)):
        if 0 <= neighbour < len(path) and path[neighbour] != path[t]:
            of_points = torch.where(other, path[neighbour], of_points)
    return of_points


def _windows(seed: int, stream: Sequence[Any], mixtures: list[Tensor], split: str) -> list[StackedDataset]:
    """Datasets of the points of each window, which share one base: that of all tasks."""
    taken = [experience.stacked.take(torch.arange(len(experience.stacked))) for experience in stream]
    x, y = (torch.cat(part) for part in zip(*taken, strict=True))
    starts = torch.tensor([0, *(len(own) for _, own in taken)]).cumsum(0)
    orders: list[Tensor] = [torch.arange(0) for _ in taken]  # what is left of each task's order
    times = [0] * len(taken)
    windows = []
    for mixture in mixtures:
        rows = torch.empty(len(mixture), dtype=torch.int64)
        for task in mixture.unique().tolist():
            places = (mixture == task).nonzero().flatten()
            while len(orders[task]) < len(places):
                rng = generator(seed, "stream", "hidden-boundaries", f"{split} order {task}", times[task])
                size = len(taken[task][1])
                orders[task] = torch.cat([orders[task], torch.randperm(size, generator=rng)])
                times[task] += 1
            now, orders[task] = orders[task][: len(places)], orders[task][len(places) :]
            rows[places] = starts[task] + now
        windows.append(StackedDataset(x, y[rows], rows))
    return windows
