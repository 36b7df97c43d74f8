"""Cumulative regret over shots: a sum by hand."""

import pytest
import torch
from avalanche.training.plugins import EvaluationPlugin
from avalanche.training.supervised import Naive

from ftml_bench.benchmarks import Sinusoids
from ftml_bench.metrics import shots_metrics
from ftml_bench.protocol import evaluations

TAG = "Regret_Over_Shots/eval_phase/test_stream"


def test_it_is_the_sum_of_the_losses_of_all_evaluations(recorder):
    benchmark = Sinusoids(rounds=3, images_per_round=10, held_out_per_round=20)
    model = benchmark.model()
    strategy = Naive(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.01),
        criterion=benchmark.criterion,
        train_mb_size=4,
        eval_mb_size=7,
        evaluator=EvaluationPlugin(shots_metrics(), loggers=[recorder]),
    )
    losses = [e.loss for e in evaluations(strategy, benchmark, [2, 3, 5])]
    strategy.eval(benchmark.test_stream[2])  # once more: the same evaluation
    expected = [(t + 1, pytest.approx(sum(losses[: 3 * t + 3]))) for t in (0, 1, 2)]
    assert recorder.curves()[TAG] == [*expected, expected[-1]]
