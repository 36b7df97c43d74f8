"""An Avalanche benchmark of one task a round, made from stacked datasets."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from avalanche.benchmarks.scenarios import CLScenario, DatasetExperience, EagerCLStream
from avalanche.benchmarks.utils import (
    AvalancheDataset,
    ConstantSequence,
    DataAttribute,
    TaskAwareSupervisedClassificationDataset,
    TaskLabels,
)
from avalanche.benchmarks.utils.transform_groups import TransformGroups
from torch import Tensor, nn

from ftml_bench.benchmarks.experiences import place_of
from ftml_bench.benchmarks.stacked import StackedDataset, as_input
from ftml_bench.errors import UsageError


def reachable(checkpoints: Iterable[int], datapoints: int) -> list[int]:
    """Those checkpoints that lie inside a round, and its end.

    >>> reachable([20, 40, 100], 50)
    [20, 40, 50]
    """
    return [c for c in checkpoints if c < datapoints] + [datapoints]


class TaskStream(CLScenario):
    """A benchmark with one task a round: `train_stream[t]` holds its data, `test_stream[t]` its held-out data.

    Both experiences of a round carry the round's index as their task label, so stock strategies, plugins and metrics
    of Avalanche run on it unchanged. Beside what Avalanche defines, each experience has `.stacked`, its
    :class:`StackedDataset`. Classification experiences have `classes_in_this_experience`, a list.

    The other attributes are the benchmark's own defaults, which whoever runs it may replace.
    """

    train_stream: EagerCLStream
    test_stream: EagerCLStream

    #: A whole number, raised whenever a number that a run on this stream gives could change; it stands in every record,
    #: and a report does not mix two of them. None: the stream does not say.
    version: int | None = None

    def __init__(
        self,
        *,
        title: str,
        train: Sequence[StackedDataset],
        held_out: Sequence[StackedDataset],
        threshold: tuple[str, float] | None,
        checkpoints: Sequence[int],
        arrivals: int | Sequence[int],
        criterion: nn.Module,
        inner_lr: float,
        update_steps: int,
        measures: Sequence[str] = (),
    ) -> None:
        """
        :param title: the benchmark's name for people.
        :param train: the data of each round.
        :param held_out: the held-out data of each round.
        :param threshold: the level of proficiency, (metric, value): ("accuracy", at least) or ("loss", below); None:
            no level is set, performance is reported at the checkpoints alone.
        :param checkpoints: numbers of datapoints of a round at which performance is reported.
        :param arrivals: the default sizes for :func:`~ftml_bench.benchmarks.arrivals`.
        :param criterion: the loss.
        :param inner_lr: learning rate of the inner steps.
        :param update_steps: gradient steps of the update procedure.
        :param measures: names of what else is worth measuring round by round on this stream (see `ftml_bench.metrics`).
        :raises UsageError: if the streams differ in length, a round has no data or no held-out data or none whose
            target counts, or a row of their common base is in both.
        """
        if len(train) != len(held_out) or not train:
            raise UsageError(
                f"{len(train)} rounds of data, {len(held_out)} of held-out data: expected as many, 1 or more"
            )
        none = getattr(criterion, "ignore_index", -100)  # the target of a token or pixel that has no class
        for index, (data, test) in enumerate(zip(train, held_out, strict=True)):
            _check_round(index, data, test, none)
        super().__init__([self._stream("train", train, none), self._stream("test", held_out, none)])
        self.title = title
        self.threshold = threshold
        self.checkpoints = list(checkpoints)
        self.arrivals = arrivals
        self.criterion = criterion
        self.inner_lr = inner_lr
        self.update_steps = update_steps
        self.measures = tuple(measures)

    def __repr__(self) -> str:
        data, test = (_sizes(stream) for stream in (self.train_stream, self.test_stream))
        level = "" if self.threshold is None else f"; threshold: {' '.join(map(str, self.threshold))}"
        rounds = f"{len(self.train_stream)} rounds of {data} points and {test} held out"
        return f"<{type(self).__name__}: {rounds}, {self.train_stream[0].stacked.kind}{level}>"

    def model(self) -> nn.Module:
        """A new network for this benchmark; torch's random state decides its parameters."""
        raise NotImplementedError(f"{type(self).__name__} has no model of its own")

    def label_text(self, label: Tensor) -> str:
        """A datapoint's label for people: its class, the classes that it has, or its numbers."""
        if label.is_floating_point():
            return " ".join(f"{number:.1f}" for number in label.flatten().tolist())
        return " ".join(map(str, label.unique().tolist()))

    def _stream(self, name: str, datasets: Sequence[StackedDataset], none: int) -> EagerCLStream:
        # Avalanche leaves a new-style stream's benchmark unset, and some strategies read it.
        return RoundStream(name, [_experience(t, data, none) for t, data in enumerate(datasets)], benchmark=self)


