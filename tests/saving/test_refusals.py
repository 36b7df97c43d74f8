"""What could not go on bit by bit is refused by name; so are states of something else."""

import pickle
from copy import deepcopy

import pytest
import torch
from avalanche.core import SupervisedPlugin
from avalanche.evaluation import PluginMetric, metrics
from avalanche.training import plugins
from avalanche.training.plugins import EvaluationPlugin
from avalanche.training.supervised import Naive
from torch import nn

from ftml_bench import saving
from ftml_bench.benchmarks import RainbowDigits, arrivals
from ftml_bench.buffer import LastRounds
from ftml_bench.errors import UsageError
from ftml_bench.saving import load, save
from tests.saving.strategies import build, dropout_net, evaluator, go


class Collects(SupervisedPlugin):
    def __init__(self):
        super().__init__()
        self.seen = []

    def after_training_exp(self, strategy, **kwargs):
        self.seen.append(strategy.experience.current_experience)


class Counts(SupervisedPlugin):
    def __init__(self):
        super().__init__()
        self.calls, self.limit = 0, 10

    def after_training_exp(self, strategy, **kwargs):
        self.calls += 1


class HoldsTensor(SupervisedPlugin):
    def __init__(self):
        super().__init__()
        self.mean = torch.zeros(3)


class Names(SupervisedPlugin):
    saved_attributes = ("thing",)

    def __init__(self):
        super().__init__()
        self.thing = object()


class MeanOutput(PluginMetric):
    def __init__(self):
        super().__init__()
        self.values = []

    def result(self):
        return None

    def reset(self):
        pass

    def after_eval_exp(self, strategy):
        self.values.append(0.0)

    def __str__(self):
        return "MeanOutput"


@pytest.mark.parametrize(
    ("plugin", "message"),
    [
        (lambda: plugins.AGEMPlugin(4, 8), r"AGEMPlugin cannot be saved: its buffers \(list\) may change"),
        (
            Collects,
            r"Collects cannot be saved: its seen \(list\) may change while it runs: leave Collects out, or name",
        ),
        (Counts, r"Counts cannot be saved: its calls \(int\) may change"),
        (HoldsTensor, r"HoldsTensor cannot be saved: its mean \(Tensor\) may change"),
        (Names, "Names cannot be saved: its thing holds a object"),
    ],
)
def test_a_plugin_whose_state_is_not_known_is_refused_by_name(plugin, message, digits, stream, tmp_path):
    strategy = build("TrainOnEverything", make_plugins=lambda o: [plugin()], evaluator=EvaluationPlugin())
    go(strategy, digits, stream[:1])
    with pytest.raises(UsageError, match=message) as error:
        save(strategy, tmp_path / "state.pt")
    assert "\n" not in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_a_metric_whose_state_is_not_known_is_refused_by_name(digits, stream, tmp_path):
    for metric, name in [(MeanOutput(), "MeanOutput"), (metrics.StreamConfusionMatrix(), "StreamConfusionMatrix")]:
        strategy = build("TrainOnEverything", evaluator=EvaluationPlugin(metric))
        strategy.train(stream[0], eval_streams=[])
        metric.values = [0.5]
        with pytest.raises(UsageError, match=f"{name} cannot be saved"):
            save(strategy, tmp_path / "state.pt")


def test_a_plugin_with_settings_alone_needs_nothing(digits, stream, tmp_path):
    class Clip(SupervisedPlugin):
        def __init__(self, limit, layers, norm=lambda x: x):
            super().__init__()
            self.limit, self.layers, self.norm = limit, layers, norm

    def clipped(limit):
        return build(make_plugins=lambda o: [Clip(limit, ["1", "5"])])

    save(go(clipped(1.0), digits, stream[:1]), tmp_path / "state.pt")
    assert load(clipped(1.0), tmp_path / "state.pt", stream) == 1
    with pytest.raises(UsageError, match=r"Clip was saved with limit=1.0; here it is 2.0"):
        load(clipped(2.0), tmp_path / "state.pt", stream)


