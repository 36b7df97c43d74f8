"""Held-out performance: accumulated over the batches of an evaluation, and as the base of the metrics of rounds."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Hashable
from types import SimpleNamespace
from typing import Any

import torch
from avalanche.evaluation import PluginMetric
from avalanche.evaluation.metric_results import MetricValue
from avalanche.models import DynamicModule
from torch import Tensor, nn
from torch.utils._pytree import tree_map
from torch.utils.data import default_collate

from ftml_bench.adaptation.refusals import is_pytorchs
from ftml_bench.adaptation.weights import loss_by
from ftml_bench.benchmarks.experiences import dataset_key, identity_of, number_of, whole_of
from ftml_bench.errors import UsageError, unknown
from ftml_bench.metrics.curves import LARGER_IS_BETTER
from ftml_bench.models.copies import copy_of
from ftml_bench.random_state import preserved_random_state

_EXPECTED = (
    "expected outputs (N, C, ...) of two or more classes and targets (N, ...) that are whole numbers from 0, or the "
    "metric 'loss'"
)


def counted_targets(strategy) -> Tensor | None:
    """Which targets of the strategy's current minibatch, (N, ...), an accuracy counts; None if they are no classes.

    Classes are whole numbers from 0, with an output (N, C, ...) for each of two or more of them: one a point, or one a
    token or pixel. Not counted is the criterion's `ignore_index`, as PyTorch calls it; -100 for criteria without one.
    """
    outputs, targets = strategy.mb_output, strategy.mb_y
    if not isinstance(outputs, Tensor) or not isinstance(targets, Tensor):
        return None
    if targets.is_floating_point() or targets.is_complex():
        return None
    if outputs.dim() < 2 or outputs.shape[:1] + outputs.shape[2:] != targets.shape:
        return None
    # A classifier that grows may have met one class so far.
    if outputs.shape[1] < 2 and not any(isinstance(m, DynamicModule) for m in strategy.model.modules()):
        return None
    counted = targets.long() != ignored_target(strategy)  # in bytes -100 would be 156
    return None if bool((counted & (targets < 0)).any()) else counted


def predicted(strategy, model: nn.Module | None, outputs: Any, targets: Any) -> SimpleNamespace:
    """What `Performance.update` reads of a minibatch that `model` has predicted, be it the strategy's or another."""
    own = getattr(strategy, "_own_model", getattr(strategy, "model", None))
    loss = loss_by(model, own, strategy._criterion, outputs, targets)
    return SimpleNamespace(mb_output=outputs, mb_y=targets, loss=loss, model=model, _criterion=strategy._criterion)


def ignored_target(strategy) -> int:
    """The target that stands for none."""
    return getattr(getattr(strategy, "_criterion", None), "ignore_index", -100)


def called(outputs: Tensor) -> Tensor:
    """The class that each of the outputs (N, C, ...) names, (N, ...): that of its largest entry; -1 where one is NaN,
    which PyTorch takes for the largest."""
    return outputs.argmax(dim=1).masked_fill(outputs.isnan().any(dim=1), -1)


class Performance:
    """Criterion and accuracy of one evaluated experience, whatever the minibatches that it comes in.

    The criterion of all points is a mean of those of minibatches where it is a mean over targets. For any other (sums,
    weights of classes, functions of one's own) outputs and targets are kept until the last minibatch has come.
    """

    saved_attributes = ("points", "targets", "_loss", "_weight", "_correct")

    def __init__(self) -> None:
        self.points = 0
        self.targets = 0  # that are counted: one a point, or one a token or pixel
        self._loss = 0.0
        self._weight = 0
        self._correct: int | None = 0
        self._kept: list[tuple[Any, Any]] = []  # outputs and targets of each minibatch
        self._model: nn.Module | None = None  # that has predicted them

    def update(self, strategy) -> None:
        """Add the strategy's current evaluation minibatch; accuracy is None unless targets are classes."""
        outputs, targets = strategy.mb_output, strategy.mb_y
        self.points += len(targets)
        weight = _weight(strategy._criterion, targets)
        if weight is None:
            self._kept.append((outputs, targets))
            self._model = strategy.model
            weight = len(targets)  # of one minibatch; of several `close` says more
        if weight:
            self._loss += float(strategy.loss) * weight
            self._weight += weight
        counted = counted_targets(strategy)
        if self._correct is None or counted is None:
            self._correct = None
            return
        self.targets += int(counted.sum())
        self._correct += int((counted & (called(outputs) == targets)).sum())

    def close(self, strategy) -> None:
        """The last minibatch has come.

        :raises UsageError: if outputs of a model are no tensors that could be joined for a criterion that needs it.
        """
        kept, self._kept = self._kept, []
        model, self._model = self._model, None
        if len(kept) > 1:
            with torch.no_grad():
                outputs, targets = map(_joined, zip(*kept, strict=True))
                self._loss, self._weight = float(predicted(strategy, model, outputs, targets).loss), 1

    @property
    def loss(self) -> float:
        """The criterion, for most a mean over the points; nan if no target counts."""
        return self._loss / self._weight if self._weight else math.nan

    @property
    def accuracy(self) -> float | None:
        """Share of targets whose largest output is their class; None where they are no classes, nan if none counts."""
        if self._correct is None:
            return None
        return self._correct / self.targets if self.targets else math.nan

    def value(self, metric: str) -> float:
        """The performance in `metric`, "accuracy" or "loss"."""
        value = self.accuracy if metric == "accuracy" else self.loss
        if value is None:
            raise UsageError(f"accuracy of what is no classification: {_EXPECTED}")
        return value


