"""What a learner remembers: all data of all rounds, sampled in batches of tasks (the paper's task buffer B).

Nothing enters but what an arrival handed over as its own dataset; nothing leaves. Rounds are filed by
`current_experience`. Streams of stacked tensors are kept as bytes, shared with the stream; any other stream's data are
kept as the `AvalancheDataset` that arrived and read anew at each draw.
"""

from __future__ import annotations

import hashlib
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
from ftml_bench.errors import UsageError
from ftml_bench.seeding import generator

Batch = tuple[Tensor, Tensor]


class Round:
    """The data of one round so far (D_t): one or several arrivals."""

    def __init__(self, labels: tuple[int, ...] | None) -> None:
        self.labels = labels
        self.dataset: AvalancheDataset | None = None
        self._stacked: StackedDataset | None = None

    def __len__(self) -> int:
        return 0 if self.dataset is None else len(self.dataset)

    @property
    def task_label(self) -> int:
        """The label that rides with the round's points: the first of several, 0 where the stream has none."""
        return self.labels[0] if self.labels else 0

    @property
    def classes(self) -> Tensor:
        """The class of every point, (N,) int64.

        :raises UsageError: if the round has no classes (regression).
        """
        if self._stacked is not None and self._stacked.is_classification:
            return self._stacked.targets
        targets = getattr(self.dataset, "targets", None)
        if targets is None:
            raise UsageError("class_balanced and permute_labels need classes: this is a regression stream")
        return torch.as_tensor(list(targets))

    def add(self, dataset: AvalancheDataset, stacked: StackedDataset | None) -> None:
        """Append an arrival."""
        if stacked is not None:
            self._stacked = stacked if self._stacked is None else self._stacked.concat(stacked)
        self.dataset = dataset if self.dataset is None else self.dataset.concat(dataset)

    def fingerprint(self) -> str:
        """Tells these data from others: a hash of the labels, and of the first and last input where they are stacked.

        A dataset is not read for it: its classes are looked at, if it has any, and nothing else.
        """
        found = hashlib.sha256(str(len(self)).encode())
        if self._stacked is not None:
            ends, _ = self._stacked.take(torch.tensor([0, len(self) - 1]))
            for tensor in (self._stacked.y, ends):
                found.update(tensor.contiguous().numpy().tobytes())
        elif self.dataset is not None and hasattr(self.dataset, "targets"):
            found.update(repr([int(y) for y in self.dataset.targets]).encode())
        return found.hexdigest()

    def take(self, indices: Tensor, *, train: bool) -> Batch:
        """The points at `indices`: x (N, *input), bytes where they are stored so, and y (N, *target).

        :param train: read a dataset with its training transform; else with its evaluation transform.
        """
        if self._stacked is not None:
            return self._stacked.take(indices)
        assert self.dataset is not None
        dataset = self.dataset.train() if train else self.dataset.eval()
        points = [dataset[int(i)] for i in indices]
        return torch.stack([p[0] for p in points]), torch.stack([torch.as_tensor(p[1]) for p in points])


