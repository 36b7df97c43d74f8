"""Plugin metrics: curves fed by hand, then whole runs against Avalanche's own loss and accuracy."""

from __future__ import annotations

from collections import Counter
from types import SimpleNamespace

import pytest
import torch
from avalanche.benchmarks import benchmark_from_datasets
from avalanche.benchmarks.utils import as_classification_dataset
from avalanche.evaluation.metrics import accuracy_metrics, loss_metrics
from avalanche.logging import TensorboardLogger
from avalanche.training.plugins import EvaluationPlugin
from avalanche.training.supervised import Naive
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn
from torch.utils.data import Dataset

from ftml_bench.benchmarks import arrivals
from ftml_bench.errors import UsageError
from ftml_bench.metrics import (
    checkpoint_metrics,
    efficiency_metrics,
    final_performance_metrics,
    learning_curve_metrics,
)
from ftml_bench.metrics.curves import Threshold
from ftml_bench.metrics.performance import Performance
from ftml_bench.models import RainbowNet, SinusoidMLP
from ftml_bench.protocol import evaluations, held_out
from ftml_bench.strategies import FTML, TrainOnEverything

TO_THRESHOLD = "Datapoints_To_Threshold/eval_phase/test_stream"
CENSORED = "Threshold_Censored/eval_phase/test_stream"


def curve_tag(metric):
    return f"{metric.capitalize()}_Over_Datapoints/eval_phase/test_stream"


def final_tag(metric):
    return f"Final_{metric.capitalize()}/eval_phase/test_stream"


def checkpoint_tag(metric, n):
    return f"{metric.capitalize()}_At_{n}_Datapoints/eval_phase/test_stream"


# -- fed by hand: a strategy that is nothing but what a metric reads


def arrive(metric, round, n_seen, *, last=False, whole=False):
    experience = SimpleNamespace(current_experience=round, dataset=range(n_seen if whole else 2))
    if not whole:
        experience.n_seen_in_round, experience.is_last_subexp = n_seen, last
    metric.before_training_exp(SimpleNamespace(experience=experience))


def evaluate(metric, round, correct, *, of=10, stream="test", loss=0.0):
    """Evaluate round's held-out data: `correct` right answers of `of`, in batches of four."""
    experience = SimpleNamespace(current_experience=round, origin_stream=SimpleNamespace(name=stream))
    strategy = SimpleNamespace(experience=experience)
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
    assert emitted == [[], [(TO_THRESHOLD, 10, 0), (CENSORED, 0, 0)], [], []]


def test_a_round_that_never_gets_there_counts_as_its_size_and_is_censored():
    metric = efficiency()
    emitted = []
    for n in (5, 10, 17):
        arrive(metric, 4, n, last=n == 17)
        emitted.append(evaluate(metric, 4, 7))
    assert emitted == [[], [], [(TO_THRESHOLD, 17, 4), (CENSORED, 1, 4)]]
    assert evaluate(metric, 4, 7) == []


def test_every_round_starts_anew():
    metric = efficiency()
    for round, (first, second) in enumerate([(9, 1), (1, 9), (1, 1), (9, 9)]):
        arrive(metric, round, 5)
        one = evaluate(metric, round, first)
        arrive(metric, round, 12, last=True)
        other = evaluate(metric, round, second)
        early = [(TO_THRESHOLD, 5, round), (CENSORED, 0, round)]
        late = [(TO_THRESHOLD, 12, round), (CENSORED, int(max(first, second) == 1), round)]
        assert (one, other) == ((early, []) if first == 9 else ([], late))


def test_loss_must_fall_below_the_threshold():
    metric = efficiency(0.5, "loss")
    arrive(metric, 0, 4)
    assert evaluate(metric, 0, 10, loss=0.5) == []
    arrive(metric, 0, 8)
    assert evaluate(metric, 0, 0, loss=0.25) == [(TO_THRESHOLD, 8, 0), (CENSORED, 0, 0)]


def test_nan_reaches_no_threshold():
    metric = efficiency(0.5, "loss")
    arrive(metric, 0, 4, last=True)
    assert evaluate(metric, 0, 0, loss=float("nan")) == [(TO_THRESHOLD, 4, 0), (CENSORED, 1, 0)]


def test_checkpoints_are_emitted_at_exactly_their_number_of_datapoints():
    metrics = checkpoint_metrics(checkpoints=(5, 12, 13))
    got = []
    for round in range(2):
        for n, correct in [(4, 1), (5, 2), (12, 3 + round), (20, 5)]:
            for metric in metrics:
                arrive(metric, round, n, last=n == 20)
                got += evaluate(metric, round, correct)
    tag5, tag12 = checkpoint_tag("accuracy", 5), checkpoint_tag("accuracy", 12)
    assert got == [(tag5, 0.2, 0), (tag12, 0.3, 0), (tag5, 0.2, 1), (tag12, 0.4, 1)]


