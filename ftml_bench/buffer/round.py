"""The data of one round, as a buffer files them."""

from __future__ import annotations

import hashlib
from collections.abc import Hashable

import torch
from avalanche.benchmarks.utils import AvalancheDataset
from torch import Generator, Tensor

from ftml_bench.benchmarks.experiences import batch_of, points_of
from ftml_bench.benchmarks.stacked import StackedDataset
from ftml_bench.benchmarks.stream import avalanche_dataset
from ftml_bench.buffer.storage import FileStorage, Storage
from ftml_bench.errors import UsageError
from ftml_bench.random_state import fixed_random_state, preserved_random_state

Batch = tuple[Tensor, Tensor]
READ_AT_ONCE = 64  # points of a dataset, where only their targets are kept
Labels = tuple[int | None, ...]  # task labels; None: that of data of which nothing says it


class Round:
    """The data of one round so far (D_t): one or several arrivals."""

    def __init__(self, storage: Storage) -> None:
        self.is_labelled = True  # whether the stream says of what task the points are
        self.point_labels = torch.empty(0, dtype=torch.int64)  # the task label of every point, (N,); 0: nothing says
        self._tasks: set[int] = set()  # that occur among them
        self.numbers: Tensor | None = None  # of its points in the storage, (N,) int64; None: they are in a dataset
        self._storage = storage
        self._dataset: AvalancheDataset | None = None
        self.arrived = 0  # points so far, whatever is kept of them
        # What tells them from those that come: of stacked tensors their rows there and their numbers in the storage ...
        self._came_rows, self._came_numbers = torch.arange(0), torch.arange(0)
        self._came: set[Hashable] = set()  # ... of datasets their places there,
        self._came_in: list[AvalancheDataset] = []  # as far as anything has come after these
        self._targets: Tensor | None = None  # of its first points in a dataset, as far as they were read
        self.keys: Tensor | None = None  # (N,), in [0, 1): by which a rule chooses; drawn when the round has ended

    def __len__(self) -> int:
        return len(self.point_labels)

    @property
    def labels(self) -> tuple[int, ...] | None:
        """The task labels that its points have; None where the stream has none."""
        return tuple(sorted(self._tasks)) if self.is_labelled else None

    @property
    def task_label(self) -> int:
        """The first of its task labels; 0 where the stream has none."""
        return self.labels[0] if self.labels else 0

    def has_one_of(self, labels: Labels) -> bool:
        """Whether any of its points has one of these task labels; None: no label."""
        return not self._tasks.isdisjoint(labels) if self.is_labelled else None in labels

    def rows_of(self, labels: Labels) -> Tensor:
        """Which of its points have one of these task labels, (n,) int64."""
        if not self.has_one_of(labels):
            return torch.arange(0)
        if not self.is_labelled or self._tasks <= set(labels):
            return torch.arange(len(self))
        return torch.isin(self.point_labels, torch.tensor(sorted(self._tasks & set(labels)))).nonzero().flatten()

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
        """The classes of every point as they are trained on, (N,) int64; (N, ...) where a point has one a token.

        Those of a dataset are read once, each with its point: what it says of itself is not what a transform of
        targets makes.

        :raises UsageError: if the round has no classes (regression, soft labels).
        """
        if self.numbers is not None:
            classes = self._storage.labels(self.numbers).cpu()
        else:
            with preserved_random_state(torch.device("cpu")):  # of training transforms
                for start in range(0 if self._targets is None else len(self._targets), len(self), READ_AT_ONCE):
                    _, y = self.read(torch.arange(start, min(start + READ_AT_ONCE, len(self))), train=True)
                    self._targets = y if self._targets is None else torch.cat([self._targets, y])
            assert self._targets is not None
            classes = self._targets
        if classes.is_floating_point():
            raise UsageError("class_balanced and permute_labels need classes: this is a regression stream")
        return classes

    @property
    def class_of_each(self) -> Tensor:
        """As `classes`, (N,) int64.

        :raises UsageError: if points have several, or none.
        """
        classes = self.classes
        if classes.dim() != 1:
            raise UsageError(
                f"class_balanced and ShareOfClasses need one class a point: a target of this round has the shape "
                f"{tuple(classes.shape[1:])}"
            )
        return classes

    def has_target(self, value: int) -> bool:
        """Whether any of its points, which are stacked, has this class."""
        assert self.numbers is not None
        return bool((self._storage.labels(self.numbers) == value).any())

    def add(
        self,
        dataset: AvalancheDataset | None,
        stacked: StackedDataset | None,
        numbers: Tensor | None,
        labels: int | Tensor | None,
        n: int,
    ) -> None:
        """Append an arrival of n points: its dataset, if that is to be kept, where they lie, if they are stacked, with
        their numbers in the storage, and their task labels (one for all, one of each, or None)."""
        self.is_labelled = self.is_labelled and labels is not None
        self.arrived += n
        of_points = labels if isinstance(labels, Tensor) else torch.full((n,), labels or 0)
        self.point_labels = torch.cat([self.point_labels, of_points])
        self._tasks.update(of_points.unique().tolist())
        if stacked is not None and numbers is not None:
            self._came_rows = torch.cat([self._came_rows, stacked.rows])
            self._came_numbers = torch.cat([self._came_numbers, numbers])
            self.numbers = numbers if self.numbers is None else torch.cat([self.numbers, numbers])
        if dataset is not None:
            if stacked is None:
                self._came_in.append(dataset)
            self._dataset = dataset if self._dataset is None else self._dataset.concat(dataset)

    def draw_keys(self, rng: Generator) -> Tensor:
        """A random number of each of its points, (N,): drawn once, those of points that come later when they have."""
        known = torch.empty(0) if self.keys is None else self.keys
        self.keys = torch.cat([known, torch.rand(len(self) - len(known), generator=rng)])
        return self.keys

    def keep(self, rows: Tensor) -> None:
        """Let go of all points but those at `rows`."""
        self.point_labels = self.point_labels[rows]
        self._tasks = set(self.point_labels.unique().tolist())
        if self.numbers is not None:
            self.numbers = self.numbers[rows]
        if self._dataset is not None:
            self._dataset = self._dataset.subset(rows.tolist())
            if self._targets is not None:
                self._targets = self._targets[rows[rows < len(self._targets)]]
        if self.keys is not None:
            self.keys = self.keys[rows]

    def unseen(self, stacked: StackedDataset | None, dataset: AvalancheDataset) -> Tensor:
        """Which points of an arrival have not come before, (n,) int64: another row, or another content in it."""
        if stacked is None:
            self._came.update(point for piece in self._came_in for point in points_of(piece))
            self._came_in = []
            return torch.tensor([i for i, point in enumerate(points_of(dataset)) if point not in self._came])
        is_new = torch.ones(len(stacked), dtype=torch.bool)
        came = torch.isin(self._came_rows, stacked.rows).nonzero().flatten()
        for place in came.split(READ_AT_ONCE) if len(came) else ():
            known = self._storage.take(self._came_numbers[place])
            of_place, i = (self._came_rows[place, None] == stacked.rows).nonzero().unbind(1)
            given = stacked.take(i)
            is_same = torch.stack(
                [(a.cpu()[of_place] == b.cpu()).reshape(len(i), -1).all(1) for a, b in zip(known, given, strict=True)]
            ).all(0)
            is_new[i[is_same]] = False
        return is_new.nonzero().flatten()

    def fingerprint(self) -> str:
        """Tells these data from others: a hash of the labels, and of the first and the last point."""
        found = hashlib.sha256(str(len(self)).encode())
        if self.numbers is not None:
            ends, _ = self._storage.take(self.numbers[[0, -1]])
            for tensor in (self._storage.labels(self.numbers), ends):
                found.update(_bytes(tensor))
        elif self._dataset is not None:
            if hasattr(self.dataset, "targets"):
                found.update(repr([torch.as_tensor(y).tolist() for y in self.dataset.targets]).encode())
            if len(self):
                found.update(self._content_of_ends())
        return found.hexdigest()

    def _content_of_ends(self) -> bytes:
        """The first and the last point of a dataset as an evaluation reads them; nothing where each reading differs,
        as by a transform with a generator of its own."""
        ends = torch.tensor([0, len(self) - 1])
        readings = []
        for _ in range(2):
            with fixed_random_state():
                try:
                    readings.append(b"".join(map(_bytes, self.read(ends, train=False))))
                except UsageError:  # nothing that an evaluation could adapt to, as pictures that become no tensors
                    return b""
        return readings[0] if readings[0] == readings[1] else b""

    def read(self, indices: Tensor, *, train: bool) -> Batch:
        """The points at `indices`, read from the dataset: x (N, *input) and y (N, *target).

        :param train: with its training transform; else with its evaluation transform.
        """
        dataset = self.dataset.train() if train else self.dataset.eval()
        return batch_of([dataset[int(i)] for i in indices], dataset)


def _bytes(tensor: Tensor) -> bytes:
    return tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes()
