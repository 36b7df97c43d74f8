"""A metric does not depend on the minibatches that held-out points come in, whatever the criterion."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from avalanche.training.plugins import EvaluationPlugin
from torch import nn

from ftml_bench.benchmarks import RainbowDigits
from ftml_bench.errors import UsageError
from ftml_bench.metrics import efficiency_metrics, learning_curve_metrics, regret_metrics
from ftml_bench.metrics.performance import Performance
from ftml_bench.protocol import run
from ftml_bench.strategies import FTML

RNG = torch.Generator().manual_seed(0)
OUTPUTS, CLASSES = torch.randn(23, 4, generator=RNG), torch.randint(4, (23,), generator=RNG)
WEIGHTS = torch.tensor([1.0, 20.0, 0.1, 3.0])
CRITERIA = {
    "mean": nn.CrossEntropyLoss(),
    "sum": nn.CrossEntropyLoss(reduction="sum"),
    "weights": nn.CrossEntropyLoss(weight=WEIGHTS),
    "weights, smoothed": nn.CrossEntropyLoss(weight=WEIGHTS, label_smoothing=0.1),
    "ignored": nn.CrossEntropyLoss(ignore_index=1),
    "function": lambda outputs, y: F.cross_entropy(outputs, y).sqrt(),
    "worst point": lambda outputs, y: F.cross_entropy(outputs, y, reduction="none").max(),
    "module": nn.MultiMarginLoss(weight=WEIGHTS),
}


def loss_in(size, criterion, outputs=OUTPUTS, targets=CLASSES):
    performance = Performance()
    for part, y in zip(outputs.split(size), targets.split(size), strict=True):
        found = SimpleNamespace(mb_output=part, mb_y=y, loss=criterion(part, y), model=None, _criterion=criterion)
        performance.update(found)
    performance.close(found)
    return performance.loss


@pytest.mark.parametrize("name", CRITERIA)
@pytest.mark.parametrize("size", [1, 7, 23])
def test_the_loss_is_the_criterion_of_all_points(name, size):
    criterion = CRITERIA[name]
    assert loss_in(size, criterion) == pytest.approx(float(criterion(OUTPUTS, CLASSES)), rel=1e-5)


def test_of_targets_that_do_not_count_nothing_is_known():
    criterion = nn.CrossEntropyLoss(ignore_index=1)
    assert math.isnan(loss_in(7, criterion, targets=torch.ones(23, dtype=torch.int64)))


def test_tokens_weigh_alike():
    outputs, y = torch.randn(9, 4, 5, generator=RNG), torch.randint(4, (9, 5), generator=RNG)
    y[:4] = -100
    y[4, 1:] = -100
    expected = float(nn.CrossEntropyLoss()(outputs, y))
    assert loss_in(2, nn.CrossEntropyLoss(), outputs, y) == pytest.approx(expected, rel=1e-5)


def test_outputs_may_come_in_a_tuple():
    def criterion(outputs, y):
        return F.cross_entropy(outputs[0], y, weight=WEIGHTS) + outputs[1]["more"].sum()

    performance = Performance()
    for rows in torch.arange(23).split(6):
        outputs = OUTPUTS[rows], {"more": OUTPUTS[rows, :1]}
        y = CLASSES[rows]
        found = SimpleNamespace(mb_output=outputs, mb_y=y, loss=criterion(outputs, y), model=None, _criterion=criterion)
        performance.update(found)
    performance.close(found)
    expected = float(criterion((OUTPUTS, {"more": OUTPUTS[:, :1]}), CLASSES))
    assert performance.loss == pytest.approx(expected, rel=1e-5)


def test_what_cannot_be_joined_is_refused():
    class Result:
        pass

    found = SimpleNamespace(mb_output=Result(), mb_y=CLASSES, loss=1.0, model=None, _criterion=F.cross_entropy)
    performance = Performance()
    performance.update(found)
    performance.update(found)
    with pytest.raises(UsageError, match=r"^a loss of minibatches whose parts of type Result cannot be joined"):
        performance.close(found)


@pytest.mark.parametrize("name", ["sum", "weights of classes"])
def test_a_whole_run_says_the_same_in_any_minibatches(name, recorder):
    benchmark = RainbowDigits(rounds=2, images_per_round=20)
    weight = torch.linspace(0.1, 10, 10)
    criterion = nn.CrossEntropyLoss(reduction="sum") if name == "sum" else nn.CrossEntropyLoss(weight=weight)

    def losses(eval_mb_size):
        torch.manual_seed(0)
        model = benchmark.model()
        strategy = FTML(
            model=model,
            optimizer=torch.optim.SGD(model.parameters(), lr=0.001),
            criterion=criterion,
            inner_lr=0.001,
            steps=1,
            eval_mb_size=eval_mb_size,
            evaluator=EvaluationPlugin(
                efficiency_metrics(threshold=("loss", 2.4)), learning_curve_metrics(metric="loss"), regret_metrics()
            ),
        )
        found = run(strategy, benchmark, arrivals=10, progress=False)
        curves = strategy.evaluator.get_all_metrics()
        return [e.loss for e in found], {name: values for name, (_, values) in curves.items()}

    whole, of_whole = losses(1000)
    parts, of_parts = losses(3)
    assert parts == pytest.approx(whole, rel=1e-4)
    assert of_parts.keys() == of_whole.keys()
    for name, values in of_whole.items():
        assert of_parts[name] == pytest.approx(values, rel=1e-4), name


def test_an_output_that_is_no_number_names_no_class():
    outputs = torch.full((6, 3), torch.nan)
    outputs[0] = torch.tensor([0.0, 1.0, 0.0])
    outputs[1] = torch.tensor([torch.nan, 0.0, 1.0])  # PyTorch takes the NaN for the largest
    y = torch.tensor([1, 0, 0, 0, 0, 0])
    found = SimpleNamespace(mb_output=outputs, mb_y=y, loss=1.0, model=None, _criterion=CRITERIA["sum"])
    performance = Performance()
    performance.update(found)
    assert performance.accuracy == pytest.approx(1 / 6)
