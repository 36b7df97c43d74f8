"""Criteria that look at more than outputs and targets, against gradient steps and finite differences by plain loops."""

import types
from copy import deepcopy

import pytest
import torch
import torch.nn.functional as F
from avalanche.core import SupervisedPlugin
from avalanche.evaluation.metrics import loss_metrics
from avalanche.training.plugins import EvaluationPlugin
from torch import nn

from ftml_bench.adaptation import dependences
from ftml_bench.errors import UsageError
from ftml_bench.metrics.performance import Performance
from ftml_bench.strategies import FTML, FollowTheLeader, MAMLPlusPlus, Reptile, TrainOnEverything
from tests.strategies.tensors import mlp, points, stream

pytestmark = pytest.mark.usefixtures("double_precision")
RATE, STEPS = 0.5, 3


@pytest.fixture
def data():
    return points()


class Cosine(nn.Module):
    """Gives features; a criterion compares them with the weights of its classes."""

    def __init__(self):
        super().__init__()
        self.features, self.classes = mlp(), nn.Parameter(torch.randn(3, 3))

    def forward(self, x):
        return F.normalize(self.features(x), dim=1)


def penalised(model):
    return lambda outputs, y: F.cross_entropy(outputs, y) + 0.1 * sum(p.square().sum() for p in model.parameters())


def cosine(model):
    return lambda outputs, y: F.cross_entropy(8 * outputs @ F.normalize(model.classes, dim=1).t(), y)


class Kept(SupervisedPlugin):
    """The last minibatch, the weights before its step, its loss and gradients."""

    def before_forward(self, strategy, **_):
        self.batch = [part.clone() for part in strategy.mbatch]
        self.weights = deepcopy(dict(strategy.model.named_parameters()))

    def before_update(self, strategy, **_):
        self.loss = float(strategy.loss)
        self.gradients = {name: p.grad for name, p in strategy.model.named_parameters()}


def learner(cls, model, criterion, **settings):
    if cls is not TrainOnEverything:
        settings = {"inner_lr": RATE, "update_steps": 5, **settings}
    if issubclass(cls, FTML):
        settings = {"inner_steps": STEPS, "meta_batch_size": 3, "support_size": 6, "query_size": 5, **settings}
    more = {"train_mb_size": 10} if cls in (TrainOnEverything, FollowTheLeader) else {}
    return cls(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.05),
        criterion=criterion,
        steps=2,
        eval_mb_size=64,
        evaluator=EvaluationPlugin(loss_metrics(experience=True)),
        **more,
        **settings,
    )


def trained(strategy, streams):
    for experience in streams.train_stream:
        strategy.train(experience)
    return strategy


def descend(model, loss, x, y, steps, rate=RATE):
    for _ in range(steps):
        gradients = torch.autograd.grad(loss(model(x), y), [*model.parameters()], allow_unused=True)
        with torch.no_grad():
            for p, gradient in zip(model.parameters(), gradients, strict=True):
                if gradient is not None:
                    p -= rate * gradient
    return model


def with_weights(model, weights):
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.copy_(weights[name])
    return model


def meta_loss(build, loss_of, weights, batch, rate=RATE):
    """Equation 5 by plain loops: the mean over tasks of the loss after inner steps."""
    query_x, query_y, support_x, support_y, _ = batch
    tasks, found = len(support_x), []
    for x, y, u, v in zip(support_x, support_y, query_x.chunk(tasks), query_y.chunk(tasks), strict=True):
        model = with_weights(build(), weights)
        descend(model, loss_of(model), x, y, STEPS, rate)
        found.append(float(loss_of(model)(model(u), v)))
    return sum(found) / tasks


def compare(kept, build, loss_of, rate=RATE):
    """Loss and slope of a meta-step, by plain loops and central differences."""
    assert kept.loss == pytest.approx(meta_loss(build, loss_of, kept.weights, kept.batch, rate), rel=1e-9)
    g = torch.Generator().manual_seed(1)
    direction = {name: torch.randn(p.shape, generator=g) for name, p in kept.weights.items()}
    before, behind = (
        meta_loss(build, loss_of, {n: p + h * direction[n] for n, p in kept.weights.items()}, kept.batch, rate)
        for h in (-1e-5, 1e-5)
    )
    slope = sum(float((kept.gradients[n] * d).sum()) for n, d in direction.items() if kept.gradients[n] is not None)
    assert slope == pytest.approx((behind - before) / 2e-5, rel=1e-5)


