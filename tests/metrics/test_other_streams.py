"""Metrics on what other people's scripts train on: several streams, Avalanche's own pieces, tasks in one round."""

from __future__ import annotations

import pytest
import torch
from avalanche.benchmarks import benchmark_from_datasets, split_online_stream
from avalanche.benchmarks.utils import AvalancheDataset, TaskLabels
from avalanche.training.plugins import EvaluationPlugin
from avalanche.training.supervised import Naive
from torch import nn
from torch.utils.data import TensorDataset

from ftml_bench.benchmarks import RainbowDigits, Sinusoids
from ftml_bench.metrics import (
    final_performance_metrics,
    learning_curve_metrics,
    online_metrics,
    regret_metrics,
    term_metrics,
)
from ftml_bench.strategies import FTML
from tests.metrics.tags import curve_tag, final_tag

META = {"steps": 3, "meta_batch_size": 1, "support_size": 3, "query_size": 3, "inner_steps": 1, "inner_lr": 0.1}


def learner(cls, metrics, recorder, *, outputs=10, criterion=None, **settings):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.LazyLinear(outputs))
    model(torch.zeros(1, 3, 14, 14) if outputs == 10 else torch.zeros(1, 4))
    return cls(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
        criterion=criterion or nn.CrossEntropyLoss(),
        evaluator=EvaluationPlugin(metrics, loggers=[recorder]),
        **settings,
    )


def digits(seed, rounds):
    return RainbowDigits(seed=seed, rounds=rounds, images_per_round=20, held_out_per_round=30)


@pytest.mark.parametrize("rounds", [1, 2])
def test_rounds_of_a_second_stream_go_on_after_those_of_the_first(rounds, recorder):
    metrics = [*learning_curve_metrics(), *final_performance_metrics(), *online_metrics()]
    naive = learner(Naive, metrics, recorder, train_mb_size=10)
    for benchmark in (digits(0, rounds), digits(1, rounds)):
        for t, round in enumerate(benchmark.train_stream):
            naive.train(round)
            naive.eval([benchmark.test_stream[t]])
    curves = recorder.curves()
    numbers = range(1, 2 * rounds + 1)
    assert [x for x, _ in curves[curve_tag("accuracy")]] == [20 * n for n in numbers]
    assert [x for x, _ in curves[final_tag("accuracy")]] == list(numbers)
    each = [value for _, value in curves[curve_tag("accuracy")]]
    assert len(set(each)) > 1
    means = [value for _, value in curves["Online_Performance/eval_phase/test_stream"]]
    assert means == pytest.approx([sum(each[:n]) / n for n in numbers])


def test_another_benchmark_s_round_of_the_same_place_is_not_the_current_one(recorder):
    one, other = digits(0, 1), digits(1, 1)
    naive = learner(Naive, final_performance_metrics(), recorder, train_mb_size=10)
    naive.train(one.train_stream[0])
    naive.eval([other.test_stream[0]])
    assert final_tag("accuracy") not in recorder.curves()
    naive.eval([one.test_stream[0]])
    assert len(recorder.curves()[final_tag("accuracy")]) == 1


def test_a_round_that_is_trained_on_again_is_the_same_round(recorder):
    benchmark = digits(0, 2)
    naive = learner(Naive, learning_curve_metrics(), recorder, train_mb_size=10)
    for t in (0, 0, 1):
        naive.train(benchmark.train_stream[t])
        naive.eval([benchmark.test_stream[t]])
    assert [x for x, _ in recorder.curves()[curve_tag("accuracy")]] == [20, 20, 40]


