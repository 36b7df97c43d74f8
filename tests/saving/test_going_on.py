"""A strategy that is saved and loaded goes on bit by bit as one not stopped, whatever learner, plugin and model."""

import random
import re
from copy import deepcopy
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from avalanche.benchmarks import benchmark_from_datasets, split_online_stream, with_classes_timeline, with_task_labels
from avalanche.benchmarks.utils import AvalancheDataset, DataAttribute
from avalanche.benchmarks.utils.data_attribute import TaskLabels
from avalanche.benchmarks.utils.flat_data import ConstantSequence
from avalanche.benchmarks.utils.transform_groups import TransformGroups
from avalanche.core import SupervisedPlugin
from avalanche.evaluation import metrics
from avalanche.models import IncrementalClassifier, MTSimpleMLP
from avalanche.training import plugins
from avalanche.training.plugins import EvaluationPlugin
from torch import nn
from torch.utils.data import TensorDataset

import ftml_bench.benchmarks
from ftml_bench.benchmarks import RainbowDigits
from ftml_bench.protocol import held_out
from ftml_bench.saving import load, load_state_dict, save, state_dict
from ftml_bench.strategies import LearningRateAfter, per_round
from tests.saving.strategies import (
    LEARNERS,
    OPTIMIZERS,
    build,
    continued,
    go,
    outcome,
    plateau,
    scheduler,
    somewhere_else,
)

# -- going on


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("name", LEARNERS)
def test_every_learner_goes_on_bit_by_bit(name, optimizer, digits, stream, tmp_path):
    whole = build(name, optimizer=optimizer)
    go(whole, digits, stream[:2])
    save(whole, tmp_path / "end_of_a_round.pt")
    go(whole, digits, stream[2:3])
    save(whole, tmp_path / "middle_of_a_round.pt")
    go(whole, digits, stream[3:])
    for file in ("end_of_a_round.pt", "middle_of_a_round.pt"):
        again = continued(tmp_path / file, lambda: build(name, optimizer=optimizer), digits, stream)
        assert outcome(again) == outcome(whole)
    assert again.cost == whole.cost
    assert again.evaluator.get_all_metrics() == whole.evaluator.get_all_metrics()
    forgetting = whole.evaluator.get_last_metrics()["StreamForgetting/eval_phase/test_stream"]
    assert again.evaluator.get_last_metrics()["StreamForgetting/eval_phase/test_stream"] == forgetting


def test_saving_changes_nothing(digits, stream, tmp_path):
    plain, saved = build(), build()
    somewhere_else()
    go(plain, digits, stream[:3])
    somewhere_else()
    for arrival in stream[:3]:
        go(saved, digits, [arrival])
        save(saved, tmp_path / "state.pt")
    assert outcome(plain) == outcome(saved)
    assert [file.name for file in tmp_path.iterdir()] == ["state.pt"]


class WithMemory(SupervisedPlugin):
    """A user's own, which says what changes in it."""

    saved_attributes = ("count", "memory")

    def __init__(self):
        super().__init__()
        self.count, self.memory, self.strength = 0, [], 0.1

    def after_training_exp(self, strategy, **kwargs):
        self.count += 1
        self.memory.append(strategy.model[1].weight.detach().clone())

    def before_backward(self, strategy, **kwargs):
        for old in self.memory:
            strategy.loss += self.strength * self.count * (strategy.model[1].weight - old).square().sum()


class StrongerEWC(plugins.EWCPlugin):
    """What changes in it is its base's, and known; its factor does not change."""

    def __init__(self):
        super().__init__(1.0)
        self.factor = 5.0

    def before_backward(self, strategy, **kwargs):
        strategy.loss *= self.factor
        super().before_backward(strategy, **kwargs)


PLUGINS = {
    "EWC": lambda optimizer: plugins.EWCPlugin(10.0),
    "EWC online": lambda optimizer: plugins.EWCPlugin(10.0, mode="online", decay_factor=0.5),
    "LwF": lambda optimizer: plugins.LwFPlugin(alpha=2.0),
    "SI": lambda optimizer: plugins.SynapticIntelligencePlugin(10.0),
    "RWalk": lambda optimizer: plugins.RWalkPlugin(10.0, delta_t=2),
    "EWC per round": lambda optimizer: per_round(plugins.EWCPlugin(10.0)),
    "LwF per round": lambda optimizer: per_round(plugins.LwFPlugin(alpha=2.0)),
    "SI per round": lambda optimizer: per_round(plugins.SynapticIntelligencePlugin(10.0)),
    "GEM": lambda optimizer: plugins.GEMPlugin(5, 0.5),
    "MAS": lambda optimizer: plugins.MASPlugin(10.0),
    "scheduler": scheduler,
    "plateau": plateau,
    "our own rate": lambda optimizer: LearningRateAfter(after_steps=3, lr=1e-4),
    "of a subclass": lambda optimizer: StrongerEWC(),
    "a user's": lambda optimizer: WithMemory(),
}


