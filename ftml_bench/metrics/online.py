"""How well a learner predicts what it sees next, from the beginning of the stream on."""

from __future__ import annotations

from statistics import fmean

from ftml_bench.metrics.performance import RoundMetric


class OnlinePerformance(RoundMetric):
    """Cumulative online performance: the mean over all evaluations so far (Caccia et al. 2020, section 3).

    On `HiddenBoundaries` an evaluation is of the window to come, before any label of it is seen; on other streams of
    the held-out data of the round that is arriving. `Online_Performance` is emitted once a round, after its last
    arrival.

    :param metric: "accuracy" or "loss".
    """

    of_stream = saved_attributes = ("of_rounds",)

    def _new_stream(self) -> None:
        super()._new_stream()
        self.of_rounds: dict[int, list[float]] = {}  # of each evaluation, by round

    def _emit(self) -> list[tuple[str, float, int]]:
        self.of_rounds[self.round] = list(self.values)
        if not self.is_last:
            return []
        return [(str(self), fmean(value for values in self.of_rounds.values() for value in values), self.number)]

    def __str__(self) -> str:
        return "Online_Performance"


def online_metrics(*, metric: str = "accuracy") -> list[RoundMetric]:
    """The mean performance over all evaluations so far.

    :param metric: "accuracy", or "loss" for regression.
    """
    return [OnlinePerformance(metric)]
