"""Ordinary Avalanche scripts: stock streams of every kind, stock models, and what an evaluation may adapt to."""

import pickle
import re
import struct
from functools import partial
from pathlib import Path

import avalanche.benchmarks
import numpy as np
import pytest
import torch
from avalanche.benchmarks import (
    FixedSizeExperienceSplitter,
    PermutedMNIST,
    RotatedMNIST,
    SplitCIFAR100,
    SplitMNIST,
    benchmark_from_datasets,
    class_incremental_benchmark,
    nc_benchmark,
    new_instances_benchmark,
    ni_benchmark,
    split_online_stream,
    task_incremental_benchmark,
    with_classes_timeline,
    with_task_labels,
)
from avalanche.benchmarks.utils import as_classification_dataset
from avalanche.core import SupervisedPlugin
from avalanche.evaluation.metrics import (
    accuracy_metrics,
    bwt_metrics,
    forgetting_metrics,
    forward_transfer_metrics,
    loss_metrics,
)
from avalanche.models import (
    IncrementalClassifier,
    MTSimpleMLP,
    MTSlimResNet18,
    SimpleCNN,
    SimpleMLP,
    SlimResNet18,
    as_multitask,
)
from avalanche.training import Naive
from avalanche.training.plugins import EvaluationPlugin
from torch import nn
from torch.func import functional_call
from torch.utils.data import TensorDataset
from torchvision.datasets import CIFAR100

from ftml_bench.benchmarks import arrivals
from ftml_bench.errors import UsageError
from ftml_bench.models import TaskBatchNorm
from ftml_bench.strategies import FTML, FollowTheLeader, FromScratch, TrainOnEverything

JOINT = {"train_mb_size": 16, "group_size": 8}
LEARNERS = {
    FTML: {"meta_batch_size": 2, "support_size": 4, "query_size": 4, "inner_steps": 2, "update_size": 20},
    FollowTheLeader: {**JOINT, "update_steps": 2, "update_size": 20},
    TrainOnEverything: {**JOINT, "update_size": 20},
    FromScratch: {"train_mb_size": 16, "update_size": 20},
}
every_learner = pytest.mark.parametrize("cls", LEARNERS, ids=lambda cls: cls.__name__)


def learner(cls, model, *, lr=0.05, evaluator=None, **changes):
    settings = {"train_mb_size": 16, "eval_mb_size": 32, **LEARNERS[cls], **changes}
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    return cls(model=model, optimizer=optimizer, evaluator=evaluator or EvaluationPlugin(), **settings)


def seeded(build, *args, **settings):
    torch.manual_seed(0)
    return build(*args, **settings)


def state(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[n], second[n]) for n in first)


# -- data: made up, in the place of the real files


def mnist_files(folder, train=80, test=40):
    """The files of MNIST with made-up digits: each class is bright in its own row of pixels."""
    raw = folder / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for part, n in (("train", train), ("t10k", test)):
        labels = np.arange(n, dtype=np.uint8) % 10
        images = np.random.default_rng(n).integers(0, 60, (n, 28, 28), dtype=np.uint8)
        images[np.arange(n), 2 * labels] = 255
        (raw / f"{part}-images-idx3-ubyte").write_bytes(struct.pack(">IIII", 2051, n, 28, 28) + images.tobytes())
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(struct.pack(">II", 2049, n) + labels.tobytes())
    return folder


def cifar100_files(folder):
    """The files of CIFAR-100 with made-up images: two a class for training, one for testing."""
    base = folder / "cifar-100-python"
    base.mkdir()
    rng = np.random.default_rng(0)
    for part, n in (("train", 200), ("test", 100)):
        entry = {"data": rng.integers(0, 255, (n, 3072), dtype=np.uint8), "fine_labels": [i % 100 for i in range(n)]}
        (base / part).write_bytes(pickle.dumps(entry))
    (base / "meta").write_bytes(pickle.dumps({"fine_label_names": [f"class {i}" for i in range(100)]}))
    return folder


@pytest.fixture(scope="module")
def mnist(tmp_path_factory):
    return mnist_files(tmp_path_factory.mktemp("mnist"))


