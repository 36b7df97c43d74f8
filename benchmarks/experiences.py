"""What an experience says of itself: the round that it belongs to, the tasks of its points, and the points."""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Sequence
from itertools import accumulate
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from avalanche.benchmarks import DatasetExperience
from avalanche.benchmarks.utils import AvalancheDataset, DataAttribute
from avalanche.benchmarks.utils.flat_data import FlatData
from avalanche.benchmarks.utils.transform_groups import TransformGroups
from torch import Tensor
from torch.utils.data import TensorDataset
from torch.utils.data.dataloader import default_collate

from ftml_bench.benchmarks.stacked import StackedDataset
from ftml_bench.errors import UsageError

LABELS = "targets_task_labels"  # Avalanche's name for the task label of every point

# -- rounds


def whole_of(experience: DatasetExperience) -> DatasetExperience:
    """The round that an arrival is a piece of; any other experience is the whole of its round."""
    origin = getattr(experience, "origin_experience", None)
    return experience if origin is None else origin


def number_of(experience: DatasetExperience) -> int | None:
    """Its place in its stream; None for an experience that is in none."""
    try:
        return experience.current_experience
    except AssertionError:  # Avalanche's way to say so
        return None


def place_of(experience: DatasetExperience) -> str:
    """Where it is, for people: "round 3 (experience 2) of the train stream of RainbowDigits"."""
    number, stream = number_of(experience), getattr(experience, "origin_stream", None)
    if number is None or stream is None:
        return "round of no stream"
    return f"round {number + 1} (experience {number}) of the {stream.name} stream of {type(stream.benchmark).__name__}"


def identity_of(experience: DatasetExperience) -> tuple[int | None, Hashable]:
    """What tells a round from others: its number in its stream, and its data.

    A number alone does not: every stream has an experience 0. Streams that are made anew, sliced or copied give other
    objects for the same round.
    """
    whole = whole_of(experience)
    return number_of(whole), data_key(whole)


def data_key(experience: DatasetExperience) -> Hashable:
    """Equal for equal data, as far as that can be said without reading points: see `dataset_key`."""
    stacked = getattr(experience, "stacked", None)
    return dataset_key(experience.dataset) if stacked is None else _once(stacked, _content)


def dataset_key(dataset: Any) -> Hashable:
    """Equal for the same points of the same datasets under the same transforms; datasets of tensors alone are the same
    if their tensors are equal."""
    return _tree(getattr(dataset, "_flat_data", dataset))


def points_of(dataset: Any) -> list[Hashable]:
    """Where each point lies, behind which transforms: equal for the same points, in whatever pieces they come."""
    return _points(getattr(dataset, "_flat_data", dataset), range(len(dataset)))


def _points(data: Any, indices: Iterable[int]) -> list[Hashable]:
    if not isinstance(data, FlatData):
        whole = _tree(data)
        return [(whole, i) for i in indices]
    if data._indices is not None:
        indices = [data._indices[i] for i in indices]
    ends = list(accumulate(map(len, data._datasets)))
    in_parts: list[list[int]] = [[] for _ in ends]
    order = []
    for i in indices:
        part = bisect_right(ends, i)
        order.append(part)
        in_parts[part].append(i - ends[part] + len(data._datasets[part]))
    found = [iter(_points(part, inner)) for part, inner in zip(data._datasets, in_parts, strict=True)]
    behind = _groups(data)
    return [(behind, next(found[part])) for part in order]


class _Same:
    """Equal to itself alone, and to whatever else holds the same object."""

    def __init__(self, held: object) -> None:
        self.held = held

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and other.held is self.held

    def __hash__(self) -> int:
        return id(self.held)


_known: WeakKeyDictionary[Any, str] = WeakKeyDictionary()


def _once(data: Any, content: Callable[[Any], str]) -> str:
    """`content(data)`, which takes time where there are many data."""
    if data not in _known:
        _known[data] = content(data)
    return _known[data]


def _tree(data: Any) -> Hashable:
    if type(data) is TensorDataset:
        return _once(data, lambda of: _hash(of.tensors))
    if not isinstance(data, FlatData):
        return _Same(data)
    rows = None if data._indices is None else np.asarray(list(data._indices), dtype=np.int64).tobytes()
    return (*map(_tree, data._datasets), rows, *_groups(data))


def _groups(data: FlatData) -> tuple[Hashable, ...]:
    groups = (getattr(data, name, None) for name in ("_frozen_transform_groups", "_transform_groups"))
    return tuple(_transforms(of) for of in groups if of is not None)


def _transforms(groups: TransformGroups) -> Hashable:
    found = groups.transform_groups
    # Avalanche's own are dictionaries with a default: asked for a name, they have it from then on.
    names = {"train", "eval"} | found.keys() if isinstance(found, defaultdict) else found.keys()
    each = [(name, found[name]) for name in sorted(names)]
    return tuple(
        (name, *(_Same(part) for part in getattr(transform, "transforms", [transform]))) for name, transform in each
    )


def _content(data: StackedDataset) -> str:
    return _hash(part for rows in torch.arange(len(data)).split(64) for part in data.take(rows))


def _hash(tensors: Iterable[Tensor]) -> str:
    found = hashlib.sha256()
    for tensor in tensors:
        found.update(f"{tensor.shape} {tensor.dtype}".encode())
        found.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()


# -- tasks


