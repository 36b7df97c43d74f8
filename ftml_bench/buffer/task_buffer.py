"""What a learner remembers: all data of all rounds, sampled in batches of tasks (the paper's task buffer B).

Nothing enters but what an arrival handed over as its own dataset; nothing leaves, unless a rule bounds the buffer (see
`rules`). A round is an experience of a
stream: another stream's experience with the same number is another round. Streams of stacked tensors are kept as
bytes, shared with the stream or in a file, and a draw is one gather, whatever the number of rounds; any other stream's
data are kept as the `AvalancheDataset` that arrived and read anew at each draw.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Hashable, Iterable, Sequence
from typing import Any
from weakref import WeakKeyDictionary

import torch
from avalanche.benchmarks import DatasetExperience
from avalanche.benchmarks.utils import AvalancheDataset, concat_datasets
from avalanche.training.storage_policy import ExemplarsBuffer
from torch import Generator, Tensor

from ftml_bench.benchmarks.arrivals import balanced_order
from ftml_bench.benchmarks.experiences import (
    identity_of,
    labels_of,
    number_of,
    point_labels_of,
    whole_of,
)
from ftml_bench.benchmarks.stacked import StackedDataset, as_input
from ftml_bench.buffer.renaming import renamed, renaming
from ftml_bench.buffer.round import Batch, Labels, Round
from ftml_bench.buffer.rules import Rule, see_that_it_is_one
from ftml_bench.buffer.storage import FileStorage, SharedStorage, Storage
from ftml_bench.errors import UsageError
from ftml_bench.seeding import generator

_Identity = tuple[tuple[int | None, Hashable], tuple[int, ...] | None]  # number and data of a round, and its tasks


class _Numbers(WeakKeyDictionary[DatasetExperience, int]):
    """The numbers of the rounds of experiences, which the streams keep alive."""

    def __reduce__(self):
        raise UsageError(
            "a strategy of ftml_bench cannot be pickled, whose rounds are known by their stream: expected "
            "ftml_bench.saving.save and load"
        )


class TaskBuffer(ExemplarsBuffer):
    """A buffer of everything, filed by round; used as Avalanche's own buffers (`.buffer`, `.update(strategy)`).

    :param device: where drawn batches go; bytes of streams of stacked tensors become floats there.
    :param folder: keep the inputs of streams of stacked tensors in a file in this folder instead of in memory (see
        `ftml_bench.buffer.storage.FileStorage`). Draws are the same.
    :param rule: what is kept of earlier rounds when a round begins; None: everything.
    :param seed: of what the rule draws.
    """

    def __init__(
        self,
        device: torch.device | str = "cpu",
        *,
        folder: str | os.PathLike[str] | None = None,
        rule: Rule | None = None,
        seed: int = 0,
    ) -> None:
        see_that_it_is_one(rule)
        super().__init__(max_size=sys.maxsize)
        self.rule, self._seed = rule, seed
        self.device = torch.device(device)
        self.rounds: dict[int, Round] = {}  # in order of arrival; by number, see `find`
        self._objects = _Numbers()
        self._identities: dict[_Identity, int] = {}
        self.in_a_file = folder is not None
        self._storage: Storage = SharedStorage(self.device) if folder is None else FileStorage(folder, self.device)

    @property
    def labels(self) -> Labels:
        """All task labels so far."""
        return tuple({label for r in self.rounds.values() for label in r.labels or (None,)})

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
        """Refused: what the buffer keeps is said by its rule."""
        raise ValueError(f"TaskBuffer keeps what its rule says and cannot be resized to {new_size}")

    def find(self, experience: DatasetExperience) -> int | None:
        """The number of an experience's round among `rounds`; None if nothing of it has arrived.

        It is the experience's own number in its stream; where a round of another stream has that already, the next
        free one.

        :raises UsageError: for an experience without data, which is no round.
        """
        if not len(experience.dataset):
            raise UsageError(f"experience {number_of(experience)} has no data to train on: expected at least one point")
        number = self._objects.get(whole_of(experience))
        return self._identities.get(self._identity(experience)) if number is None else number

    @staticmethod
    def _identity(experience: DatasetExperience) -> _Identity:
        return identity_of(experience), labels_of(whole_of(experience))

    def _new_number(self, experience: DatasetExperience) -> int:
        number, given = number_of(whole_of(experience)), {*self.rounds, *self._identities.values()}
        return max(given, default=-1) + 1 if number is None or number in given else number

    def add(self, experience: DatasetExperience) -> int:
        """File an arrival under its round; an experience that is no part of a round is the whole of its round.

        :return: the number of the round, see `find`.
        """
        labels = point_labels_of(experience)
        found = self.find(experience)
        number = self._new_number(experience) if found is None else found
        if number not in self.rounds:
            self._bound()
        before = self.rounds.get(number)
        whole = whole_of(experience)
        is_part = whole is not experience
        dataset, stacked = experience.dataset, getattr(experience, "stacked", None)
        # Training once more on the same data brings nothing new: a whole experience stands for its round, and of an
        # arrival only points are added that have not come before, in whatever order arrivals come.
        if before is not None and is_part:
            new = before.unseen(stacked, dataset)
            if len(new) == 0:
                return number
            if len(new) < len(dataset):
                dataset = dataset.subset(new.tolist())
                stacked = None if stacked is None else stacked.subset(new)
                labels = labels[new] if isinstance(labels, Tensor) else labels
        else:
            self.rounds[number] = Round(self._storage)
        self._objects[whole] = number
        if found is None:
            self._identities[self._identity(experience)] = number
        numbers = None if stacked is None else self._file(stacked, None if is_part else before)
        is_in_file = stacked is not None and self.in_a_file
        self.rounds[number].add(None if is_in_file else dataset, stacked, numbers, labels, len(dataset))
        return number

    def _bound(self) -> None:
        """Let go, when a round begins, of what the rule does not keep of those before."""
        if self.rule is None or not self.rounds:
            return
        for number, rows in self.rule.keep(self.rounds, self._seed).items():
            if len(rows) == 0:
                del self.rounds[number]
            elif len(rows) < len(self.rounds[number]):
                self.rounds[number].keep(rows)

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
        # Of stacked tensors a hash of the whole round is known since it came; it stays where a rule has let go of that.
        of_all = {number: key for ((_, key), _), number in self._identities.items() if isinstance(key, str)}
        return {"rounds": rounds, "contents": of_all}

    def load_state_dict(self, state: dict[str, Any], experiences: Iterable[DatasetExperience]) -> None:
        """Hold what was held then.

        :param experiences: those that had been added, in order.
        :raises UsageError: if these are other data than those that the state was saved with.
        """
        self.rounds, self._objects, self._identities = {}, _Numbers(), {}
        for experience in experiences:
            self.add(experience)
        found = self.state_dict()
        for number in [*state["rounds"], *found["rounds"]]:
            then, now = (of.get(number, [0, ""]) for of in (state["rounds"], found["rounds"]))
            if then[0] != now[0]:
                raise UsageError(
                    f"not the stream that was trained on: round {number + 1} now has {now[0]} datapoints, "
                    f"then {then[0]}"
                )
            if then != now:
                raise UsageError(f"not the stream that was trained on: round {number + 1} has other data")
        for number in [*state["contents"], *found["contents"]]:
            if state["contents"].get(number) != found["contents"].get(number):
                raise UsageError(f"not the stream that was trained on: round {number + 1} has other data")

    def for_label(self, labels: Labels | None, *, limit: int, seed: int) -> Batch | None:
        """The data that an evaluation may adapt to, read with evaluation transforms; None if the labels are unseen.

        Of one round with points of these task labels: all of them, or `limit` random ones. Of several: as many of each,
        `limit` at most in all (but one of each at least). The choice depends on `seed` and on what has arrived, on
        nothing else.

        :param labels: None: data of which nothing says the task.
        """
        labels = labels or (None,)
        found = [(number, r.rows_of(labels)) for number, r in self.rounds.items() if r.has_one_of(labels)]
        if not found:
            return None
        share = limit
        if len(found) > 1:
            share = max(1, min(limit // len(found), *(len(rows) for _, rows in found)))
        chosen = []
        for number, rows in found:
            n = len(rows)
            if n > share:
                rows = rows[torch.randperm(n, generator=generator(seed, "update", number, n))[:share].sort().values]
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
        ignore_index: int = -100,
    ) -> tuple[Batch, Batch, Tensor]:
        """Support and query sets of a meta-batch, disjoint within every task, (T, S, ...) and (T, Q, ...), and the task
        labels of the query points, (T, Q) int64.

        A round with fewer than `support` + `query` points is cut into two disjoint halves, each repeated in turn.
        With None and None both are all of D_k, the exact setting, where alone they coincide.

        :param rounds: T rounds, repeated ones drawn anew; each has at least two points.
        :param class_balanced: a draw holds the classes of its round equally often (of those with points enough).
        :param permute_labels: in each draw of a round its classes are renamed among themselves at random, in the
            support and the query set alike, so that no class can be told from what it was called before.
        :param ignore_index: a target that is no class and keeps its name.
        :raises UsageError: with either of these, for targets that are no classes (regression, soft labels, numbers
            below 0), and where points have several to balance; with None, for rounds of different sizes.
        """
        chosen, renamings, n_support = [], [], 0
        if support is None:
            self.size_of_each(rounds, "support_size=None")
        for number in rounds:
            n = len(self.rounds[number])
            if support is None or query is None:
                first = second = torch.arange(n)
            else:
                round = self.rounds[number]
                order = balanced_order(round.class_of_each, rng) if class_balanced else torch.randperm(n, generator=rng)
                if n >= support + query:
                    first, second = order[:support], order[support : support + query]
                else:
                    half = n // 2
                    first = order[torch.arange(support) % half]
                    second = order[half + torch.arange(query) % (n - half)]
            if permute_labels:
                renamings.append(renaming(self.rounds[number].classes.unique(), ignore_index, rng))
            chosen.append((number, torch.cat([first, second])))
            n_support = len(first)
        x, y = (part.unflatten(0, (len(rounds), -1)) for part in self._take(chosen, train=True))
        for task, (old, new) in enumerate(renamings):
            y[task] = renamed(y[task], old.to(y.device), new.to(y.device))
        (support_x, query_x), (support_y, query_y) = (
            (part[:, :n_support].contiguous(), part[:, n_support:].contiguous()) for part in (x, y)
        )
        labels = self._labels(chosen).unflatten(0, (len(rounds), -1))[:, n_support:]
        if self._are_stored(chosen):
            support_x, query_x = as_input(support_x), as_input(query_x)
        return (support_x, support_y), (query_x, query_y), labels

    def groups(self, rounds: Sequence[int], size: int, rng: Generator) -> tuple[Batch, Tensor]:
        """`size` points of each of the rounds, one group after the other, (G * size, ...), and the task label of every
        point, (G * size,) int64."""
        chosen = [(number, _some(len(self.rounds[number]), size, rng)) for number in rounds]
        return self._batch(chosen), self._labels(chosen)

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
        return self._batch(chosen), self._labels(chosen)

    def everything(self, rounds: Sequence[int]) -> tuple[Batch, Tensor]:
        """All points of `rounds`, round by round, and the task label of every point, (N,) int64."""
        chosen = [(number, torch.arange(len(self.rounds[number]))) for number in rounds]
        return self._batch(chosen), self._labels(chosen)

    def size_of_each(self, rounds: Sequence[int], setting: str) -> int:
        """How many points each of these rounds has.

        :param setting: that takes them whole, for the error.
        :raises UsageError: if they differ.
        """
        sizes = sorted({len(self.rounds[number]) for number in rounds})
        if len(sizes) > 1:
            raise UsageError(f"{setting}: expected rounds of one size in a minibatch, got sizes {sizes}")
        return sizes[0]

    def latest(self, number: int, n: int) -> Batch:
        """The last n points of a round, x (n, *input) and y (n, *target)."""
        size = len(self.rounds[number])
        return self._batch([(number, torch.arange(max(0, size - n), size))])

    def _labels(self, chosen: list[tuple[int, Tensor]]) -> Tensor:
        return torch.cat([self.rounds[number].point_labels[rows] for number, rows in chosen])

    def _batch(self, chosen: list[tuple[int, Tensor]], *, train: bool = True) -> Batch:
        """The points at the given rows of the given rounds, one after the other, as inputs."""
        x, y = self._take(chosen, train=train)
        return as_input(x) if self._are_stored(chosen) else x, y

    def _are_stored(self, chosen: list[tuple[int, Tensor]]) -> bool:
        """Whether all of them are stacked tensors, whose bytes become floats; other data come as their dataset says."""
        return all(self.rounds[number].numbers is not None for number, _ in chosen)

    def _take(self, chosen: list[tuple[int, Tensor]], *, train: bool) -> Batch:
        """The same as they are stored, or as their datasets give them, on the device.

        :raises UsageError: if points of several shapes or types come together.
        """
        of_rounds = [(self.rounds[number], rows) for number, rows in chosen]
        numbers = [round.numbers[rows] for round, rows in of_rounds if round.numbers is not None]
        if len(numbers) == len(of_rounds):
            return self._storage.take(torch.cat(numbers))
        pieces = [round.read(rows, train=train) for round, rows in of_rounds]
        refuse_unlike(chosen, pieces)
        x, y = torch.cat([x for x, _ in pieces]), torch.cat([y for _, y in pieces])
        return x.to(self.device), y.to(self.device)


def refuse_unlike(chosen: list[tuple[int, Tensor]], pieces: list[Batch]) -> None:
    """
    :raises UsageError: if inputs or targets of the chosen rounds differ in shape, inputs in type, or targets are here
        classes and there numbers.
    """
    first = chosen[0][0]
    for part, name in enumerate(("inputs", "targets")):
        of_first = pieces[0][part]
        for (number, _), piece in zip(chosen, pieces, strict=True):
            other = piece[part]
            keeps_values = name == "targets" and other.is_floating_point() == of_first.is_floating_point()
            if other.shape[1:] != of_first.shape[1:] or (other.dtype != of_first.dtype and not keeps_values):
                kinds = [f"{tuple(t.shape[1:])} of type {t.dtype}" for t in (of_first, other)]
                raise UsageError(
                    f"{name} of round {first + 1} have the shape {kinds[0]}, of round {number + 1} {kinds[1]}: "
                    f"expected one shape and type for rounds that are drawn together"
                )


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