@pytest.fixture(scope="module")
def cifar100(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        # The files are not the real ones, so their checksums are not looked at.
        patch.setattr(CIFAR100, "_check_integrity", lambda self: True)
        patch.setattr("torchvision.datasets.cifar.check_integrity", lambda *args: True)
        yield cifar100_files(tmp_path_factory.mktemp("cifar100"))


def points(n, classes=4, seed=0):
    """(x, y) in five dimensions, a class a direction, as a dataset with targets."""
    rng = torch.Generator().manual_seed(seed)
    y = torch.arange(n) % classes
    dataset = TensorDataset(torch.randn(n, 5, generator=rng) / 2 + 2 * torch.eye(5)[y], y)
    dataset.targets = y.tolist()
    return dataset


def as_avalanche(*sizes):
    return [as_classification_dataset(points(n, seed=i)) for i, n in enumerate(sizes)]


def class_incremental(**settings):
    return class_incremental_benchmark(
        {"train": as_avalanche(48)[0], "test": as_avalanche(24)[0]}, num_experiences=2, class_order=[0, 1, 2, 3]
    )


STREAMS = {
    "SplitMNIST": lambda get: SplitMNIST(5, seed=1, dataset_root=get("mnist")),
    "SplitMNIST, task labels": lambda get: SplitMNIST(5, return_task_id=True, seed=1, dataset_root=get("mnist")),
    "PermutedMNIST": lambda get: PermutedMNIST(2, seed=1, dataset_root=get("mnist")),
    "RotatedMNIST": lambda get: RotatedMNIST(2, rotations_list=[0, 30], seed=1, dataset_root=get("mnist")),
    "SplitCIFAR100": lambda get: SplitCIFAR100(2, seed=1, dataset_root=get("cifar100")),
    "nc_benchmark": lambda get: nc_benchmark(points(48), points(24), n_experiences=2, task_labels=False),
    "nc_benchmark, task labels": lambda get: nc_benchmark(points(48), points(24), n_experiences=2, task_labels=True),
    "ni_benchmark": lambda get: ni_benchmark(points(48), points(24), n_experiences=3, task_labels=False),
    "ni_benchmark, task labels": lambda get: ni_benchmark(points(48), points(24), n_experiences=3, task_labels=True),
    "benchmark_from_datasets": lambda get: benchmark_from_datasets(train=as_avalanche(30, 31), test=as_avalanche(9, 8)),
    "class_incremental_benchmark": lambda get: class_incremental(),
    "task_incremental_benchmark": lambda get: task_incremental_benchmark(class_incremental()),
    "new_instances_benchmark": lambda get: new_instances_benchmark(*as_avalanche(48, 24), num_experiences=3, seed=0),
}


def mlp_for(stream):
    sizes = next(iter(stream.train_stream)).dataset[0][0].numel()
    classes = 100 if sizes == 3 * 32 * 32 else 10
    return seeded(SimpleMLP, input_size=sizes, hidden_size=16, num_classes=classes, drop_rate=0)


@every_learner
@pytest.mark.parametrize("name", STREAMS)
def test_an_ordinary_script_runs_on_every_stock_stream(name, cls, request):
    stream = STREAMS[name](request.getfixturevalue)
    model = mlp_for(stream)
    evaluator = EvaluationPlugin(accuracy_metrics(experience=True, stream=True), loss_metrics(experience=True))
    strategy = learner(cls, model, evaluator=evaluator, train_epochs=2, eval_every=1, steps=1)
    start = state(model)
    for experience in stream.train_stream:
        strategy.train(experience, eval_streams=[stream.test_stream])
        assert len(strategy.buffer.rounds[experience.current_experience]) == len(experience.dataset)
    results = strategy.eval(stream.test_stream)
    evaluated = [key for key in results if key.startswith("Top1_Acc_Exp/eval_phase/test_stream")]
    assert len(evaluated) == len(list(stream.test_stream))
    assert all(0 <= results[key] <= 1 for key in evaluated)
    assert all(value.isfinite().all() for value in model.state_dict().values())
    assert not same(start, state(model))
    rounds = len(strategy.buffer.rounds)
    # an epoch each of one step; who leaves out the first round has one round less
    assert strategy.cost.steps == 2 * (rounds - 1 if cls is FollowTheLeader else rounds)


@every_learner
def test_it_learns_on_a_stock_stream(cls, mnist):
    """Rows of pixels tell the classes apart."""
    stream = SplitMNIST(5, return_task_id=True, seed=1, dataset_root=mnist)
    evaluator = EvaluationPlugin(accuracy_metrics(stream=True))
    changes = {"update_steps": 30} if cls is FollowTheLeader else {}
    strategy = learner(cls, mlp_for(stream), evaluator=evaluator, train_epochs=20, lr=0.1, **changes)
    for experience in stream.train_stream:
        strategy.train(experience, eval_streams=[])
    last = strategy.eval(stream.test_stream[4])
    assert last["Top1_Acc_Stream/eval_phase/test_stream/Task004"] > 0.8


@every_learner
@pytest.mark.parametrize("size", [8, 10])
@pytest.mark.parametrize("boundaries", [False, True])
def test_mini_experiences_of_avalanches_own_splitter_are_filed_under_their_round(cls, boundaries, size):
    stream = task_incremental_benchmark(class_incremental())
    evaluator = EvaluationPlugin(accuracy_metrics(experience=True), forgetting_metrics(experience=True, stream=True))
    strategy = learner(cls, mlp_for(stream), evaluator=evaluator, steps=1)
    seen = []
    for piece in split_online_stream(stream.train_stream, size, access_task_boundaries=boundaries, seed=0):
        strategy.train(piece)  # evaluates nothing: eval_every is -1
        seen.append({number: len(r) for number, r in strategy.buffer.rounds.items()})
        results = strategy.eval(stream.test_stream)
    pieces = -(-24 // size)
    ends = [min((i + 1) * size, 24) for i in range(pieces)]
    assert seen == [{0: n} for n in ends] + [{0: 24, 1: n} for n in ends]
    assert strategy.buffer.rounds[1].labels == (1,)
    # rounds for experiences: with the splitter's own numbers there would be Exp002, 003, ... and a forgetting of 0
    assert {key[-6:] for key in results if key.startswith("ExperienceForgetting")} == {"Exp000"}


def test_data_of_a_stream_cut_by_avalanche_may_come_twice_and_count_once():
    stream = class_incremental()
    strategy = learner(FTML, mlp_for(stream), steps=1)
    for _ in range(2):
        for piece in split_online_stream(stream.train_stream, 10, seed=0):
            strategy.train(piece)
    assert {number: len(r) for number, r in strategy.buffer.rounds.items()} == {0: 24, 1: 24}


def test_pieces_of_the_splitter_used_without_a_stream_are_taken_too():
    stream = class_incremental()
    strategy = learner(FTML, mlp_for(stream), steps=1)
    for experience in stream.train_stream:
        for piece in FixedSizeExperienceSplitter(experience, 10, seed=0):
            strategy.train(piece, eval_streams=[])
    assert {number: len(r) for number, r in strategy.buffer.rounds.items()} == {0: 24, 1: 24}


def test_several_experiences_may_be_given_at_once():
    stream = class_incremental()
    one, by_one = (learner(FTML, mlp_for(stream)) for _ in range(2))
    one.train(stream.train_stream, eval_streams=[])
    for experience in stream.train_stream:
        by_one.train(experience, eval_streams=[])
    assert same(state(one.model), state(by_one.model))


def test_steps_of_an_epoch_are_those_of_avalanches_naive():
    stream = class_incremental()
    ours = learner(FTML, mlp_for(stream), train_epochs=3)
    naive_model = mlp_for(stream)
    naive = Naive(
        model=naive_model,
        optimizer=torch.optim.SGD(naive_model.parameters(), lr=0.1),
        train_mb_size=16,
        train_epochs=3,
        evaluator=EvaluationPlugin(),
    )
    for strategy in (ours, naive):
        strategy.train(stream.train_stream[0], eval_streams=[])
    assert ours.clock.train_iterations == naive.clock.train_iterations == 3 * 2


def test_the_page_shows_code_that_runs(mnist, monkeypatch, capsys):
    page = (Path(__file__).parents[3] / "docs" / "avalanche.md").read_text(encoding="utf-8")
    monkeypatch.setattr(avalanche.benchmarks, "SplitMNIST", partial(SplitMNIST, dataset_root=mnist))
    blocks = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert len(blocks) == 2
    for block in blocks:
        exec(block, {})
    assert "Top1_Acc_Stream/eval_phase/test_stream" in capsys.readouterr().out


# -- the rule of evaluation


def gradient_steps(model, parameters, x, y, steps, lr):
    for _ in range(steps):
        loss = nn.functional.cross_entropy(functional_call(model, parameters, (x,)), y)
        gradients = torch.autograd.grad(loss, list(parameters.values()))
        parameters = {
            n: (p - lr * g).detach().requires_grad_() for (n, p), g in zip(parameters.items(), gradients, strict=True)
        }
    return parameters


def stacked(experience, rows=slice(None)):
    dataset = experience.dataset.eval()
    x, y = zip(*[dataset[i][:2] for i in range(len(dataset))][rows], strict=True)
    return torch.stack(x), torch.tensor(y)


def evaluated_by(strategy, experience):
    """The parameters of the copy that predicts an experience."""
    strategy.model.eval()
    model = strategy.model_for(experience)
    return {n: p.detach() for n, p in model.named_parameters()}


def close(first, second):
    return all(torch.allclose(first[n], second[n], atol=1e-6) for n in first)


def adapted_to(strategy, x, y):
    start = {n: p.detach().clone().requires_grad_() for n, p in strategy.model.named_parameters()}
    return gradient_steps(strategy.model, start, x, y, 2, 0.1)


def trained(stream, rounds=None):
    strategy = learner(FTML, mlp_for(stream), update_size=1000)
    for experience in stream.train_stream[:rounds]:
        strategy.train(experience, eval_streams=[])
    return strategy


def test_with_task_labels_each_experience_is_predicted_after_adapting_to_its_own_tasks_data():
    stream = task_incremental_benchmark(class_incremental())
    strategy = trained(stream)
    for k in (0, 1):
        own = adapted_to(strategy, *stacked(stream.train_stream[k]))
        other = adapted_to(strategy, *stacked(stream.train_stream[1 - k]))
        assert close(evaluated_by(strategy, stream.test_stream[k]), own)
        assert not close(evaluated_by(strategy, stream.test_stream[k]), other)


@pytest.mark.parametrize("stream", [class_incremental, STREAMS["nc_benchmark"].__call__], ids=["new", "nc_benchmark"])
def test_without_task_labels_all_experiences_are_predicted_by_one_copy_adapted_to_all_rounds(stream):
    stream = stream() if stream is class_incremental else stream(None)
    strategy = trained(stream)
    x, y = zip(*map(stacked, stream.train_stream), strict=True)
    expected = adapted_to(strategy, torch.cat(x), torch.cat(y))  # rounds of one size: all points of both
    for experience in stream.test_stream:
        assert close(evaluated_by(strategy, experience), expected)


def test_without_task_labels_rounds_of_unequal_size_count_equally():
    stream = benchmark_from_datasets(train=as_avalanche(30, 10), test=as_avalanche(9, 8))
    strategy = trained(stream)
    data = strategy.buffer.for_label(None, limit=1000, seed=0)
    assert len(data[0]) == 20
    (x, _), (small, _) = map(stacked, stream.train_stream)
    assert sum((row == x).all(1).any().item() for row in data[0]) == 10
    assert sum((row == small).all(1).any().item() for row in data[0]) == 10


def test_data_incremental_without_labels_one_test_set_is_predicted_after_adapting_to_what_has_arrived():
    stream = new_instances_benchmark(*as_avalanche(48, 24), num_experiences=3, seed=0)
    strategy = learner(FTML, mlp_for(stream), update_size=1000)
    arrived = []
    for experience in stream.train_stream:
        strategy.train(experience, eval_streams=[])
        arrived.append(stacked(experience))
        x, y = (torch.cat(part) for part in zip(*arrived, strict=True))
        assert close(evaluated_by(strategy, next(iter(stream.test_stream))), adapted_to(strategy, x, y))


def test_a_task_that_has_not_come_is_predicted_without_adaptation():
    stream = task_incremental_benchmark(class_incremental())
    strategy = trained(stream, rounds=1)
    meta = {n: p.detach() for n, p in strategy.model.named_parameters()}
    assert close(evaluated_by(strategy, stream.test_stream[1]), meta)
    assert not close(evaluated_by(strategy, stream.test_stream[0]), meta)


# -- forgetting and transfer, counted by hand


class Scripted(FTML):
    """FTML whose predictions are right on a prescribed share of each experience's points."""

    def forward(self):
        if self.is_training:
            return super().forward()
        share = self.script.get((self.clock.train_exp_counter, self.experience.current_experience), 0.0)
        right = torch.arange(len(self.mb_y)) < round(share * len(self.mb_y))
        return nn.functional.one_hot(torch.where(right, self.mb_y, (self.mb_y + 1) % 4), 4).float()


@pytest.mark.parametrize("cut", [None, "ours", "avalanche"])
def test_forgetting_and_transfer_are_what_avalanche_says_they_are(cut):
    data = as_avalanche(20, 20, 20)
    stream = task_incremental_benchmark(benchmark_from_datasets(train=data, test=as_avalanche(10, 10, 10)))
    evaluator = EvaluationPlugin(
        forgetting_metrics(experience=True, stream=True),
        bwt_metrics(experience=True, stream=True),
        forward_transfer_metrics(experience=True, stream=True),
    )
    model = seeded(SimpleMLP, input_size=5, hidden_size=8, num_classes=4, drop_rate=0)
    strategy = Scripted(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
        steps=1,
        eval_mb_size=10,
        evaluator=evaluator,
        meta_batch_size=1,
        eval_every=0,
    )
    pieces = {
        None: lambda: ([e] for e in stream.train_stream),
        "ours": lambda: (arrivals(e, 5) for e in stream.train_stream),
        "avalanche": lambda: (split_online_stream([e], 5, seed=0) for e in stream.train_stream),
    }[cut]()
    # accuracy[after so many rounds][of experience k]
    accuracy = [[0.1, 0.2, 0.3], [1.0, 0.4, 0.3], [0.7, 0.9, 0.5], [0.8, 0.6, 1.0]]
    strategy.script = {(0, k): a for k, a in enumerate(accuracy[0])}
    strategy.eval_every = -1
    for plugin in strategy.plugins:
        if type(plugin).__name__ == "PeriodicEval":
            plugin.eval_every, plugin.do_initial = -1, False
    strategy.eval_every = 0  # what Avalanche's forward transfer asks for
    strategy.eval(stream.test_stream)
    for after, arriving in enumerate(pieces, start=1):
        for piece in arriving:
            strategy.train(piece, eval_streams=[])
        strategy.script = {(strategy.clock.train_exp_counter, k): a for k, a in enumerate(accuracy[after])}
        results = strategy.eval(stream.test_stream)
    # forgetting: accuracy right after its own training minus accuracy at the end; backward transfer: its negative
    value = lambda name: next(v for k, v in results.items() if k.startswith(name))  # noqa: E731
    assert value("StreamForgetting/") == pytest.approx(((1.0 - 0.8) + (0.9 - 0.6)) / 2)
    assert value("StreamBWT/") == pytest.approx(-((1.0 - 0.8) + (0.9 - 0.6)) / 2)
    # forward transfer: accuracy just before its own training minus accuracy before any
    assert value("StreamForwardTransfer/") == pytest.approx(((0.4 - 0.2) + (0.5 - 0.3)) / 2)


# -- models


class Multi(nn.Module):
    """A body and a classifier that grows with the classes."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(5, 8), nn.ReLU())
        self.classifier = IncrementalClassifier(8)

    def forward(self, x):
        return self.classifier(self.body(x))


class Norm(nn.Module):
    """A body with batch norm."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.ReLU())
        self.classifier = nn.Linear(8, 4)

    def forward(self, x):
        return self.classifier(self.body(x))


def with_classes(stream, labels):
    """As `stream`; the experiences name their classes in a list, which Avalanche's growing models need."""
    stream = task_incremental_benchmark(stream) if labels else stream
    for part in (stream.train_stream, stream.test_stream):
        for experience in part:
            experience.classes_in_this_experience = sorted(experience.dataset.targets.uniques)
    return stream


GROWING = {
    "IncrementalClassifier": (lambda: seeded(Multi), False),
    "MTSimpleMLP": (lambda: seeded(MTSimpleMLP, input_size=5, hidden_size=8), True),
    "as_multitask with batch norm": (lambda: seeded(lambda: as_multitask(Norm(), "classifier")), True),
}


@every_learner
@pytest.mark.parametrize("name", GROWING)
def test_models_that_grow_are_trained_and_an_evaluation_leaves_them_as_they_were(name, cls):
    build, labels = GROWING[name]
    stream = with_classes(class_incremental(), labels)
    results = []
    for evaluate in (False, True):
        model = build()
        evaluator = EvaluationPlugin(accuracy_metrics(experience=True))
        strategy = learner(cls, model, evaluator=evaluator, train_epochs=2, lr=0.1)
        for experience in stream.train_stream:
            if evaluate:  # of classes and tasks that are still to come
                before, named = state(model), [p for p, _ in model.named_parameters()]
                strategy.eval(stream.test_stream)
                assert same(before, state(model))
                assert [p for p, _ in model.named_parameters()] == named
                assert strategy.model is model
            torch.manual_seed(5)  # the new outputs' first values
            strategy.train(experience, eval_streams=[])
        results.append(state(model))
        first = dict(strategy.eval(stream.test_stream))
        backwards = strategy.eval(stream.test_stream[::-1])
        assert first == backwards
    assert same(*results)
    if name == "IncrementalClassifier":
        assert model.classifier.classifier.out_features == 4


def by_hand(model, support, query, label, steps, lr):
    """Query loss after gradient steps on the support set, for the model called with task labels; and its gradient."""
    parameters = dict(model.named_parameters())
    call = lambda p, x: functional_call(model, p, (x, torch.full((len(x),), label)))  # noqa: E731
    fast = parameters
    for _ in range(steps):
        loss = nn.functional.cross_entropy(call(fast, support[0]), support[1])
        gradients = torch.autograd.grad(loss, list(fast.values()), create_graph=True, allow_unused=True)
        fast = {n: p if g is None else p - lr * g for (n, p), g in zip(fast.items(), gradients, strict=True)}
    return nn.functional.cross_entropy(call(fast, query[0]), query[1])


def test_the_meta_gradient_of_a_multi_head_model_is_the_one_written_by_hand():
    stream = with_classes(class_incremental(), True)
    model = seeded(MTSimpleMLP, input_size=5, hidden_size=8)
    model.features[2].p = 0.0
    strategy = learner(FTML, model, lr=0.5, meta_batch_size=3)
    strategy.train(stream.train_stream[0], eval_streams=[])
    step = {}

    class Look(SupervisedPlugin):
        def before_backward(self, s, **kwargs):
            if step:
                return
            query_x, query_y, support_x, support_y, labels = s.mbatch
            losses = []
            for t in range(3):
                rows = slice(4 * t, 4 * t + 4)
                query = query_x[rows], query_y[rows]
                losses.append(by_hand(model, (support_x[t], support_y[t]), query, int(labels[rows][0]), 2, 0.1))
            step["labels"] = labels[::4].tolist()
            step["loss"] = torch.stack(losses).mean()
            step["gradients"] = torch.autograd.grad(step["loss"], list(model.parameters()), allow_unused=True)

        def after_backward(self, s, **kwargs):
            step.setdefault("own loss", s.loss.detach())
            step.setdefault("own", [None if p.grad is None else p.grad.clone() for p in model.parameters()])

    strategy.plugins.insert(0, Look())
    strategy.train(stream.train_stream[1], eval_streams=[])
    assert set(step["labels"]) == {0, 1}
    assert torch.allclose(step["own loss"], step["loss"])
    for own, expected in zip(step["own"], step["gradients"], strict=True):
        assert torch.allclose(own, torch.zeros_like(own) if expected is None else expected, atol=1e-6)
    assert any(g.abs().max() > 1e-3 for g in step["own"])


@pytest.mark.parametrize("engine", ["batched", "higher"])
def test_engines_that_pass_no_task_labels_are_refused_for_models_that_take_them(engine):
    with pytest.raises(UsageError, match=f"engine='{engine}' passes no task labels, which MTSimpleMLP takes") as error:
        learner(FTML, MTSimpleMLP(input_size=5), engine=engine)
    assert "\n" not in str(error.value)


def test_the_last_layer_of_a_multi_head_model_is_refused():
    with pytest.raises(UsageError, match="MTSimpleMLP has a last layer for every task"):
        learner(FTML, MTSimpleMLP(input_size=5), adapted="last_layer")


def test_from_scratch_starts_a_model_that_grew_anew_every_round():
    stream = with_classes(class_incremental(), False)
    model = seeded(Multi)
    strategy = learner(FromScratch, model, lr=0.0, train_epochs=1)
    strategy.train(stream.train_stream[0], eval_streams=[])
    start = state(model)
    for group in strategy.optimizer.param_groups:
        group["lr"] = 0.3
    strategy.train(stream.train_stream[0], eval_streams=[])  # the same round: trains on
    assert not torch.equal(model.body[0].weight, start["body.0.weight"])
    for group in strategy.optimizer.param_groups:
        group["lr"] = 0.0
    strategy.train(stream.train_stream[1], eval_streams=[])
    assert torch.equal(model.body[0].weight, start["body.0.weight"])
    assert torch.equal(model.classifier.classifier.weight[:2], start["classifier.classifier.weight"])


STOCK_MODELS = {
    "SimpleMLP with dropout": (lambda: SimpleMLP(num_classes=100, input_size=3072, hidden_size=8), False),
    "SimpleCNN": (lambda: SimpleCNN(num_classes=100), False),
    "SlimResNet18": (lambda: SlimResNet18(100, nf=2), False),
    "MTSlimResNet18": (lambda: MTSlimResNet18(10, nf=2), True),
}


@pytest.mark.parametrize("cls", [FTML, FollowTheLeader], ids=lambda cls: cls.__name__)
@pytest.mark.parametrize("name", STOCK_MODELS)
def test_avalanches_models_run(name, cls, cifar100):
    build, labels = STOCK_MODELS[name]
    stream = SplitCIFAR100(10, return_task_id=labels, seed=1, dataset_root=cifar100)
    model = seeded(build)
    strategy = learner(cls, model, steps=1, evaluator=EvaluationPlugin(loss_metrics(experience=True)))
    start = state(model)
    for experience in stream.train_stream[:2]:
        strategy.train(experience, eval_streams=[])
    results = strategy.eval(stream.test_stream[:1]), strategy.eval(stream.test_stream[:1])
    assert results[0] == results[1]  # no dropout in the update procedure or in evaluation
    assert all(value.isfinite().all() for value in model.state_dict().values())
    trained = [n for n, p in model.named_parameters() if n in start and not torch.equal(start[n], p)]
    assert len(trained) > 1


def test_dropout_is_active_in_training_and_off_in_an_evaluation():
    stream = class_incremental()
    modes = []

    class Dropout(nn.Dropout):
        def forward(self, x):
            modes.append(self.training)
            return super().forward(x)

    model = nn.Sequential(nn.Linear(5, 8), Dropout(), nn.Linear(8, 4))
    strategy = learner(FTML, model)
    strategy.train(stream.train_stream[0], eval_streams=[])
    assert set(modes) == {True}
    modes.clear()
    strategy.eval(stream.test_stream)
    assert set(modes) == {False}


def test_running_statistics_of_the_meta_model_are_those_of_the_support_sets_and_nothing_else():
    stream = task_incremental_benchmark(class_incremental())
    model = seeded(Norm)
    strategy = learner(FTML, model, steps=2)
    supports = []

    class Look(SupervisedPlugin):
        def after_forward(self, s, **kwargs):
            supports.append((s.mbatch[2], [p.detach().clone() for p in model.body[0].parameters()]))

    strategy.plugins.insert(0, Look())
    strategy.train(stream.train_stream[0], eval_streams=[])
    mean, var = torch.zeros(8), torch.ones(8)
    for support, (weight, bias) in supports:
        hidden = support @ weight.T + bias  # (T, S, 8)
        mean = 0.9 * mean + 0.1 * hidden.mean(1).mean(0)
        var = 0.9 * var + 0.1 * hidden.var(1).mean(0)
    assert type(model.body[1]) is TaskBatchNorm
    assert torch.allclose(model.body[1].running_mean, mean, atol=1e-6)
    assert torch.allclose(model.body[1].running_var, var, atol=1e-6)
    before = state(model)
    strategy.eval(stream.test_stream)
    assert same(before, state(model))


def test_a_round_of_several_tasks_is_refused_for_a_model_that_takes_task_labels():
    stream = nc_benchmark(points(24), points(24), n_experiences=2, task_labels=True)
    experience = stream.train_stream[0]
    strategy = learner(FTML, MTSimpleMLP(input_size=5))
    both = benchmark_from_datasets(train=[experience.dataset.concat(stream.train_stream[1].dataset)])
    both = with_task_labels(with_classes_timeline(both))
    with pytest.raises(UsageError, match=r"holds the tasks \[0, 1\]: a model that takes task labels needs one"):
        strategy.train(both.train_stream[0], eval_streams=[])