@pytest.mark.parametrize("plugin", PLUGINS)
def test_plugins_go_on_bit_by_bit(plugin, digits, stream, tmp_path):
    def with_plugin():
        return build("TrainOnEverything", make_plugins=lambda o: [PLUGINS[plugin](o)], evaluator=EvaluationPlugin())

    whole = go(with_plugin(), digits, stream[:3])
    save(whole, tmp_path / "state.pt")
    go(whole, digits, stream[3:4])
    again = continued(tmp_path / "state.pt", with_plugin, digits, stream[:4])
    assert outcome(again) == outcome(whole)


def test_ftml_with_plugins_goes_on_bit_by_bit(digits, stream, tmp_path):
    def with_plugins():
        return build(make_plugins=lambda o: [plugins.EWCPlugin(1.0), plugins.LwFPlugin(), scheduler(o)])

    whole = go(with_plugins(), digits, stream[:3])
    save(whole, tmp_path / "state.pt")
    go(whole, digits, stream[3:4])
    assert outcome(continued(tmp_path / "state.pt", with_plugins, digits, stream[:4])) == outcome(whole)


@pytest.mark.filterwarnings("ignore:Metric Top1:UserWarning")  # of EarlyStopping, before its first evaluation
def test_early_stopping_and_periodic_evaluation_go_on(digits, stream, tmp_path):
    def stopping():
        stop = plugins.EarlyStoppingPlugin(1, "test_stream", peval_mode="iteration")
        return build(
            "TrainOnEverything",
            make_plugins=lambda o: [stop],
            steps=4,
            eval_every=1,
            peval_mode="iteration",
            evaluator=EvaluationPlugin(metrics.accuracy_metrics(stream=True)),
        )

    def train(strategy, experiences):
        for experience in experiences:
            strategy.train(experience, eval_streams=[[held_out(digits, experience)]])

    whole = stopping()
    train(whole, stream[:2])
    assert whole.cost.steps < 8  # it has stopped once at least
    save(whole, tmp_path / "state.pt")
    train(whole, stream[2:4])
    again = stopping()
    load(again, tmp_path / "state.pt", stream)
    train(again, stream[2:4])
    assert outcome(again) == outcome(whole)


# What a mutation would leave out, each by itself: the piece as a strategy has it that was just built.
PIECES = {
    "model": ("model",),
    "optimizer state": ("optimizer", "state"),
    "optimizer options": ("optimizer", "groups"),
    "draws": ("learner", "rng"),
    "cost": ("learner", "cost"),
    "round": ("learner", "current_round"),
    "first parameters": ("learner", "first_state"),
    "dropout": ("random", "torch"),
    "Python": ("random", "python"),
    "NumPy": ("random", "numpy"),
    "plugins": ("plugins",),
}


@pytest.mark.parametrize("piece", PIECES)
def test_nothing_may_be_left_out(piece, digits, stream):
    def with_draws():
        class Noise(SupervisedPlugin):
            def before_backward(self, strategy, **kwargs):
                strategy.loss *= 1 + 0.1 * (random.random() + np.random.rand())

        return build(
            "FromScratch",
            make_plugins=lambda o: [Noise(), scheduler(o)],
            evaluator=EvaluationPlugin(metrics.forgetting_metrics(stream=True)),
        )

    def results(strategy):
        """After the round's end, and after another that begins anew."""
        return [outcome(go(strategy, digits, stream[i : i + 1])) for i in (3, 4)]

    whole = go(with_draws(), digits, stream[:3])
    state = state_dict(whole)
    expected = results(whole)
    other = with_draws()
    with torch.no_grad():
        next(iter(other.model.parameters())).add_(1)
    other._first_state = {k: v + 1 for k, v in other._first_state.items()}
    somewhere_else()
    *path, last = PIECES[piece]
    left_out, fresh = deepcopy(state), state_dict(other)
    inside = left_out
    for key in path:
        inside, fresh = inside[key], fresh[key]
    inside[last] = fresh[last]
    for saved, same in [(state, True), (left_out, False)]:
        again = with_draws()
        somewhere_else()
        load_state_dict(again, saved, stream)
        assert (results(again) == expected) == same


# -- other streams and models


def pieces_of_classes(label_of, transform=None):
    """Three experiences with two new classes each."""
    rng = torch.Generator().manual_seed(3)
    data = []
    for t in range(3):
        y = torch.arange(12) % 2 + 2 * t
        x = torch.randn(12, 4, generator=rng) + y.unsqueeze(1)
        dataset = TensorDataset(x, y)
        dataset.targets = y.tolist()
        label = label_of(t)
        attributes = [] if label is None else [TaskLabels(ConstantSequence(label, 12))]
        groups = transform and TransformGroups({"train": (transform, None), "eval": (None, None)})
        data.append(
            AvalancheDataset(
                [dataset],
                data_attributes=[DataAttribute(y.tolist(), "targets"), *attributes],
                transform_groups=groups,
            )
        )
    return with_classes_timeline(benchmark_from_datasets(train=data, test=data))