@pytest.mark.parametrize(("build", "loss_of"), [(mlp, penalised), (Cosine, cosine)])
def test_a_criterion_that_looks_at_the_weights_sees_those_of_each_task_in_a_meta_step(data, build, loss_of):
    torch.manual_seed(0)
    model, kept = build(), Kept()
    strategy = learner(FTML, model, loss_of(model), plugins=[kept])
    strategy.train(stream(data).train_stream[0])
    compare(kept, build, loss_of)
    assert strategy.chosen["engine"] == "loop"


@pytest.mark.parametrize("cls", [FTML, FollowTheLeader, Reptile, TrainOnEverything])
def test_in_an_evaluation_it_sees_those_of_the_copy_that_predicts(data, cls):
    torch.manual_seed(0)
    model, streams = mlp(), stream(data)
    strategy = trained(learner(cls, model, penalised(model)), streams)
    found = strategy.eval([streams.test_stream[0]])["Loss_Exp/eval_phase/test_stream/Task000/Exp000"]
    model.eval()
    copy, (x, y) = strategy.model_for(streams.test_stream[0]), data[0]
    assert found == pytest.approx(float(penalised(copy)(copy(x), y)))


@pytest.mark.parametrize(("cls", "settings"), [(MAMLPlusPlus, {"multi_loss_steps": 9}), (FTML, {"memory": "adjoint"})])
def test_who_does_not_know_them_refuses_such_a_criterion(data, cls, settings):
    model = mlp()
    strategy = learner(cls, model, penalised(model), **settings)
    with pytest.raises(UsageError, match="the criterion looks at the model's weights, which"):
        strategy.train(stream(data).train_stream[0])


class WithSideOutput(nn.Module):
    """Keeps a penalty of its last call, as variational autoencoders are often written."""

    def __init__(self):
        super().__init__()
        self.net, self.penalty = mlp(), 0.0

    def forward(self, x):
        hidden = torch.tanh(self.net[0](x))
        self.penalty = hidden.square().mean()
        return self.net[2](hidden)


def side_output(model):
    return lambda outputs, y: F.cross_entropy(outputs, y) + 2 * model.penalty


@pytest.mark.parametrize("cls", [FTML, FollowTheLeader, Reptile])
def test_a_criterion_that_reads_the_last_call_is_refused_where_tasks_are_called_in_turn(data, cls):
    model, streams = WithSideOutput(), stream(data)
    strategy = learner(cls, model, side_output(model))

    def go_through():
        trained(strategy, streams).eval(streams.test_stream)

    with pytest.raises(UsageError, match="the criterion reads what WithSideOutput keeps of its last call"):
        go_through()


def test_whose_evaluation_adapts_nothing_takes_it(data):
    torch.manual_seed(0)
    model, streams = WithSideOutput(), stream(data)
    strategy = trained(learner(TrainOnEverything, model, side_output(model)), streams)
    found = strategy.eval([streams.test_stream[1]])["Loss_Exp/eval_phase/test_stream/Task001/Exp001"]
    model.eval()
    outputs = model(data[1][0])
    assert found == pytest.approx(float(F.cross_entropy(outputs, data[1][1]) + 2 * model.penalty))


class Switched(nn.Module):
    """A penalty on the weights of a model, by a factor that is a buffer."""

    def __init__(self, model, factor=0.0):
        super().__init__()
        vars(self)["model"] = model
        self.register_buffer("factor", torch.tensor(factor))

    def forward(self, outputs, y):
        return F.cross_entropy(outputs, y) + self.factor * sum(p.square().sum() for p in self.model.parameters())


class OfAClass(Switched):
    """That is there where a class is."""

    def forward(self, outputs, y):
        return super().forward(outputs, y) if (y == 2).any() else F.cross_entropy(outputs, y)


@pytest.mark.parametrize("kind", [Switched, OfAClass])
def test_a_penalty_that_only_later_data_or_settings_show_is_seen(data, kind):
    torch.manual_seed(0)
    data[0] = (data[0][0], data[0][1] % 2)  # no class 2
    model, kept, streams = mlp(), Kept(), stream(data)
    criterion = kind(model, 0.0 if kind is Switched else 0.5)
    strategy = learner(FTML, model, criterion, plugins=[kept], inner_lr=0.1)
    strategy.train(streams.train_stream[0])
    criterion.factor.fill_(0.5)
    strategy.train(streams.train_stream[1])
    compare(kept, mlp, lambda model: kind(model, 0.5), rate=0.1)


