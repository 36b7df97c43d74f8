"""Whole runs, of our learners and Avalanche's own, against Avalanche's own loss and accuracy."""

from __future__ import annotations

from collections import Counter

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
from ftml_bench.metrics import checkpoint_metrics, efficiency_metrics, final_performance_metrics, learning_curve_metrics
from ftml_bench.metrics.curves import Threshold
from ftml_bench.models import RainbowNet, SinusoidMLP
from ftml_bench.protocol import evaluations, held_out
from ftml_bench.strategies import FTML, TrainOnEverything
from tests.metrics.tags import CENSORED, TO_THRESHOLD, checkpoint_tag, curve_tag, final_tag

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
            curves[TO_THRESHOLD].append((round + 1, met[0] if met else self.ends[-1]))
            curves[CENSORED].append((round + 1, 0 if met else 1))
            curves[final_tag(self.metric)].append((round + 1, values[-1]))
            for n, value in zip(self.ends, values, strict=True):
                curves[curve_tag(self.metric)].append((round * self.ends[-1] + n, value))
                if n in self.checkpoints:
                    curves.setdefault(checkpoint_tag(self.metric, n), []).append((round + 1, value))
        return curves

    def threshold(self, which):
        """A threshold that every round meets at once, that none meets, or that is in the middle of the values."""
        trivial, impossible = (1e-6, 1.0) if self.metric == "accuracy" else (1e9, 0.0)
        middle = sorted(self.values)[len(self.values) // 2]
        return {"trivial": trivial, "impossible": impossible, "middle": middle}[which]


@pytest.fixture(scope="module", params=["sinusoids", "digits"])
def setting(request, tiny_sinusoids, tiny_digits):
    if request.param == "sinusoids":
        return Setting(tiny_sinusoids, "loss", 4, [4, 10])
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
        assert curves[TO_THRESHOLD] == [(t + 1, size) for t in range(rounds)]
        assert curves[CENSORED] == [(t + 1, int(which == "impossible")) for t in range(rounds)]


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
    assert set(names[0]) == set(setting.expected(setting.threshold("trivial")))


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
    metrics = ours("accuracy", 1.0, [12])
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
        TO_THRESHOLD: [(1, 12), (2, 15)],
        CENSORED: [(1, 1), (2, 1)],
        curve_tag("accuracy"): list(zip(xs, accuracies, strict=True)),
        final_tag("accuracy"): [(1, accuracies[first]), (2, accuracies[-1])],
        checkpoint_tag("accuracy", 12): [(1, accuracies[first])] + ([(2, accuracies[3])] if cut else []),
    }


def test_stock_strategies_on_our_streams_have_the_same_metrics(tiny_digits, recorder):
    evaluator = EvaluationPlugin(ours("accuracy", 1e-9, [30]), loggers=[recorder])
    strategy = learner(Naive, tiny_digits, evaluator)
    for round in tiny_digits.train_stream:
        strategy.train(round)
        strategy.eval(tiny_digits.test_stream)
    curves = recorder.curves()
    assert curves[TO_THRESHOLD] == [(1, 30), (2, 30)]
    assert curves[CENSORED] == [(1, 0), (2, 0)]
    assert curves[checkpoint_tag("accuracy", 30)] == curves[final_tag("accuracy")]
    assert [x for x, _ in curves[curve_tag("accuracy")]] == [30, 60]
    assert len(curves) == 5