def test_datasets_with_random_transforms_come_again_from_the_stream(tmp_path):
    """Each draw reads through the train transform, which draws from the global generator."""
    benchmark = with_task_labels(pieces_of_classes(lambda t: t, lambda x: x + 0.1 * torch.randn(4)))

    def learner():
        torch.manual_seed(0)
        return build("TrainOnEverything", model=nn.Linear(4, 6), evaluator=EvaluationPlugin())

    stream = list(benchmark.train_stream)
    whole = go(learner(), benchmark, stream[:2])
    save(whole, tmp_path / "state.pt")
    go(whole, benchmark, stream[2:])
    assert outcome(continued(tmp_path / "state.pt", learner, benchmark, stream)) == outcome(whole)


def test_pieces_of_avalanches_own_splitter_come_again_from_the_stream(tmp_path):
    """They lack the round's labels, which the learner puts right, and are in the middle of a round."""
    benchmark = with_task_labels(pieces_of_classes(lambda t: t))
    random.seed(0)  # Avalanche shuffles by it
    stream = list(split_online_stream(benchmark.train_stream, experience_size=4, access_task_boundaries=True))

    def learner():
        torch.manual_seed(0)
        plugin = per_round(plugins.EWCPlugin(10.0))
        return build(model=nn.Linear(4, 6), make_plugins=lambda o: [plugin], evaluator=EvaluationPlugin())

    tests = list(benchmark.test_stream)
    whole = go(learner(), benchmark, stream[:5], tests)
    save(whole, tmp_path / "state.pt")
    go(whole, benchmark, stream[5:], tests)
    assert outcome(continued(tmp_path / "state.pt", learner, benchmark, stream, tests)) == outcome(whole)


class Growing(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Linear(4, 5), IncrementalClassifier(5)

    def forward(self, x):
        return self.head(self.body(x))


@pytest.mark.parametrize("model", ["units", "heads"])
@pytest.mark.parametrize("evaluated", ["so far", "all", "backwards"])
def test_models_that_grow_get_their_size_back(model, evaluated, tmp_path):
    """Also what only an evaluation has grown, which the optimiser does not know yet."""
    benchmark = pieces_of_classes(lambda t: t if model == "heads" else None)
    if model == "heads":
        benchmark = with_task_labels(benchmark)
    for stream in (benchmark.train_stream, benchmark.test_stream):
        for experience in stream:  # sets in Avalanche, with which its multi-head models cannot index
            experience.classes_in_this_experience = sorted(experience.classes_in_this_experience)

    def learner():
        torch.manual_seed(0)
        net = MTSimpleMLP(input_size=4, hidden_size=5) if model == "heads" else Growing()
        return build(
            "TrainOnEverything",
            model=net,
            make_plugins=lambda o: [plugins.EWCPlugin(1.0)],
            evaluator=EvaluationPlugin(metrics.accuracy_metrics(stream=True)),
        )

    tests = list(benchmark.test_stream)
    evaluate = {"so far": None, "all": tests, "backwards": tests[::-1]}[evaluated]
    stream = list(benchmark.train_stream)
    whole = go(learner(), benchmark, stream[:2], evaluate)
    save(whole, tmp_path / "state.pt")
    sizes = {name: p.shape for name, p in whole.model.named_parameters()}
    go(whole, benchmark, stream[2:], evaluate)
    again = learner()
    somewhere_else()
    load(again, tmp_path / "state.pt", stream)
    assert {name: p.shape for name, p in again.model.named_parameters()} == sizes
    assert list(dict(again.model.named_parameters())) == list(sizes)
    go(again, benchmark, stream[2:], evaluate)
    assert outcome(again) == outcome(whole)


# -- the documentation


def test_the_example_of_the_documentation_goes_on_where_it_was(tmp_path, monkeypatch, capsys):
    text = (Path(__file__).parents[2] / "docs/saving.md").read_text(encoding="utf-8")
    example, plugin = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    small = partial(RainbowDigits, rounds=2, images_per_round=100, held_out_per_round=10)
    monkeypatch.setattr(ftml_bench.benchmarks, "RainbowDigits", lambda rounds: small())
    monkeypatch.chdir(tmp_path)
    stopped = example.replace("stream[done:]", "stream[done:3]")
    assert stopped != example
    for text, before, after in [(stopped, 0, 3), (example, 3, 4)]:
        names = {}
        exec(text, names)
        assert names["done"] == before
        assert names["strategy"].clock.train_exp_counter == after
    (tmp_path / "state.pt").unlink()
    whole = {}
    exec(example, whole)
    assert outcome(names["strategy"]) == outcome(whole["strategy"])
    exec(plugin, names)
    strategy = build(make_plugins=lambda o: [names["CountsArrivals"]()])
    strategy.plugins[0].arrivals += 1
    assert state_dict(strategy)["plugins"][0]["state"] == {"arrivals": 1}
