"""Accuracy: counted by targets where a point has a class a token or pixel, refused where there are no classes."""

from __future__ import annotations

import itertools
import math
from types import SimpleNamespace

import pytest
import torch
from avalanche.models import IncrementalClassifier
from avalanche.training.plugins import EvaluationPlugin
from avalanche.training.supervised import Naive
from torch import nn

from ftml_bench.benchmarks.stacked import StackedDataset
from ftml_bench.benchmarks.stream import TaskStream
from ftml_bench.errors import UsageError
from ftml_bench.metrics import (
    checkpoint_metrics,
    efficiency_metrics,
    final_performance_metrics,
    learning_curve_metrics,
    only_class_metrics,
)
from ftml_bench.metrics.performance import Performance
from ftml_bench.protocol import run
from ftml_bench.runs import cell as cells
from ftml_bench.runs.definition import from_dict
from ftml_bench.strategies import FTML, FollowTheLeader, FromScratch, TrainOnEverything


class TestOneClassAToken:
    """Points of several classes each: an accuracy is the share of targets."""

    @staticmethod
    def measured(*batches, **of_strategy):
        performance = Performance()
        for outputs, targets in batches:
            performance.update(
                SimpleNamespace(
                    mb_output=outputs,
                    mb_y=targets,
                    loss=torch.tensor(0.0),
                    model=nn.Module(),
                    **{"_criterion": nn.CrossEntropyLoss(), **of_strategy},
                )
            )
        return performance

    @pytest.mark.parametrize("shape", [(), (5,), (5, 3), (2, 5, 3)])
    def test_it_is_counted_by_targets(self, shape):
        rng = torch.Generator().manual_seed(0)
        outputs = torch.randn(7, 4, *shape, generator=rng)
        targets = torch.randint(4, (7, *shape), generator=rng)
        right = total = 0
        for n in range(7):  # by hand
            for place in itertools.product(*map(range, shape)):
                scores = [float(outputs[(n, c, *place)]) for c in range(4)]
                right += scores.index(max(scores)) == int(targets[(n, *place)])
                total += 1
        batches = zip(outputs.split(3), targets.split(3), strict=True)
        performance = self.measured(*batches)
        assert performance.accuracy == right / total
        assert performance.points == 7

    @pytest.mark.parametrize(("criterion", "ignored"), [(nn.CrossEntropyLoss(), -100), (nn.NLLLoss(), -100)])
    def test_targets_that_the_criterion_passes_over_are_not_counted(self, criterion, ignored):
        outputs = torch.zeros(2, 3, 4)
        outputs[:, 1] = 1.0
        targets = torch.tensor([[1, 1, 0, ignored], [ignored, 1, ignored, ignored]])
        assert self.measured((outputs, targets), _criterion=criterion).accuracy == 3 / 4
        assert self.measured((outputs, targets)).accuracy == 3 / 4  # a criterion that does not say

    def test_a_class_that_the_criterion_passes_over_is_not_counted_where_it_is_predicted(self):
        outputs = torch.zeros(1, 3, 4)
        outputs[:, 1] = 1.0
        targets = torch.tensor([[1, 1, 0, 2]])
        passing = nn.CrossEntropyLoss(ignore_index=1)
        assert self.measured((outputs, targets), _criterion=passing).accuracy == 0.0
        assert self.measured((outputs, targets), _criterion=nn.CrossEntropyLoss(ignore_index=2)).accuracy == 2 / 3
        nothing = self.measured((outputs, torch.full((1, 4), -100)))
        assert math.isnan(nothing.accuracy)

    def test_bytes_are_classes_too(self):
        outputs = torch.zeros(1, 200)
        outputs[:, 156] = 1.0  # -100 in a byte
        assert self.measured((outputs, torch.tensor([156], dtype=torch.uint8))).accuracy == 1.0

    @pytest.mark.parametrize(
        ("outputs", "targets"),
        [
            (torch.zeros(6, 1), torch.zeros(6, dtype=torch.int64)),  # one column
            (torch.zeros(6), torch.zeros(6, dtype=torch.int64)),
            (torch.zeros(6, 4), torch.zeros(6)),
            (torch.zeros(6, 4), torch.zeros(6, 4)),  # shares of classes
            (torch.zeros(6, 4), torch.zeros(6, 4, dtype=torch.int64)),  # one-hot
            (torch.zeros(6, 4), torch.zeros(6, 1, dtype=torch.int64)),
            (torch.zeros(6, 4, 5), torch.zeros(6, dtype=torch.int64)),
            (torch.zeros(6, 4, 5), torch.zeros(6, 1, dtype=torch.int64)),  # these would broadcast
            (torch.zeros(6, 5, 4), torch.zeros(6, 5, dtype=torch.int64)),  # classes last
            (torch.zeros(6, 2), torch.tensor([1, -1, 1, -1, 1, -1])),
            ((torch.zeros(6, 4), None), torch.zeros(6, dtype=torch.int64)),
            (torch.zeros(6, 4), torch.zeros(6, dtype=torch.complex64)),
        ],
    )
    def test_what_is_no_classification_has_no_accuracy(self, outputs, targets):
        assert self.measured((outputs, targets)).accuracy is None