def _weight(criterion: Any, targets: Any) -> int | None:
    """Over how many targets of a minibatch a criterion is the mean; None where it is not known to be one."""
    if not (isinstance(criterion, nn.Module) and is_pytorchs(criterion)):
        return None
    if getattr(criterion, "reduction", "") != "mean" or getattr(criterion, "weight", None) is not None:
        return None
    if not hasattr(criterion, "ignore_index") or targets.is_floating_point():
        return len(targets)
    return int((targets != criterion.ignore_index).sum())


def _joined(parts: tuple[Any, ...]) -> Any:
    """The parts of all minibatches as one: tensors, or several in a tuple, list or dictionary."""
    try:
        return tree_map(lambda *tensors: torch.cat(tensors), *parts)
    except (TypeError, ValueError, RuntimeError) as error:
        raise UsageError(
            f"a loss of minibatches whose parts of type {type(parts[0]).__name__} cannot be joined: expected tensors, "
            f"a criterion of PyTorch's that is a mean over points, or an eval_mb_size of all held-out points"
        ) from error


def check_classification(strategy) -> None:
    """Sees that accuracy can be counted, before anything is trained: predicts two points of the current experience.

    A copy of the model predicts them, in evaluation mode; nothing else is changed, random states included.

    :raises UsageError: for outputs and targets that are no classes. What cannot be predicted is for the training to
        say.
    """
    try:
        found = _Prediction(strategy)
    except Exception:
        return
    if counted_targets(found) is None:
        raise UsageError(f"accuracy of what is no classification ({found}): {_EXPECTED}")


class _Prediction:
    """What a strategy predicts of the first two points of its experience, in the place of a minibatch."""

    def __init__(self, strategy) -> None:
        given = strategy.mbatch, strategy.model, strategy.is_training
        dataset = strategy.experience.dataset
        try:
            with torch.no_grad(), preserved_random_state(strategy.device):
                points = default_collate([dataset[i] for i in range(min(2, len(dataset)))])
                strategy.mbatch = [part.to(strategy.device) for part in points]
                strategy.model = self.model = copy_of(strategy.model).to(strategy.device).eval()
                strategy.is_training = False
                self.mb_output, self.mb_y = strategy.forward(), strategy.mb_y
        finally:
            strategy.mbatch, strategy.model, strategy.is_training = given
        self._criterion = strategy._criterion

    def __str__(self) -> str:
        return f"outputs {_shown(self.mb_output)}, targets {_shown(self.mb_y)}"


def _shown(value: object) -> str:
    """A tensor's shape without the number of points, and its type."""
    if not isinstance(value, Tensor):
        return f"of type {type(value).__name__}"
    shape = ", ".join(["N", *map(str, value.shape[1:])])
    return f"({shape}) {str(value.dtype).removeprefix('torch.')}"