def test_final_performance_is_that_after_the_last_arrival():
    (metric,) = final_performance_metrics()
    arrive(metric, 3, 4)
    assert evaluate(metric, 3, 9) == []
    arrive(metric, 3, 9, last=True)
    assert evaluate(metric, 3, 6) == [(final_tag("accuracy"), 0.6, 3)]


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
        "Datapoints_To_Threshold": [(20, 1), (1, 1)],
        "Final_Accuracy": [(0.4, 1)],
        "Accuracy_Over_Datapoints": [(0.4, 25)],
    }.get(str(metric), [])


def test_an_evaluation_repeated_at_the_same_datapoints_replaces_the_older():
    metric = efficiency()
    arrive(metric, 0, 5)
    assert evaluate(metric, 0, 7) == []
    assert evaluate(metric, 0, 8) == [(TO_THRESHOLD, 5, 0), (CENSORED, 0, 0)]
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
    assert got == [[(10, 6), (1, 6)], [(0.2, 6)], [(0.2, 6)], [(0.2, 10)]]


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


def test_performance_is_the_mean_over_points_not_over_batches():
    performance = Performance()
    logits = torch.eye(4)
    for targets, loss in [([0, 1, 2, 0], 1.0), ([1], 6.0)]:  # right: 0, 1, 2; wrong: the fourth; and the second batch
        y = torch.tensor(targets)
        performance.update(SimpleNamespace(mb_output=logits[: len(y)], mb_y=y, loss=torch.tensor(loss)))
    assert performance.points == 5
    assert performance.loss == 2.0
    assert performance.accuracy == performance.value("accuracy") == 0.6


def test_regression_has_a_loss_and_no_accuracy():
    performance = Performance()
    y = torch.zeros(3, 1)
    performance.update(SimpleNamespace(mb_output=y, mb_y=y, loss=torch.tensor(0.5)))
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


# -- whole runs


def ours(metric, threshold, checkpoints):
    return [
        *efficiency_metrics(threshold=(metric, threshold)),
        *checkpoint_metrics(checkpoints=checkpoints, metric=metric),
        *final_performance_metrics(metric=metric),
        *learning_curve_metrics(metric=metric),
    ]


def stock_metrics(metric):
    return (accuracy_metrics if metric == "accuracy" else loss_metrics)(experience=True)


def learner(strategy, benchmark, evaluator, *, eval_mb_size=16):
    torch.manual_seed(0)
    image = benchmark.title == "Rainbow digits"
    model = RainbowNet(filters=4, layers=3, image_size=14) if image else SinusoidMLP(hidden=8)
    settings = {
        "model": model,
        "optimizer": torch.optim.Adam(model.parameters(), lr=0.003),
        "criterion": benchmark.criterion,
        "eval_mb_size": eval_mb_size,  # the last batch is smaller
        "evaluator": evaluator,
    }
    if strategy is FTML:
        settings.update(inner_lr=benchmark.inner_lr, inner_steps=2, meta_batch_size=3, support_size=3, query_size=3)
    return strategy(**settings, **({} if strategy is Naive else {"steps": 2}), train_mb_size=8)


