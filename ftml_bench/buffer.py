"""What a learner remembers: all data of all rounds, sampled in batches of tasks (the paper's task buffer B).

Nothing enters but what an arrival handed over as its own dataset; nothing leaves. Rounds are filed by
`current_experience`. Streams of stacked tensors are kept as bytes, shared with the stream or in a file, and a draw is
one gather, whatever the number of rounds; any other stream's data are kept as the `AvalancheDataset` that arrived and
read anew at each draw.
"""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from avalanche.benchmarks import DatasetExperience, OnlineCLExperience
from avalanche.benchmarks.utils import AvalancheDataset, concat_datasets
from avalanche.training.storage_policy import ExemplarsBuffer
from torch import Generator, Tensor

from ftml_bench.benchmarks.arrivals import balanced_order
from ftml_bench.benchmarks.stacked import StackedDataset, as_input
from ftml_bench.benchmarks.stream import avalanche_dataset
from ftml_bench.errors import UsageError
from ftml_bench.seeding import generator
from ftml_bench.storage import FileStorage, SharedStorage, Storage

Batch = tuple[Tensor, Tensor]


class Round:
    """The data of one round so far (D_t): one or several arrivals."""

    def __init__(self, labels: tuple[int, ...] | None, storage: Storage) -> None:
        self.labels = labels
        self.numbers: Tensor | None = None  # of its points in the storage, (N,) int64; None: they are in a dataset
        self._storage = storage
        self._dataset: AvalancheDataset | None = None

    def __len__(self) -> int:
        if self.numbers is not None:
            return len(self.numbers)
        return 0 if self._dataset is None else len(self._dataset)

    @property
    def task_label(self) -> int:
        """The label that rides with the round's points: the first of several, 0 where the stream has none."""
        return self.labels[0] if self.labels else 0

    @property
    def dataset(self) -> AvalancheDataset:
        """The data as one dataset."""
        if self._dataset is not None:
            return self._dataset
        assert isinstance(self._storage, FileStorage)
        assert self.numbers is not None
        return avalanche_dataset(self.task_label, self._storage.dataset(self.numbers))

    @property
    def classes(self) -> Tensor:
        """The class of every point, (N,) int64.

        :raises UsageError: if the round has no classes (regression).
        """
        if self.numbers is not None:
            classes = self._storage.labels(self.numbers)
            if not classes.is_floating_point():
                return classes.cpu()
        targets = getattr(self.dataset, "targets", None)
        if targets is None:
            raise UsageError("class_balanced and permute_labels need classes: this is a regression stream")
        return torch.as_tensor(list(targets))

    def add(self, dataset: AvalancheDataset | None, numbers: Tensor | None) -> None:
        """Append an arrival: its dataset, if that is to be kept, and the numbers of its points in the storage."""
        if numbers is not None:
            self.numbers = numbers if self.numbers is None else torch.cat([self.numbers, numbers])
        if dataset is not None:
            self._dataset = dataset if self._dataset is None else self._dataset.concat(dataset)

    def fingerprint(self) -> str:
        """Tells these data from others: a hash of the labels, and of the first and last input where they are stacked.

        A dataset is not read for it: its classes are looked at, if it has any, and nothing else.
        """
        found = hashlib.sha256(str(len(self)).encode())
        if self.numbers is not None:
            ends, _ = self._storage.take(self.numbers[[0, -1]])
            for tensor in (self._storage.labels(self.numbers), ends):
                found.update(tensor.cpu().contiguous().numpy().tobytes())
        elif self._dataset is not None and hasattr(self.dataset, "targets"):
            found.update(repr([int(y) for y in self.dataset.targets]).encode())
        return found.hexdigest()

    def read(self, indices: Tensor, *, train: bool) -> Batch:
        """The points at `indices`, read from the dataset: x (N, *input) and y (N, *target).

        :param train: with its training transform; else with its evaluation transform.
        """
        dataset = self.dataset.train() if train else self.dataset.eval()
        points = [dataset[int(i)] for i in indices]
        return torch.stack([p[0] for p in points]), torch.stack([torch.as_tensor(p[1]) for p in points])