class RoundStream(EagerCLStream):
    """Avalanche's, which says what it is."""

    def __repr__(self) -> str:
        return f"<{self.name} stream of {type(self.benchmark).__name__}: {len(self)} rounds of {_sizes(self)} points>"


class Round(DatasetExperience):
    """Avalanche's, which says what it is."""

    def __repr__(self) -> str:
        return f"<{place_of(self)}: {len(self.dataset)} points, {self.stacked.kind}>"


def _sizes(stream: EagerCLStream) -> str:
    sizes = {len(experience.dataset) for experience in stream}
    return " to ".join(map(str, sorted({min(sizes), max(sizes)})))


def carry(stream: EagerCLStream, **values: Sequence[object]) -> None:
    """Let each experience carry what is known of its task: the t-th of each of `values` goes to round t."""
    for name, of_rounds in values.items():
        for experience, value in zip(stream, of_rounds, strict=True):
            setattr(experience, name, value)


def _check_round(index: int, train: StackedDataset, held_out: StackedDataset, none: int) -> None:
    # Avalanche says accuracy 0.0 for an empty dataset and IndexError in training.
    if not len(train) or not len(held_out):
        raise UsageError(
            f"round {index + 1} has {len(train)} datapoints and {len(held_out)} held-out ones: expected some"
        )
    if train.x is held_out.x and (shared := int(torch.isin(held_out.rows, train.rows).sum())):
        raise UsageError(f"round {index + 1}: {shared} of the held-out datapoints are training data")
    for data, name in ((train, "target"), (held_out, "held-out target")):
        if data.is_classification and bool((data.y == none).all()):
            raise UsageError(f"round {index + 1}: every {name} is {none}, which stands for no class: expected classes")


def _experience(index: int, data: StackedDataset, none: int) -> DatasetExperience:
    experience = Round(dataset=avalanche_dataset(index, data), current_experience=index)
    experience.stacked = data
    experience.task_label = index
    experience.task_labels = [index]
    if data.is_classification:
        # A list: Avalanche's own decorator stores a set, which its multi-head models cannot index with.
        experience.classes_in_this_experience = [label for label in data.y.unique().tolist() if label != none]
    return experience


def avalanche_dataset(index: int, data: StackedDataset) -> AvalancheDataset:
    """`data` as Avalanche has datasets, with the task label `index`; bytes become inputs when a point is read."""
    task = TaskLabels(ConstantSequence(index, len(data)))
    groups = TransformGroups({"train": (as_input, None), "eval": (as_input, None)})
    if data.is_classification:
        targets = DataAttribute(data.y.tolist(), "targets")
        return TaskAwareSupervisedClassificationDataset(
            [data], data_attributes=[targets, task], transform_groups=groups
        )
    # No "targets" attribute for regression: Avalanche would take every vector for a class of its own.
    return AvalancheDataset([data], data_attributes=[task], transform_groups=groups)