def test_only_our_strategies_are_saved_and_only_between_calls(digits, stream, tmp_path):
    net = dropout_net()
    naive = Naive(model=net, optimizer=torch.optim.SGD(net.parameters(), 0.1), evaluator=None)
    with pytest.raises(UsageError, match=r"Naive cannot be saved: it is no strategy of ftml_bench"):
        save(naive, tmp_path / "state.pt")

    class Within(SupervisedPlugin):
        def after_training_iteration(self, strategy, **kwargs):
            save(strategy, tmp_path / "state.pt")

    with pytest.raises(UsageError, match="between two calls of train and eval"):
        go(build(make_plugins=lambda o: [Within()]), digits, stream[:1])
    with pytest.raises(UsageError, match=r"the folder .*nowhere is missing"):
        save(build(), tmp_path / "nowhere/state.pt")


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (lambda: build("FromScratch"), "a saved state of FTML, this strategy is FromScratch"),
        (lambda: build(seed=1), "FTML was saved with seed=0; here it is 1"),
        (lambda: build(inner_lr=0.2), r"FTML was saved with inner_lr=0.1; here it is 0.2"),
        (lambda: build(buffer=LastRounds(1)), r"FTML was saved with buffer=None; here it is 'LastRounds\(rounds=1\)'"),
        (lambda: build(task_sampler=torch.ones), "FTML was saved with task_sampler=None; here it is '.*ones'"),
        (lambda: build(engine="higher"), "FTML was saved with engine='auto'; here it is 'higher'"),
        (lambda: build(optimizer="momentum"), "FTML was saved with optimizer='Adam'; here it is 'SGD'"),
        (lambda: build(criterion=nn.NLLLoss()), "criterion='CrossEntropyLoss'; here it is 'NLLLoss'"),
        (lambda: build(evaluator=EvaluationPlugin()), "saved with these plugins and metrics: EvaluationPlugin, Per"),
        (lambda: build(make_plugins=lambda o: [plugins.EWCPlugin(1)]), "here they are: EWCPlugin, EvaluationPlugin"),
        (lambda: build(evaluator=evaluator(collect_all=False)), "EvaluationPlugin was saved with collect_all=True"),
        (
            lambda: build(model=nn.Sequential(nn.Flatten(), nn.Linear(588, 10))),
            r"1.weight of the saved model has shape \(6, 588\), of this one \(10, 588\)",
        ),
        (
            lambda: build(model=nn.Sequential(*list(dropout_net())[:-1], nn.Linear(6, 11))),
            r"5.weight of the saved model has shape \(10, 6\), of this one \(11, 6\)",
        ),
        (
            lambda: build(model=nn.Sequential(*dropout_net(), nn.Linear(10, 10))),
            "the saved model has no 6.weight",
        ),
    ],
)
def test_a_state_of_something_else_is_refused_in_one_line(other, message, digits, stream, tmp_path):
    save(go(build(), digits, stream[:1]), tmp_path / "state.pt")
    with pytest.raises(UsageError, match=message) as error:
        load(other(), tmp_path / "state.pt", stream)
    assert "\n" not in str(error.value)


def test_a_state_goes_on_with_the_rule_that_it_was_saved_with(digits, stream, tmp_path):
    save(go(build(buffer=LastRounds(3)), digits, stream[:3]), tmp_path / "state.pt")
    with pytest.raises(UsageError, match=r"buffer='LastRounds\(rounds=3\)'; here it is 'LastRounds\(rounds=1\)'"):
        load(build(buffer=LastRounds(1)), tmp_path / "state.pt", stream)
    assert load(build(buffer=LastRounds(3)), tmp_path / "state.pt", stream) == 3

    class Own:  # which has no words of its own
        def keep(self, rounds, seed):
            return LastRounds(1).keep(rounds, seed)

    save(go(build(buffer=Own()), digits, stream[:3]), tmp_path / "state.pt")
    assert load(build(buffer=Own()), tmp_path / "state.pt", stream) == 3


def test_a_state_of_another_version_or_stream_is_refused_in_one_line(digits, stream, tmp_path, monkeypatch):
    save(go(build(), digits, stream[:3]), tmp_path / "state.pt")
    with pytest.raises(UsageError, match="3 experiences had been trained on; the stream has 2"):
        load(build(), tmp_path / "state.pt", stream[:2])
    other = RainbowDigits(rounds=3, images_per_round=24, held_out_per_round=10, seed=5)
    for experiences, message in [
        ([a for round in other.train_stream for a in arrivals(round, 12)], "round 1 has other data"),
        ([a for round in digits.train_stream for a in arrivals(round, 10)], "round 2 now has 0 datapoints, then 12"),
    ]:
        with pytest.raises(UsageError, match=f"not the stream that was trained on: {message}"):
            load(build(), tmp_path / "state.pt", experiences)
    with pytest.raises(UsageError, match=r"nothing\.pt is missing"):
        load(build(), tmp_path / "nothing.pt", stream)
    monkeypatch.setattr(saving.strategies, "VERSION", 4)
    with pytest.raises(UsageError, match="a saved state of version 3; this ftml_bench reads version 4"):
        load(build(), tmp_path / "state.pt", stream)


def test_a_strategy_is_not_pickled_and_is_still_copied():
    strategy = build("FTML")
    with pytest.raises(UsageError, match=r"cannot be pickled.*: expected ftml_bench.saving.save and load"):
        pickle.dumps(strategy)
    assert deepcopy(strategy).buffer.rounds == {}