class Centred(nn.Module):
    """Learns where the outputs of a class lie."""

    def __init__(self):
        super().__init__()
        self.centre = nn.Parameter(torch.tensor([0.5, -0.3, 0.2]))

    def forward(self, outputs, y):
        loss, rows = F.cross_entropy(outputs, y), y == 2
        return loss + (outputs[rows] - self.centre).square().mean() if rows.any() else loss


def test_what_a_criterion_learns_of_a_class_that_comes_later_has_its_gradient(data):
    torch.manual_seed(0)
    data[0] = (data[0][0], data[0][1] % 2)
    model, criterion, kept = mlp(), Centred(), Kept()
    found = {}

    class Gradient(SupervisedPlugin):
        def before_update(self, strategy, **_):
            found.update(centre=criterion.centre.detach().clone(), gradient=criterion.centre.grad)

    strategy = learner(FTML, model, criterion, plugins=[kept, Gradient()], inner_lr=0.1)
    strategy.optimizer.add_param_group({"params": [criterion.centre]})
    for experience in stream(data).train_stream:
        strategy.train(experience)

    def at(i, h):
        moved = Centred()
        moved.centre.data.copy_(found["centre"])
        moved.centre.data[i] += h
        return meta_loss(mlp, lambda _: moved, kept.weights, kept.batch, rate=0.1)

    expected = [(at(i, 1e-5) - at(i, -1e-5)) / 2e-5 for i in range(3)]
    assert found["gradient"].tolist() == pytest.approx(expected, rel=1e-5)


def hardest(outputs, y):
    return F.cross_entropy(outputs, y, reduction="none").topk(len(y) // 2).values.mean()


def with_own_forward():
    criterion = nn.CrossEntropyLoss()
    criterion.forward = types.MethodType(lambda self, outputs, y: hardest(outputs, y), criterion)
    return criterion


def with_hook():
    criterion = nn.CrossEntropyLoss()
    criterion.register_forward_hook(lambda module, given, loss: hardest(*given))
    return criterion


@pytest.mark.parametrize("build", [with_own_forward, with_hook])
def test_a_loss_of_pytorchs_that_does_something_else_is_no_mean_over_points(data, build):
    torch.manual_seed(0)
    model, kept = mlp(), Kept()
    learner(FTML, model, build(), plugins=[kept]).train(stream(data).train_stream[0])
    compare(kept, mlp, lambda model: hardest)


def test_nor_is_its_metric(data):
    found, (x, y) = Performance(), data[0]
    for rows in (slice(10), slice(10, 30)):
        outputs = x[rows, :3]
        batch = types.SimpleNamespace(
            mb_output=outputs, mb_y=y[rows], loss=hardest(outputs, y[rows]), model=nn.Identity()
        )
        batch._criterion = with_hook()
        found.update(batch)
    found.close(batch)
    assert found.loss == pytest.approx(float(hardest(x[:, :3], y)))


def test_fine_tuning_follows_a_hook_of_a_loss_of_pytorchs(data):
    torch.manual_seed(0)
    model, streams = mlp(), stream(data)
    criterion = nn.CrossEntropyLoss()
    criterion.register_forward_hook(lambda module, given, loss: penalised(model)(*given))
    strategy = trained(learner(FollowTheLeader, model, criterion, inner_lr=0.1), streams)
    model.eval()
    expected = deepcopy(model)
    descend(expected, penalised(expected), *data[0], steps=5, rate=0.1)
    for p, q in zip(strategy.model_for(streams.test_stream[0]).parameters(), expected.parameters(), strict=True):
        assert torch.allclose(p, q)


def test_reptile_refuses_what_a_criterion_would_learn(data):
    criterion = Centred()
    with pytest.raises(
        UsageError, match="Reptile moves the model's parameters alone: parameter centre of the criterion"
    ):
        learner(Reptile, mlp(), criterion).train(stream(data).train_stream[0])


def test_looking_at_a_criterion_changes_nothing(data, monkeypatch):
    """Running statistics above all; of inputs that are large only some points are taken."""
    monkeypatch.setattr(dependences, "NUMBERS_SEEN", 40)
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 3))
    strategy = learner(FTML, model, lambda outputs, y: F.cross_entropy(outputs, y))
    model.train()
    before, state = deepcopy(model.state_dict()), torch.get_rng_state()
    seen = []
    model.register_forward_hook(lambda module, given, outputs: seen.append(len(outputs)))
    strategy.engine.see_criterion(*data[0])
    assert set(seen) == {10}
    assert torch.equal(state, torch.get_rng_state())
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])