@pytest.mark.parametrize("passes", [1, 2])
def test_pieces_of_avalanche_s_own_splitter_are_arrivals_of_their_round(passes, recorder):
    benchmark = digits(0, 2)
    metrics = [*learning_curve_metrics(), *final_performance_metrics()]
    naive = learner(Naive, metrics, recorder, train_mb_size=5)
    for t, round in enumerate(benchmark.train_stream):
        for piece in split_online_stream([round], 5, seed=0):
            for _ in range(passes):
                naive.train(piece)
            naive.eval([benchmark.test_stream[t]])
            naive.eval([benchmark.test_stream[1 - t]])  # whose data are not those that arrive
    curves = recorder.curves()
    assert [x for x, _ in curves[curve_tag("accuracy")]] == [5, 10, 15, 20, 25, 30, 35, 40]
    assert [x for x, _ in curves[final_tag("accuracy")]] == [1, 2]


def two_tasks(labels):
    """One round of two tasks, the second with the first one's classes swapped; held-out data likewise."""
    generator = torch.Generator().manual_seed(0)

    def data(n):
        x = torch.randn(2 * n, 4, generator=generator)
        y = (x[:, 0] > 0).long()
        y[n:] = 1 - y[n:]
        tasks = TaskLabels([0] * n + [labels - 1] * n)
        return AvalancheDataset([TensorDataset(x, y)], data_attributes=[tasks])

    return benchmark_from_datasets(train=[data(30)], test=[data(40)])


@pytest.mark.parametrize("labels", [1, 2])
def test_in_the_first_round_the_long_term_is_the_current_task(labels, recorder):
    benchmark = two_tasks(labels)
    ftml = learner(FTML, term_metrics(benchmark=benchmark), recorder, outputs=2, **META | {"update_steps": 30})
    ftml.train(benchmark.train_stream[0])
    ftml.eval([benchmark.test_stream[0]])
    curves = recorder.curves()
    ((_, current),) = curves["Current_Task_Metric/eval_phase/test_stream"]
    ((_, long_term),) = curves["Long_Term_Metric/eval_phase/test_stream"]
    assert current == pytest.approx(long_term)
    assert (current > 0.8) == (labels == 2)  # one copy for both tasks can do no better than guess


def test_the_loss_of_a_round_needs_no_task_labels_in_minibatches(recorder):
    def data(n):
        return AvalancheDataset([TensorDataset(torch.randn(n, 4), torch.randint(2, (n,)))])

    benchmark = benchmark_from_datasets(train=[data(20)], test=[data(20)])
    ftml = learner(FTML, regret_metrics(), recorder, outputs=2, **META)
    ftml.train(benchmark.train_stream[0])
    ftml.eval([benchmark.test_stream[0]])
    assert len(recorder.curves()["Loss_Of_Round/eval_phase/test_stream"]) == 1


def test_a_penalty_on_weights_is_on_those_that_have_predicted(recorder):
    """Of the loss of a round and of the long term: the adapted weights' penalty, not that of the model itself."""
    benchmark = Sinusoids(rounds=1, images_per_round=10, held_out_per_round=20)
    model, held = nn.Linear(1, 1), []

    def criterion(outputs, targets):
        return nn.functional.mse_loss(outputs, targets) + model.weight.square().sum()

    metrics = [*term_metrics(benchmark=benchmark, metric="loss"), *regret_metrics()]
    strategy = FTML(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.0),
        criterion=criterion,
        evaluator=EvaluationPlugin(metrics, loggers=[recorder]),
        engine="loop",
        **META | {"update_steps": 5},
    )
    strategy._after_eval_forward = lambda **kwargs: held.append(strategy.model)
    strategy.train(benchmark.train_stream[0])
    strategy.eval(benchmark.test_stream)
    adapted = held[0]
    x, y = benchmark.test_stream[0].stacked.take(torch.arange(20))
    by_hand = float(nn.functional.mse_loss(adapted(x), y) + adapted.weight.square().sum())
    assert abs(float(adapted.weight - model.weight)) > 0.01
    for name in ("Current_Task_Metric", "Long_Term_Metric", "Loss_Of_Round"):
        ((_, value),) = recorder.curves()[f"{name}/eval_phase/test_stream"]
        assert value == pytest.approx(by_hand, rel=1e-5), name
