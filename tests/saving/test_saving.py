"""A strategy that is saved and loaded goes on bit by bit as one not stopped; what could not is refused by name."""

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
from avalanche.evaluation import PluginMetric, metrics
from avalanche.models import IncrementalClassifier, MTSimpleMLP, MultiHeadClassifier
from avalanche.training import plugins
from avalanche.training.plugins import EvaluationPlugin
from avalanche.training.supervised import Naive
from torch import nn
from torch.utils.data import TensorDataset

import ftml_bench.benchmarks
from ftml_bench import metrics as ours
from ftml_bench import saving
from ftml_bench.benchmarks import RainbowDigits, arrivals
from ftml_bench.errors import UsageError
from ftml_bench.protocol import held_out
from ftml_bench.saving import load, load_state_dict, save, state_dict
from ftml_bench.saving.plain_state import load_module_state, module_state
from ftml_bench.strategies import FTML, FollowTheLeader, FromScratch, LearningRateAfter, TrainOnEverything, per_round

JOINT = {"train_mb_size": 20, "steps": 2}
LEARNERS = {
    "FTML": (FTML, {"meta_batch_size": 2, "steps": 2, "inner_steps": 2}),
    "FollowTheLeader": (FollowTheLeader, {**JOINT, "update_steps": 2}),
    "TrainOnEverything": (TrainOnEverything, JOINT),
    "TrainOnEverything groups": (TrainOnEverything, {**JOINT, "batch_norm": "support"}),
    "FromScratch": (FromScratch, JOINT),
}
OPTIMIZERS = {
    "Adam": lambda p: torch.optim.Adam(p, lr=1e-2),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, nesterov=True),
}


@pytest.fixture(scope="module")
def digits():
    return RainbowDigits(rounds=3, images_per_round=24, held_out_per_round=10)


@pytest.fixture(scope="module")
def stream(digits):
    """Six arrivals: two a round."""
    return [arrival for round in digits.train_stream for arrival in arrivals(round, 12)]