class TaskBuffer(ExemplarsBuffer):
    """A buffer of everything, filed by round; used as Avalanche's own buffers (`.buffer`, `.update(strategy)`).

    :param device: where drawn batches go; bytes become floats there.
    """

    def __init__(self, device: torch.device | str = "cpu") -> None:
        super().__init__(max_size=sys.maxsize)
        self.device = torch.device(device)
        self.rounds: dict[int, Round] = {}

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
        # Training once more on the same data brings nothing new: a whole experience stands for its round, and an
        # arrival that has been seen is not added again.
        if number not in self.rounds or not is_part:
            self.rounds[number] = Round(labels_of(experience))
        elif len(self.rounds[number]) >= getattr(experience, "n_seen_in_round", sys.maxsize):
            return number
        self.rounds[number].add(experience.dataset, getattr(experience, "stacked", None))
        return number

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
        pieces = []
        for number in numbers:
            n = len(self.rounds[number])
            rows = torch.arange(n)
            if n > share:
                rows = torch.randperm(n, generator=generator(seed, "update", number, n))[:share].sort().values
            pieces.append(self.rounds[number].take(rows, train=False))
        return self._batch(pieces)

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
        supports, queries = [], []
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
            drawn = [self.rounds[number].take(rows, train=True) for rows in (first, second)]
            if permute_labels:
                drawn = _renamed(drawn, self.rounds[number].classes.unique(), rng)
            supports.append(drawn[0])
            queries.append(drawn[1])
        if len({len(x) for x, _ in supports}) > 1:
            sizes = sorted({len(x) for x, _ in supports})
            raise ValueError(f"support_size=None needs rounds of equal size in a meta-batch, got sizes {sizes}")
        return self._batch(supports, len(rounds)), self._batch(queries, len(rounds))

    def groups(self, rounds: Sequence[int], size: int, rng: Generator) -> Batch:
        """`size` points of each of the rounds, one group after the other: (G * size, ...)."""
        pieces = [self.rounds[number].take(self._rows(number, size, rng), train=True) for number in rounds]
        return self._batch(pieces)

    def mixed(self, rounds: Sequence[int], size: int, rng: Generator, *, equal_tasks: bool) -> tuple[Batch, list[int]]:
        """A minibatch of `size` points from all of `rounds`, and the task label of every point.

        :param equal_tasks: every point from a uniformly drawn round; else uniformly over datapoints. Points are
            distinct where there are enough.
        """
        sizes = torch.tensor([len(self.rounds[number]) for number in rounds])
        if equal_tasks:
            counts = torch.randint(len(rounds), (size,), generator=rng).bincount(minlength=len(rounds))
            chosen = [(number, self._rows(number, k, rng)) for number, k in zip(rounds, counts.tolist(), strict=True)]
        else:
            rows = _some(int(sizes.sum()), size, rng)
            ends = sizes.cumsum(0)
            owner = torch.bucketize(rows, ends, right=True)
            chosen = [(number, rows[owner == i] - (ends[i] - sizes[i])) for i, number in enumerate(rounds)]
        chosen = [(number, rows) for number, rows in chosen if len(rows)]
        labels = [self.rounds[number].task_label for number, rows in chosen for _ in rows]
        return self._batch([self.rounds[number].take(rows, train=True) for number, rows in chosen]), labels

    def everything(self, rounds: Sequence[int]) -> tuple[Batch, list[int]]:
        """All points of `rounds`, round by round, and the task label of every point."""
        labels = [self.rounds[number].task_label for number in rounds for _ in range(len(self.rounds[number]))]
        pieces = [self.rounds[number].take(torch.arange(len(self.rounds[number])), train=True) for number in rounds]
        return self._batch(pieces), labels

    def _rows(self, number: int, size: int, rng: Generator) -> Tensor:
        return _some(len(self.rounds[number]), size, rng)

    def _batch(self, pieces: list[Batch], tasks: int | None = None) -> Batch:
        """The pieces as one batch of inputs on the device, with a leading task dimension if `tasks` is given."""
        x = as_input(torch.cat([x for x, _ in pieces]).to(self.device))
        y = torch.cat([y for _, y in pieces]).to(self.device)
        return (x, y) if tasks is None else (x.unflatten(0, (tasks, -1)), y.unflatten(0, (tasks, -1)))


def _some(n: int, size: int, rng: Generator) -> Tensor:
    """`size` distinct rows out of `n`; drawn with replacement where there are fewer."""
    return torch.randperm(n, generator=rng)[:size] if n >= size else torch.randint(n, (size,), generator=rng)


def _renamed(drawn: list[Batch], classes: Tensor, rng: Generator) -> list[Batch]:
    """The batches with `classes` (sorted) renamed among themselves by one random permutation."""
    new = classes[torch.randperm(len(classes), generator=rng)]
    return [(x, new[torch.searchsorted(classes, y)]) for x, y in drawn]


def labels_of(experience: DatasetExperience) -> tuple[int, ...] | None:
    """The task labels of an experience as a key; None where the stream has none."""
    labels = getattr(experience, "task_labels", None)
    return None if labels is None else tuple(sorted(labels))
