"""What each metric of performance emits, and when: fed by hand, a strategy being nothing but what a metric reads."""

from __future__ import annotations

import warnings
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from ftml_bench.errors import UsageError
from ftml_bench.metrics import (
    checkpoint_metrics,
    efficiency_metrics,
    final_performance_metrics,
    learning_curve_metrics,
    online_metrics,
    shots_metrics,
)
from ftml_bench.metrics.performance import Performance
from tests.metrics.tags import CENSORED, TO_THRESHOLD, checkpoint_tag, curve_tag, final_tag

DATA: dict[object, range] = {}


def arrive(metric, round, n_seen, *, last=False, whole=False, stream=""):
    data = DATA.setdefault((stream, round, whole), range(n_seen if whole else 100))
    experience = SimpleNamespace(current_experience=round, dataset=data, task_labels=[0])
    if not whole:
        origin = experience
        experience = SimpleNamespace(current_experience=round, dataset=data[:2], origin_experience=origin)
        experience.n_seen_in_round, experience.is_last_subexp = n_seen, last
    metric.before_training_exp(SimpleNamespace(experience=experience))


def evaluate(metric, round, correct, *, of=10, stream="test", loss=0.0):
    """Evaluate round's held-out data: `correct` right answers of `of`, in batches of four."""
    experience = SimpleNamespace(current_experience=round, origin_stream=SimpleNamespace(name=stream))
    strategy = SimpleNamespace(experience=experience, _criterion=nn.CrossEntropyLoss())
    metric.before_eval_exp(strategy)
    right = torch.arange(of) < correct
    for part in right.split(4):
        strategy.mb_y = torch.full((len(part),), 2)
        strategy.mb_output = nn.functional.one_hot(torch.where(part, 2, 1), 5).float()
        strategy.loss = torch.tensor(loss)
        metric.after_eval_iteration(strategy)
    emitted = metric.after_eval_exp(strategy)
    return [(e.name, e.value, e.x_plot) for e in emitted or []]


def efficiency(value=0.8, metric="accuracy"):
    (only,) = efficiency_metrics(threshold=(metric, value))
    return only


def test_datapoints_to_threshold_are_emitted_once_when_first_met():
    metric = efficiency()
    emitted = []
    for n, correct in [(5, 3), (10, 8), (15, 2), (20, 9)]:
        arrive(metric, 0, n, last=n == 20)
        emitted.append(evaluate(metric, 0, correct))
    assert emitted == [[], [(TO_THRESHOLD, 10, 1), (CENSORED, 0, 1)], [], []]


def test_a_round_that_never_gets_there_counts_as_its_size_and_is_censored():
    metric = efficiency()
    emitted = []
    for n in (5, 10, 17):
        arrive(metric, 4, n, last=n == 17)
        emitted.append(evaluate(metric, 4, 7))
    assert emitted == [[], [], [(TO_THRESHOLD, 17, 5), (CENSORED, 1, 5)]]
    assert evaluate(metric, 4, 7) == []


def test_a_later_evaluation_of_the_last_arrival_counts():
    """As after every epoch on a whole round: what is said is what the newest says."""
    metric = efficiency()
    arrive(metric, 0, 20, whole=True)
    emitted = [evaluate(metric, 0, correct) for correct in (5, 6, 9, 9, 5)]
    censored, reached = ([(TO_THRESHOLD, 20, 1), (CENSORED, n, 1)] for n in (1, 0))
    assert emitted == [censored, [], reached, [], censored]


def test_every_round_starts_anew():
    metric = efficiency()
    for round, (first, second) in enumerate([(9, 1), (1, 9), (1, 1), (9, 9)]):
        arrive(metric, round, 5)
        one = evaluate(metric, round, first)
        arrive(metric, round, 12, last=True)
        other = evaluate(metric, round, second)
        early = [(TO_THRESHOLD, 5, round + 1), (CENSORED, 0, round + 1)]
        late = [(TO_THRESHOLD, 12, round + 1), (CENSORED, int(max(first, second) == 1), round + 1)]
        assert (one, other) == ((early, []) if first == 9 else ([], late))


def test_loss_must_fall_below_the_threshold():
    metric = efficiency(0.5, "loss")
    arrive(metric, 0, 4)
    assert evaluate(metric, 0, 10, loss=0.5) == []
    arrive(metric, 0, 8)
    assert evaluate(metric, 0, 0, loss=0.25) == [(TO_THRESHOLD, 8, 1), (CENSORED, 0, 1)]