LABELS = {
    "a token": lambda x: torch.where(torch.arange(8) < 4 + 4 * (x[:, :1] % 2), x // 2, -100),
    "a token of one class": lambda x: torch.where(torch.arange(8) < 4, torch.ones_like(x), -100),
    "a point": lambda x: x[:, 0] // 2,
    "shares": lambda x: nn.functional.one_hot(x[:, 0] // 2, 3).float(),
    "numbers": lambda x: x[:, :1].float(),
    "one hot": lambda x: nn.functional.one_hot(x[:, 0] // 2, 3),
    "signs": lambda x: 2 * (x[:, 0] % 2) - 1,
}


class Words(TaskStream):
    """Sequences of eight numbers below six, the class of each the half of it; some have a class in their first half."""

    def __init__(self, *, seed=0, rounds=2, labels="a token", held_out=None, criterion=None):
        rng = torch.Generator().manual_seed(seed)
        inputs = [torch.randint(6, (20, 8), generator=rng) for _ in range(2 * rounds)]
        kinds = [labels] * rounds + [held_out or labels] * rounds
        sets = [StackedDataset(x, LABELS[kind](x), torch.arange(20)) for x, kind in zip(inputs, kinds, strict=True)]
        super().__init__(
            title="words",
            train=sets[:rounds],
            held_out=sets[rounds:],
            threshold=("accuracy", 0.9),
            checkpoints=[10, 20],
            arrivals=10,
            criterion=criterion or nn.CrossEntropyLoss(),
            inner_lr=0.1,
            update_steps=2,
        )

    def model(self):
        return Half()


class Half(nn.Module):
    """Calls numbers below four by the half of them, and others 0: right on two thirds. Training changes nothing."""

    def __init__(self, *, first=False, columns=3):
        super().__init__()
        self.register_buffer("table", torch.eye(3)[[0, 0, 1, 1, 0, 0]][:, :columns])
        self.nothing = nn.Parameter(torch.zeros(()))
        self.first = first  # one class a point, that of its first number

    def forward(self, x):
        scores = (self.table[x] + 0 * self.nothing).transpose(1, 2)
        return scores[..., 0] if self.first else scores


SMALL = {
    FTML: {"steps": 1, "meta_batch_size": 1, "support_size": 2, "query_size": 2, "inner_steps": 1},
    TrainOnEverything: {"steps": 1, "train_mb_size": 5},
    FromScratch: {"steps": 1, "train_mb_size": 5},
    FollowTheLeader: {"steps": 1, "train_mb_size": 5},
    Naive: {"train_mb_size": 5},
}


def built(learner, model, criterion, *measured, **more):
    return learner(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
        criterion=criterion,
        evaluator=EvaluationPlugin(*measured, **more),
        eval_mb_size=7,
        **SMALL[learner],
    )


def by_hand(experience):
    """The share of its targets that Half calls right."""
    right = total = 0
    for x, y in zip(*experience.stacked.take(torch.arange(20)), strict=True):
        for number, label in zip(x.tolist(), y.tolist(), strict=True):
            if label != -100:
                total += 1
                right += label == (number // 2 if number < 4 else 0)
    return right / total


@pytest.mark.parametrize("learner", SMALL)
def test_streams_of_tokens_are_measured_by_their_targets(learner, recorder):
    stream = Words()
    expected = [by_hand(experience) for experience in stream.test_stream]
    assert all(0.5 < share < 0.8 for share in expected)
    measured = efficiency_metrics(threshold=("accuracy", 0.9)), final_performance_metrics()
    strategy = built(learner, Half(), stream.criterion, *measured, loggers=[recorder])
    found = run(strategy, stream, progress=False)
    assert [evaluation.accuracy for evaluation in found] == [share for share in expected for _ in range(2)]
    curves = recorder.curves()
    assert curves["Final_Accuracy/eval_phase/test_stream"] == list(enumerate(expected, 1))
    assert curves["Threshold_Censored/eval_phase/test_stream"] == [(1, 1), (2, 1)]  # never reached


def test_the_classes_of_a_stream_of_tokens_are_those_that_its_targets_name():
    stream = Words()
    for experience in stream.train_stream:
        assert experience.classes_in_this_experience == [0, 1, 2]
    passing = Words(criterion=nn.CrossEntropyLoss(ignore_index=1), labels="a point")
    assert passing.test_stream[0].classes_in_this_experience == [0, 2]
    assert stream.label_text(torch.tensor([[2, 0], [2, 2]])) == "0 2"
    assert [stream.label_text(torch.tensor(label)) for label in (3, [0.25, -1.0])] == ["3", "0.2 -1.0"]


def test_the_only_class_of_tokens_is_a_share_of_targets(recorder):
    stream = Words(rounds=1, labels="a token of one class", held_out="a token")
    strategy = built(Naive, Half(), stream.criterion, only_class_metrics(), loggers=[recorder])
    strategy.train(stream.train_stream[0], eval_streams=[])
    strategy.eval(stream.test_stream)
    x, y = stream.test_stream[0].stacked.take(torch.arange(20))
    counted = y != -100
    called = ((x == 2) | (x == 3)) & counted
    ((_, share),) = recorder.curves()["Called_The_Only_Class/eval_phase/test_stream"]
    assert share == int(called.sum()) / int(counted.sum())


REFUSED = [
    ("shares", nn.CrossEntropyLoss(), {"first": True}, r"outputs \(N, 3\) float32, targets \(N, 3\) float32"),
    ("numbers", nn.MSELoss(), {"first": True, "columns": 1}, r"outputs \(N, 1\) float32, targets \(N, 1\) float32"),
    ("a point", nn.CrossEntropyLoss(), {"first": True, "columns": 1}, r"outputs \(N, 1\) float32, targets \(N\) int64"),
    ("a point", lambda y, t: y.mean(), {}, r"outputs \(N, 3, 8\) float32, targets \(N\) int64"),
    ("one hot", nn.MultiLabelSoftMarginLoss(), {"first": True}, r"outputs \(N, 3\) float32, targets \(N, 3\) int64"),
    ("signs", lambda y, t: y.mean(), {"first": True}, r"outputs \(N, 3\) float32, targets \(N\) int64"),
]


@pytest.mark.parametrize("learner", SMALL)
@pytest.mark.parametrize(("labels", "criterion", "model", "message"), REFUSED)
def test_the_accuracy_of_what_is_no_classification_is_refused_before_anything_is_trained(
    learner, labels, criterion, model, message
):
    stream, model = Words(labels=labels), Half(**model)
    for metrics in (
        efficiency_metrics(threshold=("accuracy", 0.9)),
        checkpoint_metrics(checkpoints=[10]),
        final_performance_metrics(),
        learning_curve_metrics(),
        only_class_metrics(),
    ):
        strategy = built(learner, model, criterion, metrics, loggers=[])
        with pytest.raises(
            UsageError, match=rf"^accuracy of what is no classification \({message}\): expected"
        ) as error:
            run(strategy, stream, progress=False)
        assert "\n" not in str(error.value)
        assert strategy.clock.train_iterations == 0


def test_the_trial_leaves_no_trace():
    class Noticed(Half):
        calls = []

        def forward(self, x):
            self.calls.append(self)
            self.table.add_(torch.rand(6, 3))  # as running statistics change
            return super().forward(x)

    stream, model = Words(), Noticed()
    strategy = built(Naive, model, stream.criterion, final_performance_metrics(), loggers=[])
    strategy.experience = stream.train_stream[0]
    strategy.model.train()
    strategy.is_training = True
    before, state = model.table.clone(), torch.get_rng_state()
    strategy.evaluator.metrics[0].before_training_exp(strategy)
    assert len(Noticed.calls) == 1
    assert Noticed.calls[0] is not model
    assert torch.equal(model.table, before)
    assert torch.equal(torch.get_rng_state(), state)
    assert strategy.model is model
    assert model.training
    assert strategy.is_training
    assert strategy.mbatch is None


def test_a_classifier_that_grows_from_one_class_is_taken():
    class Growing(nn.Module):
        def __init__(self):
            super().__init__()
            self.classifier = IncrementalClassifier(8, initial_out_features=1)

        def forward(self, x):
            return self.classifier(x.float())

    stream = Words(labels="a point")
    strategy = built(Naive, Growing(), stream.criterion, final_performance_metrics(), loggers=[])
    found = run(strategy, stream, progress=False)
    assert all(0 <= evaluation.accuracy <= 1 for evaluation in found)


def test_what_the_trial_cannot_predict_is_left_to_the_training():
    class Broken(Half):
        def forward(self, x):
            raise RuntimeError("a fault of its own")

    stream = Words()
    strategy = built(Naive, Broken(), stream.criterion, final_performance_metrics(), loggers=[])
    with pytest.raises(RuntimeError, match="a fault of its own"):
        run(strategy, stream, progress=False)


class TestLeaderboard:
    @staticmethod
    def definition(**changes):
        entry = {"benchmark": f"{__name__}:Words", "steps": 1, "optimizer": {"name": "SGD", "lr": 0.1}}
        rows = {"TrainOnEverything": {"train_mb_size": 5}}
        return from_dict(
            {"name": "t", "seeds": [0], "benchmarks": {"w": {**entry, "strategies": rows, **changes}}}, "t"
        )

    def test_classes_of_tokens_are_taken(self, tmp_path):
        cells.check(self.definition(), None)

    def test_a_row_whose_model_does_not_classify_is_refused(self):
        own = {"name": f"{__name__}:Half", "columns": 1}
        rows = {"TrainOnEverything": {"train_mb_size": 5}, "other": {"strategy": "FromScratch", "model": own}}
        with pytest.raises(UsageError, match=r"^w: other: accuracy of what is no classification \(outputs \(N, 1, 8\)"):
            cells.check(self.definition(strategies=rows), None)

    def test_accuracy_of_numbers_is_refused_and_their_loss_is_not(self):
        numbers = {"settings": {"labels": "numbers"}}
        with pytest.raises(UsageError, match="w: accuracy of a regression stream: expected a threshold in 'loss'"):
            cells.check(self.definition(**numbers), None)
        cells.check(self.definition(**numbers, threshold=["loss", 0.1]), None)