class Setting:
    """A stream, its metric, and the values that its first, undisturbed run with FTML has."""

    def __init__(self, benchmark, metric, sizes, checkpoints):
        self.benchmark, self.metric, self.sizes, self.checkpoints = benchmark, metric, sizes, checkpoints
        self.ends = {10: [4, 8, 10], 30: [7, 18, 29, 30]}[len(benchmark.train_stream[0].dataset)]
        self.values = [getattr(e, metric) for e in self.run(EvaluationPlugin())]

    def run(self, evaluator, strategy=FTML):
        return list(evaluations(learner(strategy, self.benchmark, evaluator), self.benchmark, self.sizes, seed=2))

    def expected(self, threshold):
        """The curves that the metrics must draw, from the values of the evaluations by hand."""
        curves = {tag: [] for tag in (TO_THRESHOLD, CENSORED, final_tag(self.metric), curve_tag(self.metric))}
        per_round = len(self.ends)
        for round in range(len(self.values) // per_round):
            values = self.values[round * per_round : (round + 1) * per_round]
            met = [
                n for n, value in zip(self.ends, values, strict=True) if Threshold(self.metric, threshold).met(value)
            ]
            curves[TO_THRESHOLD].append((round, met[0] if met else self.ends[-1]))
            curves[CENSORED].append((round, 0 if met else 1))
            curves[final_tag(self.metric)].append((round, values[-1]))
            for n, value in zip(self.ends, values, strict=True):
                curves[curve_tag(self.metric)].append((round * self.ends[-1] + n, value))
                if n in self.checkpoints:
                    curves.setdefault(checkpoint_tag(self.metric, n), []).append((round, value))
        return curves

    def threshold(self, which):
        """A threshold that every round meets at once, that none meets, or that is in the middle of the values."""
        trivial, impossible = (-1.0, 2.0) if self.metric == "accuracy" else (1e9, 0.0)
        middle = sorted(self.values)[len(self.values) // 2]
        return {"trivial": trivial, "impossible": impossible, "middle": middle}[which]


@pytest.fixture(scope="module", params=["sinusoids", "digits"])
def setting(request, tiny_sinusoids, tiny_digits):
    if request.param == "sinusoids":
        return Setting(tiny_sinusoids, "loss", 4, [4, 9, 10])
    return Setting(tiny_digits, "accuracy", [7, 11], [18, 29, 30])


@pytest.mark.parametrize("which", ["trivial", "impossible", "middle"])
def test_every_emitted_value_is_that_of_the_evaluations(setting, recorder, which):
    threshold = setting.threshold(which)
    metrics = ours(setting.metric, threshold, setting.checkpoints)
    got = setting.run(EvaluationPlugin(metrics, stock_metrics(setting.metric), loggers=[recorder]))
    # The values of Avalanche's own metric, in the order of the evaluations
    stock = [value for name, value, _ in recorder.emitted if name.startswith(("Loss_Exp", "Top1_Acc_Exp/eval"))]
    assert [getattr(e, setting.metric) for e in got] == setting.values == pytest.approx(stock, rel=1e-6)
    curves = {tag: curve for tag, curve in recorder.curves().items() if "_Exp/" not in tag}
    assert curves == setting.expected(threshold)
    if which != "middle":
        rounds, size = len(setting.benchmark.train_stream), setting.ends[0 if which == "trivial" else -1]
        assert curves[TO_THRESHOLD] == [(t, size) for t in range(rounds)]
        assert curves[CENSORED] == [(t, int(which == "impossible")) for t in range(rounds)]


def test_values_are_plain_numbers_and_x_whole_ones(setting, recorder):
    metrics = ours(setting.metric, setting.threshold("middle"), setting.checkpoints)
    setting.run(EvaluationPlugin(metrics, loggers=[recorder]))
    assert recorder.emitted
    for name, value, x in recorder.emitted:
        assert type(x) is int
        # TensorBoard drops NumPy's numbers and draws histograms of tensors
        assert type(value) is (int if name in (TO_THRESHOLD, CENSORED) else float), name


def test_other_evaluations_in_between_change_nothing(setting, recorder):
    threshold = setting.threshold("middle")
    evaluator = EvaluationPlugin(ours(setting.metric, threshold, setting.checkpoints), loggers=[recorder])
    benchmark = setting.benchmark
    strategy = learner(FTML, benchmark, evaluator)
    strategy.eval(benchmark.test_stream)
    for round in benchmark.train_stream:
        others = [e for e in benchmark.test_stream if e.current_experience != round.current_experience]
        for arrival in arrivals(round, setting.sizes, seed=2):
            strategy.train(arrival, eval_streams=[])
            strategy.eval(others)
            strategy.eval(benchmark.train_stream)
            strategy.eval([*others, held_out(benchmark, round), benchmark.train_stream[0]])
            strategy.eval(benchmark.train_stream[:1])
    assert recorder.curves() == setting.expected(threshold)


def test_an_evaluation_done_twice_is_the_same_point_twice(setting, recorder):
    threshold = setting.threshold("middle")
    evaluator = EvaluationPlugin(ours(setting.metric, threshold, setting.checkpoints), loggers=[recorder])
    strategy = learner(FTML, setting.benchmark, evaluator)
    for round in setting.benchmark.train_stream:
        for arrival in arrivals(round, setting.sizes, seed=2):
            strategy.train(arrival, eval_streams=[])
            for _ in range(2):
                strategy.eval([held_out(setting.benchmark, round)])
    expected = setting.expected(threshold)
    for tag, curve in recorder.curves().items():
        times = 1 if tag in (TO_THRESHOLD, CENSORED) else 2
        assert curve == [point for point in expected.pop(tag) for _ in range(times)]
    assert not expected


def test_metrics_are_in_the_dict_that_eval_returns(setting):
    threshold = setting.threshold("middle")
    evaluator = EvaluationPlugin(ours(setting.metric, threshold, setting.checkpoints))
    strategy = learner(FTML, setting.benchmark, evaluator)
    expected = setting.expected(threshold)
    for round in setting.benchmark.train_stream:
        for arrival in arrivals(round, setting.sizes, seed=2):
            strategy.train(arrival, eval_streams=[])
            last = strategy.eval([held_out(setting.benchmark, round)])
            (value,) = [
                v for x, v in expected[curve_tag(setting.metric)]
                if x == round.current_experience * setting.ends[-1] + arrival.n_seen_in_round
            ]  # fmt: skip
            assert last[curve_tag(setting.metric)] == value
        for tag, curve in expected.items():
            if tag != curve_tag(setting.metric):
                assert last[tag] == curve[round.current_experience][1]


def test_names_are_the_same_for_every_strategy(setting):
    names = []
    for strategy in (FTML, TrainOnEverything):
        evaluator = EvaluationPlugin(ours(setting.metric, setting.threshold("trivial"), setting.checkpoints))
        setting.run(evaluator, strategy)
        names.append(Counter({tag: len(x) for tag, (x, _) in evaluator.get_all_metrics().items()}))
    assert names[0] == names[1]
    assert set(names[0]) == set(setting.expected(0.0))


def test_tensorboard_has_every_value_as_a_scalar(setting, tmp_path, recorder):
    threshold = setting.threshold("middle")
    logger = TensorboardLogger(tb_log_dir=tmp_path)
    setting.run(EvaluationPlugin(ours(setting.metric, threshold, setting.checkpoints), loggers=[logger, recorder]))
    logger.writer.close()
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    assert events.Tags()["histograms"] == []
    expected = setting.expected(threshold)
    assert sorted(events.Tags()["scalars"]) == sorted(expected)
    for tag, curve in expected.items():
        scalars = events.Scalars(tag)
        assert [s.step for s in scalars] == [x for x, _ in curve]
        assert [s.value for s in scalars] == pytest.approx([value for _, value in curve], rel=1e-6)


# -- Avalanche's own strategies and streams


class Points(Dataset):
    def __init__(self, n, seed):
        self.x = torch.randn(n, 4, generator=torch.Generator().manual_seed(seed))
        self.targets = (self.x[:, 0] > 0).long().tolist()

    def __len__(self):
        return len(self.targets)

    def __getitem__(self, index):
        return self.x[index], self.targets[index]


@pytest.mark.parametrize("cut", [False, True])
def test_stock_strategies_on_stock_streams_have_the_same_metrics(recorder, cut):
    data = [as_classification_dataset(Points(n, n)) for n in (12, 15, 20, 21)]
    benchmark = benchmark_from_datasets(train=data[:2], test=data[2:])
    metrics = ours("accuracy", 2.0, [12])
    evaluator = EvaluationPlugin(metrics, accuracy_metrics(experience=True), loggers=[recorder])
    torch.manual_seed(0)
    model = nn.Linear(4, 2)
    strategy = Naive(
        model=model, optimizer=torch.optim.SGD(model.parameters(), lr=0.5), train_mb_size=4, evaluator=evaluator
    )
    accuracies = []
    for round in benchmark.train_stream:
        for arrival in arrivals(round, 6) if cut else [round]:
            strategy.train(arrival, eval_streams=[])
            last = strategy.eval(benchmark.test_stream)
            accuracies.append(last[f"Top1_Acc_Exp/eval_phase/test_stream/Exp00{round.current_experience}"])
    xs = [6, 12, 18, 24, 27] if cut else [12, 27]
    curves = {tag: curve for tag, curve in recorder.curves().items() if "Top1" not in tag}
    first = xs.index(12)
    assert curves == {
        TO_THRESHOLD: [(0, 12), (1, 15)],
        CENSORED: [(0, 1), (1, 1)],
        curve_tag("accuracy"): list(zip(xs, accuracies, strict=True)),
        final_tag("accuracy"): [(0, accuracies[first]), (1, accuracies[-1])],
        checkpoint_tag("accuracy", 12): [(0, accuracies[first])] + ([(1, accuracies[3])] if cut else []),
    }


def test_stock_strategies_on_our_streams_have_the_same_metrics(tiny_digits, recorder):
    evaluator = EvaluationPlugin(ours("accuracy", -1.0, [30]), loggers=[recorder])
    strategy = learner(Naive, tiny_digits, evaluator)
    for round in tiny_digits.train_stream:
        strategy.train(round)
        strategy.eval(tiny_digits.test_stream)
    curves = recorder.curves()
    assert curves[TO_THRESHOLD] == [(0, 30), (1, 30)]
    assert curves[CENSORED] == [(0, 0), (1, 0)]
    assert curves[checkpoint_tag("accuracy", 30)] == curves[final_tag("accuracy")]
    assert [x for x, _ in curves[curve_tag("accuracy")]] == [30, 60]
    assert len(curves) == 5