def test_nan_reaches_no_threshold():
    metric = efficiency(0.5, "loss")
    arrive(metric, 0, 4, last=True)
    assert evaluate(metric, 0, 0, loss=float("nan")) == [(TO_THRESHOLD, 4, 1), (CENSORED, 1, 1)]


def test_checkpoints_are_emitted_at_exactly_their_number_of_datapoints():
    metrics = checkpoint_metrics(checkpoints=(5, 12))
    got = []
    for round in range(2):
        for n, correct in [(4, 1), (5, 2), (12, 3 + round), (20, 5)]:
            for metric in metrics:
                arrive(metric, round, n, last=n == 20)
                got += evaluate(metric, round, correct)
    tag5, tag12 = checkpoint_tag("accuracy", 5), checkpoint_tag("accuracy", 12)
    assert got == [(tag5, 0.2, 1), (tag12, 0.3, 1), (tag5, 0.2, 2), (tag12, 0.4, 2)]


def test_final_performance_is_that_after_the_last_arrival():
    (metric,) = final_performance_metrics()
    arrive(metric, 3, 4)
    assert evaluate(metric, 3, 9) == []
    arrive(metric, 3, 9, last=True)
    assert evaluate(metric, 3, 6) == [(final_tag("accuracy"), 0.6, 4)]


def test_the_learning_curve_goes_over_the_datapoints_of_all_rounds():
    (metric,) = learning_curve_metrics()
    got = []
    for round, n in [(0, 5), (0, 9), (1, 4), (1, 20), (2, 1)]:
        arrive(metric, round, n)
        got += evaluate(metric, round, round)
    tag = curve_tag("accuracy")
    assert got == [(tag, 0.0, 5), (tag, 0.0, 9), (tag, 0.1, 13), (tag, 0.1, 29), (tag, 0.2, 30)]


def every_kind():
    return [
        efficiency(),
        *checkpoint_metrics(checkpoints=[10]),
        *final_performance_metrics(),
        *learning_curve_metrics(),
    ]


@pytest.mark.parametrize("metric", every_kind(), ids=str)
def test_other_evaluations_emit_nothing_and_disturb_nothing(metric):
    assert evaluate(metric, 0, 10) == []  # before anything has arrived
    assert metric.result() is None
    arrive(metric, 0, 5)
    evaluate(metric, 0, 5)
    arrive(metric, 1, 10)
    for round, stream in [(0, "test"), (2, "test"), (1, "train"), (0, "train")]:
        assert evaluate(metric, round, 10, stream=stream) == []
    assert metric.result() is None  # of round 1 nothing is known
    evaluate(metric, 1, 3)
    assert metric.result() == 0.3
    for round, stream in [(0, "test"), (2, "test"), (1, "train")]:
        assert evaluate(metric, round, 10, stream=stream) == []
    assert metric.result() == 0.3
    arrive(metric, 1, 20, last=True)
    emitted = evaluate(metric, 1, 4)
    # the learning curve's x counts round 0's five datapoints too
    assert [e[1:] for e in emitted] == {
        "Datapoints_To_Threshold": [(20, 2), (1, 2)],
        "Final_Accuracy": [(0.4, 2)],
        "Accuracy_Over_Datapoints": [(0.4, 25)],
    }.get(str(metric), [])


def test_an_evaluation_repeated_at_the_same_datapoints_replaces_the_older():
    metric = efficiency()
    arrive(metric, 0, 5)
    assert evaluate(metric, 0, 7) == []
    assert evaluate(metric, 0, 8) == [(TO_THRESHOLD, 5, 1), (CENSORED, 0, 1)]
    assert evaluate(metric, 0, 7) == []
    assert metric.result() == 0.7
    assert (metric.datapoints, metric.values) == ([5], [0.7])
    (curve,) = learning_curve_metrics()
    arrive(curve, 0, 5)
    assert [evaluate(curve, 0, n)[0][1:] for n in (7, 8)] == [(0.7, 5), (0.8, 5)]
    assert (curve.datapoints, curve.values) == ([5], [0.8])


def test_a_stock_experience_is_a_round_of_one_arrival():
    metrics = every_kind()
    for metric in metrics:
        arrive(metric, 6, 10, whole=True)
    got = [[e[1:] for e in evaluate(metric, 6, 2)] for metric in metrics]
    assert got == [[(10, 7), (1, 7)], [(0.2, 7)], [(0.2, 7)], [(0.2, 10)]]