class TaskBuffer(ExemplarsBuffer):
    """A buffer of everything, filed by round; used as Avalanche's own buffers (`.buffer`, `.update(strategy)`).

    :param device: where drawn batches go; bytes become floats there.
    :param folder: keep the inputs of streams of stacked tensors in a file in this folder instead of in memory (see
        `ftml_bench.storage.FileStorage`). Draws are the same.
    """

    def __init__(self, device: torch.device | str = "cpu", *, folder: str | os.PathLike[str] | None = None) -> None:
        super().__init__(max_size=sys.maxsize)
        self.device = torch.device(device)
        self.rounds: dict[int, Round] = {}
        self._in_file = folder is not None
        self._storage: Storage = SharedStorage(self.device) if folder is None else FileStorage(folder, self.device)

    @property
    def buffer(self) -> AvalancheDataset:
        """All data of all rounds as one dataset."""
        return concat_datasets([r.dataset for r in self.rounds.values()])

    def update(self, strategy, **kwargs) -> None:
        """File the strategy's current experience."""
        self.add(strategy.experience)

    def post_adapt(self, agent_state, exp) -> None:
        """File an experience (the name that Avalanche is moving to)."""
        self.add(exp)

    def resize(self, strategy, new_size: int) -> None:
        """Refused: the buffer keeps all data."""
        raise ValueError(f"TaskBuffer keeps all data and cannot be resized to {new_size}")

    def add(self, experience: DatasetExperience) -> int:
        """File an arrival under its round; an experience that is no part of a round is the whole of its round.

        :return: the round.
        """
        number = experience.current_experience
        is_part = isinstance(experience, OnlineCLExperience)
        before = self.rounds.get(number)
        # Training once more on the same data brings nothing new: a whole experience stands for its round, and an
        # arrival that has been seen is not added again.
        if before is not None and is_part:
            if len(before) >= getattr(experience, "n_seen_in_round", sys.maxsize):
                return number
        else:
            self.rounds[number] = Round(labels_of(experience), self._storage)
        stacked = getattr(experience, "stacked", None)
        numbers = None if stacked is None else self._file(stacked, None if is_part else before)
        is_in_file = stacked is not None and self._in_file
        self.rounds[number].add(None if is_in_file else experience.dataset, numbers)
        return number

    def _file(self, data: StackedDataset, before: Round | None) -> Tensor:
        """The numbers of the data's points in the storage, where they may lie from the last time already."""
        if before is not None and before.numbers is not None and len(before) == len(data):
            known, given = self._storage.take(before.numbers), data.take(torch.arange(len(data)))
            if all(torch.equal(a.cpu(), b.cpu()) for a, b in zip(known, given, strict=True)):
                return before.numbers
        return self._storage.append(data)

    def tensors(self) -> tuple[Tensor, Tensor, Tensor] | None:
        """Inputs, the row among them of every point by its number, and its y, on the device; None if not there."""
        return self._storage.tensors()

    def state_dict(self) -> dict[str, Any]:
        """Which data are here, without the data: they come again from the stream."""
        rounds = {number: [len(r), r.fingerprint()] for number, r in self.rounds.items()}
        return {"rounds": rounds}

    def load_state_dict(self, state: dict[str, Any], experiences: Iterable[DatasetExperience]) -> None:
        """Hold what was held then.

        :param experiences: those that had been added, in order.
        :raises UsageError: if these are other data than those that the state was saved with.
        """
        self.rounds = {}
        for experience in experiences:
            self.add(experience)
        found = self.state_dict()["rounds"]
        for number in [*state["rounds"], *found]:
            then, now = state["rounds"].get(number, [0, ""]), found.get(number, [0, ""])
            if then[0] != now[0]:
                raise UsageError(
                    f"not the stream that was trained on: round {number} now has {now[0]} datapoints, then {then[0]}"
                )
            if then != now:
                raise UsageError(f"not the stream that was trained on: round {number} has other data")

    def for_label(self, labels: tuple[int, ...] | None, *, limit: int, seed: int) -> Batch | None:
        """The data that an evaluation may adapt to, read with evaluation transforms; None if the label is unseen.

        One round with that label: all its points, or `limit` random ones. Several: as many of each, `limit` at most in
        all (but one of each at least).
        The choice depends on `seed` and on what has arrived, on nothing else.
        """
        numbers = [number for number, r in self.rounds.items() if r.labels == labels]
        if not numbers:
            return None
        share = limit
        if len(numbers) > 1:
            share = max(1, min(limit // len(numbers), *(len(self.rounds[number]) for number in numbers)))
        chosen = []
        for number in numbers:
            n = len(self.rounds[number])
            rows = torch.arange(n)
            if n > share:
                rows = torch.randperm(n, generator=generator(seed, "update", number, n))[:share].sort().values
            chosen.append((number, rows))
        return self._batch(chosen, train=False)

    def split(
        self,
        rounds: Sequence[int],
        support: int | None,
        query: int | None,
        rng: Generator,
        *,
        class_balanced: bool = False,
        permute_labels: bool = False,
    ) -> tuple[Batch, Batch]:
        """Support and query sets of a meta-batch, disjoint within every task: (T, S, ...) and (T, Q, ...).

        A round with fewer than `support` + `query` points is cut into two disjoint halves, each repeated in turn.
        With None and None both are all of D_k, the exact setting, where alone they coincide.

        :param rounds: T rounds, repeated ones drawn anew; each has at least two points.
        :param class_balanced: a draw holds the classes of its round equally often (of those with points enough).
        :param permute_labels: in each draw of a round its classes are renamed among themselves at random, in the
            support and the query set alike, so that no class can be told from what it was called before.
        :raises UsageError: with either of these, for regression.
        :raises ValueError: with None, if the rounds differ in size (the batch would not be rectangular).
        """
        chosen, renamings, n_support = [], [], 0
        for number in rounds:
            n = len(self.rounds[number])
            if support is None or query is None:
                first = second = torch.arange(n)
            else:
                round = self.rounds[number]
                order = balanced_order(round.classes, rng) if class_balanced else torch.randperm(n, generator=rng)
                if n >= support + query:
                    first, second = order[:support], order[support : support + query]
                else:
                    half = n // 2
                    first = order[torch.arange(support) % half]
                    second = order[half + torch.arange(query) % (n - half)]
            if permute_labels:
                renamings.append(_renaming(self.rounds[number].classes.unique(), rng))
            chosen.append((number, torch.cat([first, second])))
            n_support = len(first)
        sizes = sorted({len(self.rounds[number]) for number in rounds})
        if support is None and len(sizes) > 1:
            raise ValueError(f"support_size=None needs rounds of equal size in a meta-batch, got sizes {sizes}")
        x, y = (part.unflatten(0, (len(rounds), -1)) for part in self._take(chosen, train=True))
        for task, (old, new) in enumerate(renamings):
            y[task] = new.to(y.device)[torch.searchsorted(old.to(y.device), y[task])]
        (support_x, query_x), (support_y, query_y) = (
            (part[:, :n_support].contiguous(), part[:, n_support:].contiguous()) for part in (x, y)
        )
        return (as_input(support_x), support_y), (as_input(query_x), query_y)

    def groups(self, rounds: Sequence[int], size: int, rng: Generator) -> Batch:
        """`size` points of each of the rounds, one group after the other: (G * size, ...)."""
        return self._batch([(number, _some(len(self.rounds[number]), size, rng)) for number in rounds])

    def mixed(self, rounds: Sequence[int], size: int, rng: Generator, *, equal_tasks: bool) -> tuple[Batch, Tensor]:
        """A minibatch of `size` points from all of `rounds`, and the task label of every point, (size,) int64.

        :param equal_tasks: every point from a uniformly drawn round; else uniformly over datapoints. Points are
            distinct where there are enough.
        """
        sizes = torch.tensor([len(self.rounds[number]) for number in rounds])
        if equal_tasks:
            counts = torch.randint(len(rounds), (size,), generator=rng).bincount(minlength=len(rounds))
            rows = torch.cat([_some(n, k, rng) for n, k in zip(sizes.tolist(), counts.tolist(), strict=True)])
        else:
            rows = _some(int(sizes.sum()), size, rng)
            ends = sizes.cumsum(0)
            owner = torch.bucketize(rows, ends, right=True)
            rows = (rows - (ends - sizes)[owner])[owner.argsort(stable=True)]
            counts = owner.bincount(minlength=len(rounds))
        drawn = counts.nonzero().flatten()
        each = rows.split(counts[drawn].tolist())
        chosen = [(rounds[i], own) for i, own in zip(drawn.tolist(), each, strict=True)]
        return self._batch(chosen), self._labels(rounds, counts)

    def everything(self, rounds: Sequence[int]) -> tuple[Batch, Tensor]:
        """All points of `rounds`, round by round, and the task label of every point, (N,) int64."""
        sizes = [len(self.rounds[number]) for number in rounds]
        batch = self._batch([(number, torch.arange(n)) for number, n in zip(rounds, sizes, strict=True)])
        return batch, self._labels(rounds, torch.tensor(sizes))

    def _labels(self, rounds: Sequence[int], counts: Tensor) -> Tensor:
        return torch.tensor([self.rounds[number].task_label for number in rounds]).repeat_interleave(counts)

    def _batch(self, chosen: list[tuple[int, Tensor]], *, train: bool = True) -> Batch:
        """The points at the given rows of the given rounds, one after the other, as inputs."""
        x, y = self._take(chosen, train=train)
        return as_input(x), y

    def _take(self, chosen: list[tuple[int, Tensor]], *, train: bool) -> Batch:
        """The same as they are stored, on the device."""
        of_rounds = [(self.rounds[number], rows) for number, rows in chosen]
        numbers = [round.numbers[rows] for round, rows in of_rounds if round.numbers is not None]
        if len(numbers) == len(of_rounds):
            return self._storage.take(torch.cat(numbers))
        pieces = [round.read(rows, train=train) for round, rows in of_rounds]
        x, y = torch.cat([x for x, _ in pieces]), torch.cat([y for _, y in pieces])
        return x.to(self.device), y.to(self.device)


# A permutation of more points than this is not made for a few of them.
MANY = 100_000


def _some(n: int, size: int, rng: Generator) -> Tensor:
    """`size` distinct rows out of `n`; drawn with replacement where there are fewer."""
    if n < size:
        return torch.randint(n, (size,), generator=rng)
    if n > max(MANY, 10 * size):
        # Twice as many as needed, drawn with replacement, are distinct enough; their order says nothing.
        rows = torch.randint(n, (2 * size,), generator=rng).unique()
        return rows[torch.randperm(len(rows), generator=rng)[:size]]
    return torch.randperm(n, generator=rng)[:size]


def _renaming(classes: Tensor, rng: Generator) -> tuple[Tensor, Tensor]:
    """`classes` (sorted), and what each of them is called after a random renaming among themselves."""
    return classes, classes[torch.randperm(len(classes), generator=rng)]


def labels_of(experience: DatasetExperience) -> tuple[int, ...] | None:
    """The task labels of an experience as a key; None where the stream has none."""
    labels = getattr(experience, "task_labels", None)
    return None if labels is None else tuple(sorted(labels))