def labels_of(experience: DatasetExperience) -> tuple[int, ...] | None:
    """The task labels that occur in an experience, as a key; None where nothing says.

    What the experience says counts; else what its data say.
    """
    named = _named(experience)
    if named is None:  # Avalanche's own online splitter leaves them with the whole round
        named = _named(whole_of(experience))
    if named is not None:
        return tuple(sorted({int(label) for label in named}))
    of_points = _of_points(experience)
    if of_points is None:
        return None
    # Avalanche's attribute of no points cannot say which there are
    found = of_points.uniques if isinstance(of_points, DataAttribute) and len(of_points) else of_points
    return tuple(sorted({int(label) for label in found}))


def point_labels_of(experience: DatasetExperience) -> int | Tensor | None:
    """The task label of all points; where there are several, that of every point, (N,) int64; None: nothing says.

    :raises UsageError: if there are several tasks, and the data do not say which point is of which.
    """
    labels = labels_of(experience)
    if not labels:
        return None
    if len(labels) == 1:
        return labels[0]
    of_points = _of_points(experience)
    if of_points is None:
        raise UsageError(
            f"experience {number_of(experience)} holds the tasks {list(labels)}, and its data do not say which point "
            f"is of which: expected a task label for every point, the data attribute {LABELS!r}"
        )
    return torch.tensor([int(label) for label in of_points])


def _named(experience: DatasetExperience) -> Sequence[int] | None:
    try:
        return getattr(experience, "task_labels", None)
    except KeyError:  # an experience of Avalanche's older kind, in a stream that its benchmark does not know
        return None


def _of_points(experience: DatasetExperience) -> Sequence[int] | None:
    # On our own streams the experience says it.
    return None if hasattr(experience, "stacked") else getattr(experience.dataset, LABELS, None)


def tasks_of(experience: DatasetExperience) -> list[tuple[int, ...] | None]:
    """The tasks whose points an experience holds, each as `TaskBuffer.for_label` takes it; [None]: nothing says."""
    labels = point_labels_of(experience)
    if isinstance(labels, Tensor):
        return [(label,) for label in labels.unique().tolist()]
    return [None if labels is None else (labels,)]


def label_place(dataset: AvalancheDataset) -> int | None:
    """Where in a minibatch of `dataset` the task labels lie, from its end (-1: the last); None: not in it."""
    names = [name for name, attribute in dataset._data_attributes.items() if attribute.use_in_getitem]
    return names.index(LABELS) - len(names) if LABELS in names else None


def with_labels_in_minibatches(dataset: AvalancheDataset) -> AvalancheDataset:
    """`dataset`, whose points bring their task labels along."""
    if label_place(dataset) is not None:
        return dataset
    labels = [int(label) for label in getattr(dataset, LABELS)]
    return dataset.update_data_attribute(LABELS, DataAttribute(labels, LABELS, use_in_getitem=True))


# -- points


def batch_of(points: Sequence[Any], dataset: AvalancheDataset) -> tuple[Tensor, Tensor]:
    """Points as `dataset` gives them, stacked: x (N, *input) and y (N, *target); by its `collate_fn` if it has one.

    :raises UsageError: if a point is anything but an input and a target (and a task label).
    """
    others = [name for name, a in dataset._data_attributes.items() if a.use_in_getitem and name != LABELS]
    if others:
        raise UsageError(f"the points of a minibatch bring {', '.join(others)} along: {_EXPECTED}")
    entries = 2 if label_place(dataset) is None else 3
    for point in points:
        if not isinstance(point, (tuple, list)) or len(point) != entries:
            raise UsageError(f"a point of the data is {_kinds(point)}: {_EXPECTED}")
    if dataset.collate_fn is not default_collate:
        batch = dataset.collate_fn(list(points))
        n = len(points)
        fits = isinstance(batch, (tuple, list)) and len(batch) >= 2
        if not fits or any(not isinstance(part, Tensor) or len(part) != n for part in batch[:2]):
            raise UsageError(f"collate_fn gives {_kinds(batch)} of {n} points: expected tensors of {n} rows, (x, y)")
        return batch[0], batch[1]
    return _stacked([p[0] for p in points], "input"), _stacked([p[1] for p in points], "target")


_EXPECTED = (
    f"expected (x, y), which is what is drawn (task labels as the data attribute {LABELS!r}; other tensors are not "
    f"kept apart by task)"
)


def _stacked(values: list[Any], part: str) -> Tensor:
    tensors = []
    for value in values:
        plain = isinstance(value, (Tensor, np.ndarray, np.generic, bool, int, float))
        if not plain and not (part == "target" and isinstance(value, (list, tuple))):
            raise UsageError(f"the {part} of a point is a {_kind(value)}: expected a tensor, an array or a number")
        try:
            # a float as PyTorch's `default_collate` takes it, whatever the default precision
            tensors.append(torch.as_tensor(value, dtype=torch.float64 if isinstance(value, float) else None))
        except (TypeError, ValueError, RuntimeError) as error:
            raise UsageError(f"the {part} of a point makes no tensor: {error}") from error
    if len({t.shape for t in tensors}) > 1:
        shapes = sorted({tuple(t.shape) for t in tensors})
        raise UsageError(f"{part}s of the data have the shapes {shapes[0]} and {shapes[1]}: expected one")
    return torch.stack(tensors)


def _kinds(entry: Any) -> str:
    if isinstance(entry, (tuple, list)):
        return f"({', '.join(map(_kind, entry))})"
    return f"a {_kind(entry)}"


def _kind(value: Any) -> str:
    return type(value).__name__