@pytest.mark.parametrize("metric", every_kind(), ids=str)
def test_a_reset_forgets_all_rounds(metric):
    for round in (0, 1, 0):  # after the reset the last round may be the next
        for n in (5, 10):
            arrive(metric, round, n, last=n == 10)
            first = evaluate(metric, round, 3)
        arrive(metric, round + 1, 10, last=True)
        second = evaluate(metric, round + 1, 4)
        assert first
        assert [x - y for (_, _, x), (_, _, y) in zip(second, first, strict=True)] in ([1], [10], [1, 1])
        metric.reset()
        assert metric.result() is None


def test_a_checkpoint_at_which_nothing_is_evaluated_says_so_once():
    (metric,) = checkpoint_metrics(checkpoints=[7])
    arrive(metric, 0, 5)
    assert evaluate(metric, 0, 3) == []
    arrive(metric, 0, 10, last=True)
    with pytest.warns(UserWarning, match=r"^Accuracy_At_7_Datapoints says nothing of round 1: .* after 5, 10 of its"):
        assert evaluate(metric, 0, 3) == []
    arrive(metric, 1, 10, last=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert evaluate(metric, 1, 3) == []


def test_held_out_streams_that_are_evaluated_beside_each_other_have_a_curve_each():
    """Interleaved, two streams emit what each emits alone, in whatever order they come."""

    def emitted(streams):
        metrics = [
            efficiency(0.8),
            *checkpoint_metrics(checkpoints=[10]),
            *online_metrics(),
            *final_performance_metrics(),
            *learning_curve_metrics(),
            *shots_metrics(),
        ]
        found = {stream: [] for stream in streams}
        for round in (0, 1, 2):
            for n in (5, 10):
                for metric in metrics:
                    arrive(metric, round, n, last=n == 10)
                for stream in streams:
                    for metric in metrics:
                        correct = {"test": 3 + n // 2 + round, "valid": 9 - round}[stream]
                        found[stream] += evaluate(metric, round, correct, stream=stream, loss=float(correct))
        return found

    alone = {**emitted(["test"]), **emitted(["valid"])}
    assert {name for name, _, _ in alone["test"]} & {name for name, _, _ in alone["valid"]} == set()
    assert emitted(["test", "valid"]) == emitted(["valid", "test"]) == alone


def test_performance_is_the_mean_over_points_not_over_batches():
    performance = Performance()
    logits = torch.eye(4)
    for targets, loss in [([0, 1, 2, 0], 1.0), ([1], 6.0)]:  # right: 0, 1, 2; wrong: the fourth; and the second batch
        y = torch.tensor(targets)
        found = SimpleNamespace(mb_output=logits[: len(y)], mb_y=y, loss=torch.tensor(loss))
        found._criterion = nn.CrossEntropyLoss()
        performance.update(found)
    assert performance.points == 5
    assert performance.loss == 2.0
    assert performance.accuracy == performance.value("accuracy") == 0.6


def test_regression_has_a_loss_and_no_accuracy():
    performance = Performance()
    y = torch.zeros(3, 1)
    performance.update(SimpleNamespace(mb_output=y, mb_y=y, loss=torch.tensor(0.5), _criterion=nn.MSELoss()))
    assert performance.accuracy is None
    assert performance.value("loss") == 0.5
    with pytest.raises(UsageError, match=r"^accuracy of what is no classification: expected .* or the metric 'loss'$"):
        performance.value("accuracy")


@pytest.mark.parametrize(
    "build",
    [
        lambda: efficiency_metrics(threshold=("accurracy", 0.9)),
        lambda: checkpoint_metrics(checkpoints=[3], metric="accurracy"),
        lambda: final_performance_metrics(metric="accurracy"),
        lambda: learning_curve_metrics(metric="accurracy"),
    ],
)
def test_an_unknown_metric_is_refused_with_the_nearest(build):
    with pytest.raises(UsageError, match=r"unknown metric 'accurracy': did you mean 'accuracy'\?"):
        build()


@pytest.mark.parametrize("checkpoint", [0, -5])
def test_a_checkpoint_below_one_is_refused(checkpoint):
    with pytest.raises(UsageError, match=f"^checkpoint {checkpoint}: expected a number of datapoints of at least 1$"):
        checkpoint_metrics(checkpoints=[5, checkpoint])
