"""The share called the only class seen so far: counted by hand, on fakes and on a run."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from avalanche.training.plugins import EvaluationPlugin
from avalanche.training.supervised import Naive
from torch import nn

from ftml_bench.benchmarks import ColoredDigits, RainbowDigits, arrivals
from ftml_bench.benchmarks.stacked import StackedDataset
from ftml_bench.metrics import only_class_metrics
from ftml_bench.protocol import evaluations, held_out

TAG = "Called_The_Only_Class/eval_phase/test_stream"


class Says(nn.Module):
    """Says one class to everything."""

    def __init__(self, label):
        super().__init__()
        self.label = label
        self.unused = nn.Parameter(torch.zeros(()))

    def forward(self, x):
        return nn.functional.one_hot(torch.full((len(x),), self.label), 10).float() + self.unused


@pytest.fixture(scope="module")
def digits():
    return ColoredDigits(rounds=3, images_per_round=20, held_out_per_round=50)


def run(model, benchmark, sizes, recorder):
    strategy = Naive(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.0),
        criterion=nn.CrossEntropyLoss(),
        train_mb_size=20,
        eval_mb_size=15,  # the last batch is smaller
        evaluator=EvaluationPlugin(only_class_metrics(), loggers=[recorder]),
    )
    return list(evaluations(strategy, benchmark, sizes))


def test_who_says_one_digit_to_all_has_1_in_the_rounds_that_begin_with_it(digits, recorder):
    firsts = [next(arrivals(e, 2)).stacked.y[0].item() for e in digits.train_stream]
    run(Says(firsts[1]), digits, 2, recorder)
    assert recorder.curves() == {TAG: [(t, float(first == firsts[1])) for t, first in enumerate(firsts, 1)]}


def test_it_is_the_count_over_the_held_out_data(digits, recorder):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 14 * 14, 10))
    run(model, digits, 2, recorder)
    for (t, value), experience in zip(recorder.curves()[TAG], digits.train_stream, strict=True):
        first = next(arrivals(experience, 2)).stacked.y[0]
        stacked = held_out(digits, t - 1).stacked
        said = model(stacked.take(torch.arange(50))[0].float() / 255).argmax(1)
        assert type(value) is float
        assert value == pytest.approx(float((said == first).float().mean()))


def test_a_first_arrival_of_two_classes_says_nothing(digits, recorder):
    run(Says(0), digits, [3, 2], recorder)
    assert recorder.curves() == {}
    run(Says(0), RainbowDigits(rounds=2, images_per_round=20, held_out_per_round=20), 10, recorder)
    assert recorder.curves() == {}


def test_a_second_arrival_of_the_same_class_says_nothing_more(digits, recorder):
    run(Says(0), digits, 1, recorder)
    assert [x for x, _ in recorder.curves()[TAG]] == [1, 2, 3]


def test_by_hand():
    (metric,) = only_class_metrics()
    stream = SimpleNamespace(name="test")
    dataset = StackedDataset(torch.zeros(3, 1), torch.tensor([7, 7, 7]), torch.arange(3))
    arrival = SimpleNamespace(current_experience=4, arrival_index=0, n_seen_in_round=3, dataset=dataset)
    metric.before_training_exp(SimpleNamespace(experience=arrival))
    evaluated = SimpleNamespace(current_experience=4, origin_stream=stream)
    metric.before_eval_exp(SimpleNamespace(experience=evaluated))
    for said in ([7, 1, 7], [2]):
        outputs = nn.functional.one_hot(torch.tensor(said), 10).float()
        metric.after_eval_iteration(
            SimpleNamespace(
                mb_output=outputs,
                mb_y=torch.zeros(len(said), dtype=torch.int64),
                loss=1.0,
                _criterion=nn.CrossEntropyLoss(),
            )
        )
    (value,) = metric.after_eval_exp(SimpleNamespace(experience=evaluated, _criterion=nn.CrossEntropyLoss()))
    assert (value.name, value.value, value.x_plot) == (TAG, 0.5, 5)