def dropout_net():
    """Batch norm (buffers) and dropout (draws from the global generator)."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Flatten(), nn.Linear(588, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Dropout(0.3), nn.Linear(6, 10)
    )


def evaluator(**more):
    return EvaluationPlugin(
        metrics.accuracy_metrics(epoch=True, experience=True, stream=True, trained_experience=True),
        metrics.loss_metrics(minibatch=True, epoch_running=True, experience=True, stream=True),
        metrics.forgetting_metrics(experience=True, stream=True),
        metrics.bwt_metrics(experience=True, stream=True),
        ours.efficiency_metrics(),
        ours.checkpoint_metrics(checkpoints=[12]),
        ours.final_performance_metrics(),
        ours.learning_curve_metrics(),
        ours.regret_metrics(),
        ours.only_class_metrics(),
        **more,
    )


def build(name="FTML", *, optimizer="Adam", make_plugins=None, model=None, **changes):
    cls, settings = LEARNERS[name]
    model = model or dropout_net()
    optimizer = OPTIMIZERS[optimizer](model.parameters())
    given = make_plugins(optimizer) if make_plugins else []
    settings = {"eval_mb_size": 50, "evaluator": evaluator(), **settings, "plugins": given, **changes}
    return cls(model=model, optimizer=optimizer, **settings)


def go(strategy, benchmark, experiences, evaluate=None):
    """Train on each and evaluate it and the first round; `evaluate`: whole streams instead."""
    for experience in experiences:
        strategy.train(experience, eval_streams=[])
        strategy.eval(evaluate or [held_out(benchmark, 0), held_out(benchmark, experience)])
    return strategy


def outcome(strategy):
    """All that a later step or a table could depend on, as plain values."""
    return comparable(state_dict(strategy))


def comparable(value):
    if isinstance(value, torch.Tensor):
        return (str(value.dtype), tuple(value.shape), value.cpu().contiguous().numpy().tobytes())
    if isinstance(value, dict):
        return [(k, comparable(v)) for k, v in value.items()]
    return [comparable(v) for v in value] if isinstance(value, list) else value


def somewhere_else():
    """Another process would have other states of the global generators."""
    torch.manual_seed(99)
    np.random.seed(99)
    random.seed(99)


def continued(path, build_again, benchmark, stream, evaluate=None):
    strategy = build_again()
    somewhere_else()
    done = load(strategy, path, stream)
    return go(strategy, benchmark, stream[done:], evaluate)


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


def scheduler(optimizer):
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, [3, 9], gamma=0.1)
    return plugins.LRSchedulerPlugin(schedule, reset_scheduler=False, reset_lr=False, step_granularity="iteration")


def plateau(optimizer):
    schedule = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=0)
    return plugins.LRSchedulerPlugin(schedule, reset_scheduler=False, reset_lr=False, metric="train_loss")


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


# -- the file


def test_modes_and_frozen_parameters_come_back(digits, stream, tmp_path):
    def frozen():
        model = dropout_net()
        model[1].weight.requires_grad_(False)
        return build("TrainOnEverything", model=model)

    saved = go(frozen(), digits, stream[:2])
    saved.model.train()
    saved.model[4].eval()  # a user who wants no dropout from here on
    saved.model[1].bias.requires_grad_(False)
    save(saved, tmp_path / "state.pt")
    loaded = frozen()
    loaded.model.eval()
    load(loaded, tmp_path / "state.pt", stream)
    assert [m.training for m in loaded.model.modules()] == [m.training for m in saved.model.modules()]
    frozen_names = [name for name, p in loaded.model.named_parameters() if not p.requires_grad]
    assert frozen_names == ["1.weight", "1.bias"]


def test_heads_come_back_in_the_order_in_which_their_tasks_came():
    grown, other = MultiHeadClassifier(4, 2), MultiHeadClassifier(4, 2)
    for model, labels in ((grown, ("2", "0", "1")), (other, ("0", "1", "2"))):
        model.classifiers.clear()
        for label in labels:
            model.classifiers[label] = IncrementalClassifier(4, 2)
    load_module_state(other, module_state(grown))
    # an optimiser numbers parameters by their order
    names, expected = ([name for name, _ in model.named_parameters()] for model in (other, grown))
    assert names == expected
    for p, q in zip(other.parameters(), grown.parameters(), strict=True):
        assert torch.equal(p, q)


def test_the_file_holds_tensors_and_plain_values_only(digits, stream, tmp_path):
    strategy = build(make_plugins=lambda o: [plugins.EWCPlugin(1.0), plugins.LwFPlugin(), scheduler(o), plateau(o)])
    go(strategy, digits, stream[:2])
    save(strategy, tmp_path / "state.pt", note="mine", numbers=[1, 2.5])
    content = torch.load(tmp_path / "state.pt", weights_only=True)
    found = set()

    def kinds(value):
        found.add(type(value))
        for v in value.values() if isinstance(value, dict) else value if isinstance(value, list) else []:
            kinds(v)

    kinds(content)
    assert found == {dict, list, torch.Tensor, str, int, float, bool, type(None)}
    assert content["more"] == {"note": "mine", "numbers": [1, 2.5]}
    # No data: what it holds does not grow with what has arrived, but by the curves of the metrics.
    assert (tmp_path / "state.pt").stat().st_size < 400_000


def test_a_write_that_is_cut_off_leaves_the_old_file(digits, stream, tmp_path, monkeypatch):
    strategy = go(build(), digits, stream[:1])
    save(strategy, tmp_path / "state.pt")
    before = (tmp_path / "state.pt").read_bytes()

    def half(content, path):
        Path(path).write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", half)
    with pytest.raises(KeyboardInterrupt):
        save(strategy, tmp_path / "state.pt")
    assert (tmp_path / "state.pt").read_bytes() == before


@pytest.mark.parametrize("damage", ["flipped", "cut off", "empty", "text", "other"])
def test_a_damaged_file_is_said_in_one_line(damage, digits, stream, tmp_path):
    file = tmp_path / "state.pt"
    save(go(build(), digits, stream[:1]), file)
    content = bytearray(file.read_bytes())
    if damage == "flipped":
        content[len(content) // 2] ^= 1
    elif damage == "cut off":
        del content[len(content) // 2 :]
    elif damage == "empty":
        content.clear()
    elif damage == "text":
        content = b"my thesis"
    file.write_bytes(content)
    if damage == "other":
        torch.save({"weights": torch.zeros(2)}, file)
    with pytest.raises(UsageError, match=r"state\.pt: (damaged|no saved state)") as error:
        load(build(), file, stream)
    assert "\n" not in str(error.value)


def test_a_state_that_lacks_something_is_damaged(digits, stream):
    state = state_dict(go(build(), digits, stream[:1]))
    for key in ("strategy", "experiences", "optimizer", "random"):
        with pytest.raises(UsageError, match=f"damaged saved state .KeyError: '{key}'"):
            load_state_dict(build(), {k: v for k, v in state.items() if k != key}, stream)


# -- refusals


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


def test_a_state_of_another_version_or_stream_is_refused_in_one_line(digits, stream, tmp_path, monkeypatch):
    save(go(build(), digits, stream[:3]), tmp_path / "state.pt")
    with pytest.raises(UsageError, match="3 experiences had been trained on; the stream has 2"):
        load(build(), tmp_path / "state.pt", stream[:2])
    other = RainbowDigits(rounds=3, images_per_round=24, held_out_per_round=10, seed=5)
    for experiences, message in [
        ([a for round in other.train_stream for a in arrivals(round, 12)], "round 0 has other data"),
        ([a for round in digits.train_stream for a in arrivals(round, 10)], "round 1 now has 0 datapoints, then 12"),
    ]:
        with pytest.raises(UsageError, match=f"not the stream that was trained on: {message}"):
            load(build(), tmp_path / "state.pt", experiences)
    with pytest.raises(UsageError, match=r"nothing\.pt is missing"):
        load(build(), tmp_path / "nothing.pt", stream)
    monkeypatch.setattr(saving.strategies, "VERSION", 2)
    with pytest.raises(UsageError, match="a saved state of version 1; this ftml_bench reads version 2"):
        load(build(), tmp_path / "state.pt", stream)


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
