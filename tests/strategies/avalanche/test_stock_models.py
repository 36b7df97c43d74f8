"""Models that grow, have several heads, drop out or normalise, by every learner."""

import pytest
import torch
from avalanche.benchmarks import (
    SplitCIFAR100,
    benchmark_from_datasets,
    nc_benchmark,
    task_incremental_benchmark,
    with_classes_timeline,
    with_task_labels,
)
from avalanche.core import SupervisedPlugin
from avalanche.evaluation.metrics import accuracy_metrics, loss_metrics
from avalanche.models import (
    IncrementalClassifier,
    MTSimpleMLP,
    MTSlimResNet18,
    SimpleCNN,
    SimpleMLP,
    SlimResNet18,
    as_multitask,
)
from avalanche.training.plugins import EvaluationPlugin
from torch import nn
from torch.func import functional_call

from ftml_bench.errors import UsageError
from ftml_bench.models import TaskBatchNorm
from ftml_bench.strategies import FTML, FollowTheLeader, FromScratch
from tests.strategies.avalanche.pipelines import class_incremental, every_learner, learner, points, same, seeded, state


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
