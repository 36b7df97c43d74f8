"""What a learner pays for every number of points that it has of a task, summed over the stream."""

from __future__ import annotations

from ftml_bench.metrics.performance import RoundMetric


class RegretOverShots(RoundMetric):
    """Cumulative regret over shots (Yu, Geng, Finn, Levine 2020): Σ_t Σ_s L_t(s), so far.

    L_t(s) is the criterion on round t's held-out data after s of its points, at every s that was evaluated; the sum
    goes over all rounds so far. The source subtracts what the best learner would pay, which no stream but linear
    regression knows and which is the same for all learners: here it is taken as 0.

    `Regret_Over_Shots` is emitted once a round, after its last arrival.
    """

    of_stream = saved_attributes = ("sums",)

    def __init__(self) -> None:
        super().__init__("loss")

    def _new_stream(self) -> None:
        super()._new_stream()
        self.sums: dict[int, float] = {}  # by round

    def _emit(self) -> list[tuple[str, float, int]]:
        if not self.is_last:
            return []
        self.sums[self.round] = sum(self.values)
        return [(str(self), sum(self.sums.values()), self.number)]

    def __str__(self) -> str:
        return "Regret_Over_Shots"


def shots_metrics() -> list[RoundMetric]:
    """The losses of all evaluations, summed over the points of a round and over rounds."""
    return [RegretOverShots()]
