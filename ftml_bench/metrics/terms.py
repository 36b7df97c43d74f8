"""How well a learner does on the task at hand, and on all tasks so far, whether or not it has kept their data."""

from __future__ import annotations

import sys
from contextlib import nullcontext
from copy import copy
from statistics import fmean

import torch
from avalanche.benchmarks import CLScenario, DatasetExperience
from avalanche.models.utils import avalanche_forward
from torch import nn

from ftml_bench.buffer import TaskBuffer
from ftml_bench.metrics.performance import Performance, RoundMetric, predicted
from ftml_bench.models.norm import batch_statistics


class Terms(RoundMetric):
    """The current task metric and the long term metric (Acar, Zhu, Saligrama 2021, section 4).

    With a(w, s) the performance on round s's held-out data after adapting w to all data of that round, and w_s the
    model at the end of round s:

    - `Current_Task_Metric`: the mean of a(w_s, s) over the rounds s ≤ t, once a round, after its last arrival;
    - `Long_Term_Metric`: the mean of a(w_t, s) over the same rounds, after the 1st, 2nd, 4th, 8th, ... round. The data
      of earlier rounds come from the benchmark: the learner need not have kept them, and is left as it was. Of a
      held-out stream that is none of the benchmark's it is not emitted.

    :param benchmark: whose rounds they are.
    :param metric: "accuracy" or "loss".
    """

    of_stream = saved_attributes = ("of_rounds",)

    def __init__(self, benchmark: CLScenario, metric: str) -> None:
        super().__init__(metric)
        self._streams = benchmark.streams
        self._strategy = None  # during an evaluation

    def _new_stream(self) -> None:
        super()._new_stream()
        self.of_rounds: dict[int, float] = {}  # a(w_s, s)

    def after_eval_exp(self, strategy):
        """Note the performance; emit."""
        self._strategy = strategy
        try:
            return super().after_eval_exp(strategy)
        finally:
            self._strategy = None

    def _emit(self) -> list[tuple[str, float, int]]:
        if not self.is_last:
            return []
        self.of_rounds[self.round] = self.values[-1]
        found = [("Current_Task_Metric", fmean(self.of_rounds.values()), self.number)]
        if self.number.bit_count() == 1 and self.round == self.place and self._stream in self._streams:
            streams = self._streams["train"], self._streams[self._stream]
            rounds = zip(*(stream[: self.round + 1] for stream in streams), strict=True)
            found.append(("Long_Term_Metric", fmean(self._performance_on(*pair) for pair in rounds), self.number))
        return found

    @torch.no_grad()
    def _performance_on(self, train: DatasetExperience, test: DatasetExperience) -> float:
        strategy = self._strategy
        assert strategy is not None
        held, performance = TaskBuffer(strategy.device), Performance()
        held.add(test)
        points = held.for_label(held.labels, limit=sys.maxsize, seed=0)
        assert points is not None  # no round is empty
        x, y = points
        model, transductive = _adapted(strategy, train, test), getattr(strategy, "batch_norm", "") == "transductive"
        (round,) = held.rounds.values()
        labels = round.point_labels[round.rows_of(held.labels)].to(y.device)
        with batch_statistics() if transductive else nullcontext():
            outputs = avalanche_forward(model, x, labels)
        performance.update(predicted(strategy, model, outputs, y))
        return performance.value(self.metric)

    def __str__(self) -> str:
        return "Current_Task_Metric"


def _adapted(strategy, train: DatasetExperience, test: DatasetExperience) -> nn.Module:
    """What would predict `test` if the strategy had kept `train`, and nothing else."""
    if not hasattr(strategy, "model_for"):
        return strategy.model
    buffer, cost = strategy.buffer, copy(strategy.cost)
    try:
        strategy.buffer = TaskBuffer(strategy.device)
        strategy.buffer.add(train)
        return strategy.model_for(test)
    finally:
        strategy.buffer, strategy.cost = buffer, cost


def term_metrics(*, benchmark: CLScenario, metric: str = "accuracy") -> list[RoundMetric]:
    """The current task metric and the long term metric.

    :param benchmark: whose rounds they are.
    :param metric: "accuracy", or "loss" for regression.
    """
    return [Terms(benchmark, metric)]
