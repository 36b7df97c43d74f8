"""Cutting a round into arrivals: the n new datapoints that come at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from avalanche.benchmarks.scenarios import DatasetExperience, OnlineCLExperience

from ftml_bench.benchmarks.checks import check_int
from ftml_bench.benchmarks.experiences import place_of
from ftml_bench.errors import UsageError
from ftml_bench.seeding import generator
from ftml_bench.sizes import cumulative


class Arrival(OnlineCLExperience):
    """Avalanche's, which says what it is."""

    arrival_index: int
    n_seen_in_round: int

    def __repr__(self) -> str:
        place = f"arrival {self.arrival_index + 1} of {self.sub_stream_length} in {place_of(self)}"
        return f"<{place}: {len(self.dataset)} points, {self.n_seen_in_round} so far>"


def cumulative_sizes(n: int, sizes: int | Sequence[int]) -> list[int]:
    """The number of datapoints seen after each arrival of a round.

    :param n: datapoints in the round.
    :param sizes: as for :func:`arrivals`.
    :raises UsageError: for an empty round, no sizes, or a size that is not a whole number of at least 1.

    >>> cumulative_sizes(100, 30)
    [30, 60, 90, 100]
    >>> cumulative_sizes(100, [5, 15, 40])
    [5, 20, 60, 100]
    """
    if n < 1:
        raise UsageError("a round without datapoints has no arrivals")
    return cumulative(n, _sizes(sizes))


def arrivals(experience: DatasetExperience, sizes: int | Sequence[int], seed: int = 0) -> Iterator[OnlineCLExperience]:
    """Cut a round into arrivals, in a random order that depends on `seed` and on the round alone.

    A stream whose datapoints come in some other order says so: its experiences carry `arrival_order`, a function such
    as :func:`balanced_order` or :func:`class_by_class`.

    The arrivals partition the round. Each is an Avalanche experience with the *round's* `current_experience`,
    `origin_stream`, task label and classes, so Avalanche's metrics take rounds for their experiences. (Avalanche's own
    splitter numbers the pieces through the whole stream; forgetting and backward transfer are then wrong.) It also has

    - `arrival_index`: 0, 1, ... within the round;
    - `n_seen_in_round`: datapoints of the round so far, this arrival included;
    - `is_first_subexp`, `is_last_subexp`, `sub_stream_length`: its place among the round's arrivals;
    - `stacked`: its :class:`~ftml_bench.benchmarks.stacked.StackedDataset`, on our own streams.

    `origin_experience` is the whole round, as in Avalanche, which adapts growing models by it at the first arrival.
    A learner must not read that experience's data: most of it has not arrived.

    :param experience: one experience of a training stream: ours, or any Avalanche experience with a dataset.
    :param sizes: n for n datapoints an arrival, or a list of sizes, the last of which repeats until the round is spent.
        The last arrival may be smaller.
    :param seed: decides the order.
    :return: an iterator; the arguments are checked at the call.
    :raises UsageError: for an empty round, no sizes, or a size that is not a whole number of at least 1.
    """
    check_int("seed", seed)
    ends = cumulative_sizes(len(experience.dataset), sizes)
    rng = generator(seed, "arrivals", experience.current_experience)
    order_of = getattr(experience, "arrival_order", None)
    order = torch.randperm(ends[-1], generator=rng) if order_of is None else order_of(experience.stacked.y, rng)
    return (_arrival(experience, order, ends, index) for index in range(len(ends)))


def balanced_order(labels: torch.Tensor, rng: torch.Generator) -> torch.Tensor:
    """A random order in which the classes come equally often: after any number of points, no class with points left
    is more than one ahead or behind.

    :param labels: (N,) int64, the class of each point.
    :return: (N,) int64: a permutation. Of C classes, every C points in turn are one of each, in random order.

    >>> labels = torch.tensor([7, 7, 7, 2, 2, 2])
    >>> labels[balanced_order(labels, torch.Generator())].view(3, 2).sum(1)
    tensor([9, 9, 9])
    """
    order = torch.randperm(len(labels), generator=rng)
    shuffled = labels[order]
    turn = torch.empty_like(order)  # which of its class a point is
    for label in labels.unique():
        of_class = shuffled == label
        turn[of_class] = torch.arange(int(of_class.sum()))
    return order[turn.argsort(stable=True)]


def class_by_class(labels: torch.Tensor, rng: torch.Generator) -> torch.Tensor:
    """An order in which the classes come one after the other, in random order, and the points of each in random order.

    :param labels: (N,) int64, the class of each point.
    :return: (N,) int64: a permutation.

    >>> labels = torch.tensor([7, 2, 7, 2, 2, 7])
    >>> labels[class_by_class(labels, torch.Generator())].unique_consecutive().numel()
    2
    """
    order = torch.randperm(len(labels), generator=rng)
    classes, index = labels.unique(return_inverse=True)
    place = torch.randperm(len(classes), generator=rng)
    return order[place[index[order]].argsort(stable=True)]


def _sizes(sizes: int | Sequence[int]) -> list[int]:
    each = list(sizes) if isinstance(sizes, (list, tuple)) else [sizes]
    if not each:
        raise UsageError("arrival sizes []: expected a whole number or several")
    return [check_int("arrival size", size, least=1) for size in each]


def _arrival(experience: DatasetExperience, order: torch.Tensor, ends: list[int], index: int) -> OnlineCLExperience:
    points = order[ends[index - 1] if index else 0 : ends[index]]
    arrival = Arrival(
        dataset=experience.dataset.subset(points.tolist()),
        origin_experience=experience,
        is_first_subexp=index == 0,
        is_last_subexp=index == len(ends) - 1,
        sub_stream_length=len(ends),
        # With False, Avalanche would adapt the model at every arrival instead of once a round.
        access_task_boundaries=True,
    )
    arrival.current_experience = experience.current_experience
    arrival.origin_stream = experience.origin_stream
    arrival.arrival_index = index
    arrival.n_seen_in_round = ends[index]
    # Not task_label: Avalanche's older experiences raise a ValueError there if they hold several tasks.
    labels = getattr(experience, "task_labels", None)
    if labels is not None:
        arrival.task_labels = list(labels)
        if len(arrival.task_labels) == 1:
            arrival.task_label = arrival.task_labels[0]
    classes = getattr(experience, "classes_in_this_experience", None)
    if classes is not None:
        arrival.classes_in_this_experience = list(classes)
    stacked = getattr(experience, "stacked", None)
    if stacked is not None:
        arrival.stacked = stacked.subset(points)
    return arrival
