"""Held-out performance: accumulated over the batches of an evaluation, and as the base of the metrics of rounds."""

from __future__ import annotations

from abc import abstractmethod

from avalanche.evaluation import PluginMetric
from avalanche.evaluation.metric_results import MetricValue

from ftml_bench.curves import LARGER_IS_BETTER
from ftml_bench.errors import unknown


class Performance:
    """Mean loss and accuracy over the points of one evaluated experience."""

    saved_attributes = ("points", "_loss", "_correct")

    def __init__(self) -> None:
        self.points = 0
        self._loss = 0.0
        self._correct: int | None = 0

    def update(self, strategy) -> None:
        """Add the strategy's current evaluation minibatch; accuracy is None unless targets are classes."""
        outputs, targets = strategy.mb_output, strategy.mb_y
        self.points += len(targets)
        self._loss += float(strategy.loss) * len(targets)
        if self._correct is not None and not targets.is_floating_point() and outputs.dim() == targets.dim() + 1:
            self._correct += int((outputs.argmax(dim=1) == targets).sum())
        else:
            self._correct = None

    @property
    def loss(self) -> float:
        """Mean criterion per point."""
        return self._loss / self.points

    @property
    def accuracy(self) -> float | None:
        """Share of points whose largest output is their class; None for regression."""
        return None if self._correct is None else self._correct / self.points

    def value(self, metric: str) -> float:
        """The performance in `metric`, "accuracy" or "loss"."""
        value = self.accuracy if metric == "accuracy" else self.loss
        if value is None:
            raise ValueError("accuracy of a regression stream: use the metric 'loss'")
        return value


class RoundMetric(PluginMetric[float]):
    """Follows the current round: its learning curve of held-out performance over the round's datapoints.

    The curve grows by one point whenever the held-out experience of the current round is evaluated, outside of the
    training stream. Subclasses say what they emit (`_emit`) after such an evaluation.

    :param metric: "accuracy" or "loss" (the strategy's criterion).
    """

    saved_attributes: tuple[str, ...] = (
        "round",
        "datapoints",
        "values",
        "n_seen",
        "n_before",
        "is_last",
        "_performance",
    )

    def __init__(self, metric: str) -> None:
        super().__init__()
        if metric not in LARGER_IS_BETTER:
            raise unknown("metric", metric, LARGER_IS_BETTER)
        self.metric = metric
        self._performance = Performance()
        self.reset()

    def reset(self) -> None:
        """Forget all rounds."""
        self.round = -1
        self.datapoints: list[int] = []
        self.values: list[float] = []
        self.n_seen = 0
        self.n_before = 0  # datapoints of the rounds before
        self.is_last = False

    def result(self) -> float | None:
        """The latest performance on the current round's held-out data."""
        return self.values[-1] if self.values else None

    def before_training_exp(self, strategy):
        """Note what has arrived."""
        experience = strategy.experience
        if experience.current_experience != self.round:
            self.round = experience.current_experience
            self.datapoints, self.values = [], []
            self.n_before += self.n_seen
        # A stock experience is a round of one arrival.
        self.n_seen = getattr(experience, "n_seen_in_round", len(experience.dataset))
        self.is_last = getattr(experience, "is_last_subexp", True)

    def before_eval_exp(self, strategy):
        """Start a new mean."""
        self._performance = Performance()

    def after_eval_iteration(self, strategy):
        """Add a minibatch."""
        self._performance.update(strategy)

    def after_eval_exp(self, strategy):
        """Extend the curve; emit."""
        experience = strategy.experience
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
        return experience.current_experience == self.round and experience.origin_stream.name != "train"

    @abstractmethod
    def _emit(self) -> list[tuple[str, float, int]]:
        """(name, value, x) of what is known after the newest point of the curve; plain numbers only."""