class RoundMetric(PluginMetric[float]):
    """Follows the current round: its learning curve of held-out performance over the round's datapoints.

    The curve grows by one point whenever the held-out experience of the current round is evaluated, outside of the
    training stream. Streams that are evaluated beside each other, as "test" and "valid", have a curve each. Rounds have
    the numbers of their stream; those of a further training stream, and rounds that come again, go on from there.
    Subclasses say what they emit (`_emit`) after such an evaluation, and what they know of a stream (`of_stream`,
    `_new_stream`).

    :param metric: "accuracy" or "loss" (the strategy's criterion).
    """

    of_stream: tuple[str, ...] = ("datapoints", "values")  # attributes of which each held-out stream has its own
    saved_attributes: tuple[str, ...] = (
        *of_stream,
        "round",
        "place",
        "n_seen",
        "n_before",
        "is_last",
        "_performance",
        "_stream",
        "_others",
    )
    unsaved_attributes = ("_identity", "_pieces", "_benchmark")  # objects of the process that trains

    def __init__(self, metric: str) -> None:
        super().__init__()
        if metric not in LARGER_IS_BETTER:
            raise unknown("metric", metric, LARGER_IS_BETTER)
        self.metric = metric
        self._performance = Performance()
        self.reset()

    def reset(self) -> None:
        """Forget all rounds."""
        self.round = -1  # from 0, as long as there is one training stream its place there
        self.place: int | None = -1  # in its stream
        self._identity: Hashable = None  # of the round; None once a saved state is loaded
        self._pieces: set[Hashable] = set()  # of the round, where they do not say what has arrived
        self._benchmark: object = None  # of the training stream
        self.n_seen = 0
        self.n_before = 0  # datapoints of the rounds before
        self.is_last = False
        self._stream: str | None = None  # the held-out stream that was evaluated last
        self._others: dict[str, dict[str, Any]] = {}  # what is known of the others
        self._new_stream()

    def _new_stream(self) -> None:
        """Forget what is known of a held-out stream."""
        self.datapoints: list[int] = []
        self.values: list[float] = []

    def _turn_to(self, stream: str) -> None:
        """Let the attributes `of_stream` be those of this stream."""
        if self._stream not in (None, stream):
            names = [name for base in type(self).__mro__ for name in vars(base).get("of_stream", ())]
            self._others[self._stream] = {name: getattr(self, name) for name in names}
            self._new_stream()
            for name, value in self._others.pop(stream, {}).items():
                setattr(self, name, value)
        self._stream = stream

    @property
    def number(self) -> int:
        """The current round's number for people, from 1: the x of what is emitted once a round."""
        return self.round + 1

    def result(self) -> float | None:
        """The latest performance on the current round's held-out data."""
        return self.values[-1] if self.values else None

    def before_training_exp(self, strategy):
        """Note what has arrived; refuse accuracy where there are no classes."""
        if self.metric == "accuracy" and self.round == -1:
            check_classification(strategy)
        experience = strategy.experience
        identity = identity_of(experience)
        if self._begins_a_round(identity):
            self._new_round(identity[0])
        self._identity = identity
        self._benchmark = _benchmark_of(experience)
        self._arrive(experience)

    def _begins_a_round(self, identity: tuple[int | None, Hashable]) -> bool:
        """Whether training data of this identity are of another round than those before."""
        return identity[0] != self.place or self._identity not in (None, identity)

    def _new_round(self, place: int | None) -> None:
        before = self.place
        if place is not None and before is not None and place > before:
            self.round += place - before
        else:
            self.round += 1
        self.place = place
        self.datapoints, self.values = [], []
        for other in self._others.values():
            other.update(datapoints=[], values=[])
        self.n_before += self.n_seen
        self.n_seen, self._pieces = 0, set()

    def _arrive(self, experience) -> None:
        whole, piece = whole_of(experience), experience.dataset
        if whole is experience:  # a round of one arrival
            self.n_seen, self.is_last = len(piece), True
        elif hasattr(experience, "n_seen_in_round"):
            self.n_seen, self.is_last = experience.n_seen_in_round, experience.is_last_subexp
        elif (key := dataset_key(piece)) not in self._pieces:  # one of Avalanche's own online splitter
            self._pieces.add(key)
            self.n_seen += len(piece)
            self.is_last = experience.is_last_subexp or self.n_seen >= len(whole.dataset)

    def before_eval_exp(self, strategy):
        """Start a new mean."""
        self._performance = Performance()
        if self._is_current(strategy.experience):
            self._turn_to(strategy.experience.origin_stream.name)

    def after_eval_iteration(self, strategy):
        """Add a minibatch."""
        self._performance.update(strategy)

    def after_eval_exp(self, strategy):
        """Extend the curve; emit."""
        experience = strategy.experience
        self._performance.close(strategy)
        if not self._is_current(experience):
            return None
        if self.datapoints and self.datapoints[-1] == self.n_seen:  # evaluated again: the newer value counts
            self.datapoints.pop()
            self.values.pop()
        self.datapoints.append(self.n_seen)
        self.values.append(self._performance.value(self.metric))
        stream = experience.origin_stream.name
        return [
            MetricValue(self, f"{name}/eval_phase/{stream}_stream", value, x) for name, value, x in self._emit()
        ] or None

    def _is_current(self, experience) -> bool:
        """Whether these are held-out data of the current round."""
        stream = experience.origin_stream
        if number_of(whole_of(experience)) != self.place or stream.name == "train":
            return False
        # Streams of several benchmarks have rounds of the same place.
        of_benchmark = getattr(self._benchmark, "streams", {}).get(stream.name)
        return of_benchmark is None or _benchmark_of(experience) is self._benchmark

    @abstractmethod
    def _emit(self) -> list[tuple[str, float, int]]:
        """(name, value, x) of what is known after the newest point of the curve; plain numbers only."""


def _benchmark_of(experience) -> object:
    """The benchmark whose stream an experience is in; None: nothing says."""
    try:
        return getattr(getattr(experience, "origin_stream", None), "benchmark", None)
    except (AssertionError, AttributeError):  # Avalanche's ways to say so
        return None
