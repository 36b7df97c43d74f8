"""Models that compute otherwise than most: exact as by plain loops, or refused in one line."""

from copy import deepcopy
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from avalanche.benchmarks import benchmark_from_datasets
from avalanche.benchmarks.utils import AvalancheDataset, ConstantSequence, TaskLabels
from avalanche.core import SupervisedPlugin
from torch import nn
from torch.utils.data import Dataset

from ftml_bench.errors import UsageError
from ftml_bench.strategies import (
    ANIL,
    FOML,
    FTML,
    FTMLVS,
    ContinualMAML,
    FollowTheLeader,
    MAMLPlusPlus,
    MetaSGD,
    TrainOnEverything,
)
from tests.strategies.tensors import mlp, points, stream


@pytest.fixture
def data():
    return points()


def learner(cls, model, **settings):
    if issubclass(cls, FTML):
        sizes = {"meta_batch_size": 3, "support_size": 6, "query_size": 5, "inner_steps": 2, "update_steps": 5}
        settings = {**sizes, **settings}
    if cls in (TrainOnEverything, FollowTheLeader):
        settings = {"train_mb_size": 10, **settings}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    return cls(model=model, optimizer=optimizer, steps=2, eval_mb_size=64, evaluator=None, **settings)


def trained(strategy, streams):
    for experience in streams.train_stream:
        strategy.train(experience)
    strategy.model.eval()
    return strategy


def descend(model, loss, x, y, steps, rate):
    for _ in range(steps):
        gradients = torch.autograd.grad(loss(model(x), y), [*model.parameters()])
        with torch.no_grad():
            for p, gradient in zip(model.parameters(), gradients, strict=True):
                p -= rate * gradient
    return model


def distance(a, b):
    return float(sum((p - q).square().sum() for p, q in zip(a.parameters(), b.parameters(), strict=True)) ** 0.5)


@pytest.mark.parametrize("cls", [FTML, FollowTheLeader])
def test_every_step_of_an_update_procedure_under_autocast_is_of_its_own_weights(data, cls):
    torch.manual_seed(0)
    streams, model = stream(data), mlp()
    strategy = trained(learner(cls, model, inner_lr=1.0), streams)
    with torch.autocast("cpu", torch.bfloat16):
        copy = strategy.model_for(streams.test_stream[0])

    def loss(outputs, y):
        return F.cross_entropy(outputs, y)

    expected = deepcopy(model)
    for _ in range(5):
        with torch.autocast("cpu", torch.bfloat16):
            value = loss(expected(data[0][0]), data[0][1])
        gradients = torch.autograd.grad(value, [*expected.parameters()])
        with torch.no_grad():
            for p, gradient in zip(expected.parameters(), gradients, strict=True):
                p -= gradient
    assert distance(copy, expected) < 0.02 * distance(expected, model)


class Merging(nn.Linear):
    """A low-rank addition to a frozen layer, which is merged into its weight for evaluations (LoRA)."""

    def __init__(self, ins, outs):
        super().__init__(ins, outs)
        self.merged = False
        self.weight.requires_grad_(False)
        self.a, self.b = nn.Parameter(torch.randn(2, ins) / 2), nn.Parameter(torch.randn(outs, 2) / 3)

    def train(self, mode=True):
        super().train(mode)
        if self.merged == mode:
            self.weight.data += (-1 if mode else 1) * self.b @ self.a
            self.merged = not mode
        return self

    def forward(self, x):
        outputs = F.linear(x, self.weight, self.bias)
        return outputs if self.merged else outputs + x @ self.a.t() @ self.b.t()


class Averaged(nn.Module):
    """Evaluated with an average of its weights."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(4, 8), nn.Linear(8, 3)
        self.register_buffer("average", self.first.weight.detach().clone())

    def forward(self, x):
        weight = self.first.weight if self.training else self.average
        return self.last(torch.tanh(F.linear(x, weight, self.first.bias)))


@pytest.mark.parametrize("cls", [FTML, FollowTheLeader])
@pytest.mark.parametrize(
    ("build", "name"),
    [(lambda: nn.Sequential(Merging(4, 8), nn.Tanh(), nn.Linear(8, 3)), "0.a"), (Averaged, "first.weight")],
)
def test_what_only_training_mode_uses_cannot_be_adapted_in_an_evaluation(data, cls, build, name):
    torch.manual_seed(0)
    streams = stream(data)
    strategy = trained(learner(cls, build()), streams)
    with pytest.raises(UsageError, match=rf"uses parameter {name} in training mode alone"):
        strategy.model_for(streams.test_stream[0])


def test_what_neither_mode_uses_is_left_alone(data):
    model = mlp()
    model.spare = nn.Parameter(torch.ones(2))
    model.forward = lambda x: model[2](model[1](model[0](x)))
    strategy = learner(FollowTheLeader, model)
    trained(strategy, streams := stream(data))
    assert torch.equal(strategy.model_for(streams.test_stream[0]).spare, torch.ones(2))


def test_fine_tuning_refuses_a_mask_on_gradients(data):
    model = mlp()
    model[0].weight.register_hook(lambda gradient: 0 * gradient)
    strategy = trained(learner(FollowTheLeader, model), streams := stream(data))
    with pytest.raises(UsageError, match=r"hook on parameter 0.weight would act in training but on no inner step"):
        strategy.model_for(streams.test_stream[0])


class WritesIntoInputs(nn.Module):
    def __init__(self, outside=False):
        super().__init__()
        self.net, self.outside = mlp(), outside

    def forward(self, x):
        if self.outside:
            return self.net((x - 0.5) / 0.25)
        x.sub_(0.5).div_(0.25)
        return self.net(x)


@pytest.mark.parametrize("cls", [TrainOnEverything, FollowTheLeader])
def test_groups_of_a_model_that_writes_into_its_inputs(data, cls):
    found = []
    for outside in (False, True):
        torch.manual_seed(0)
        settings = {"batch_norm": "support"} if cls is TrainOnEverything else {}
        strategy = learner(cls, WritesIntoInputs(outside), group_size=5, **settings)
        found.append(trained(strategy, stream(data)).model)
    assert distance(*found) < 1e-5


class Tied(nn.Module):
    """Keeps a view of a weight when it is built."""

    def __init__(self, keeps=True):
        super().__init__()
        self.first, self.last = nn.Linear(4, 8), nn.Linear(8, 3)
        self.kept = self.first.weight.t() if keeps else None

    def forward(self, x):
        weight = self.first.weight.t() if self.kept is None else self.kept
        return self.last(torch.tanh(x @ weight + self.first.bias))


def test_a_view_of_a_weight_is_refused_by_who_adapts_and_followed_by_others(data):
    streams = stream(data)
    said = "Tied keeps kept, a view of parameter first.weight, which does not follow other weights"
    with pytest.raises(UsageError, match=said):
        learner(FTML, Tied()).train(streams.train_stream[0])
    strategy = trained(learner(FollowTheLeader, Tied()), streams)
    with pytest.raises(UsageError, match=said):
        strategy.model_for(streams.test_stream[0])
    found = []
    for keeps in (True, False):
        torch.manual_seed(0)
        strategy = trained(learner(TrainOnEverything, Tied(keeps)), streams)
        found.append(strategy.model_for(streams.test_stream[0])(data[0][0]))
    assert torch.allclose(*found)


class Cosine(nn.Module):
    """Its last layer is a parameter of itself."""

    def __init__(self):
        super().__init__()
        self.body, self.classes = (
            nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 6)),
            nn.Parameter(torch.randn(3, 6)),
        )

    def forward(self, x):
        return 5 * F.linear(F.normalize(self.body(x), dim=1), F.normalize(self.classes, dim=1))


class Language(nn.Module):
    """Its last layer is its first."""

    def __init__(self):
        super().__init__()
        self.words, self.inner = nn.Embedding(11, 6), nn.Linear(6, 6)
        self.outputs = nn.Linear(6, 11, bias=False)
        self.outputs.weight = self.words.weight

    def forward(self, x):
        return self.outputs(torch.tanh(self.inner(self.words(x).mean(1))))


def test_the_last_layer_is_the_one_that_outputs_come_from(data):
    words = [(torch.randint(11, (30, 5)), torch.randint(11, (30,)))]
    for model, streams, said in (
        (Cosine(), stream(data), "the last layer that is defined is body.2, but outputs hang on classes beside it"),
        (Language(), stream(words), "the last layer that is defined is inner, the last that is called outputs"),
    ):
        with pytest.raises(UsageError, match=said):
            learner(ANIL, model).train(streams.train_stream[0])


class Quantised(nn.Module):
    """With another derivative than it has, if its settings say so."""

    def __init__(self, settings):
        super().__init__()
        self.net, self.settings = mlp(), settings

    def forward(self, x):
        h = torch.tanh(self.net[0](x))
        return self.net[2](h + ((4 * h).round() / 4 - h).detach() if self.settings.quantised else h)


def test_a_switch_in_an_object_of_settings_is_noticed(data):
    torch.manual_seed(0)
    settings, streams = SimpleNamespace(quantised=False), stream(data)
    strategy = learner(FTML, Quantised(settings))
    strategy.train(streams.train_stream[0])
    settings.quantised = True
    with pytest.raises(UsageError, match="has another derivative than finite differences show"):
        strategy.train(streams.train_stream[1])


class LeavesOutNaN(SupervisedPlugin):
    def before_update(self, strategy, **_):
        if not all(p.grad.isfinite().all() for p in strategy.model.parameters()):
            strategy.optimizer.zero_grad()


def test_a_trial_of_nan_is_made_again(data):
    torch.manual_seed(0)
    data[0][0][:, 1] = torch.nan
    strategy = learner(FTML, Quantised(SimpleNamespace(quantised=True)), plugins=[LeavesOutNaN()], meta_batch_size=1)
    streams = stream(data)
    strategy.train(streams.train_stream[0])
    with pytest.raises(UsageError, match="has another derivative than finite differences show"):
        trained(strategy, streams)


class Days(Dataset):
    """Python's floats, too long for single precision."""

    def __len__(self):
        return 20

    def __getitem__(self, i):
        return torch.full((4,), float(i)), 1.7e9 + i


@pytest.mark.parametrize("cls", [FTML, TrainOnEverything])
def test_floats_are_doubles_as_avalanches_loader_makes_them(cls):
    one = AvalancheDataset([Days()], data_attributes=[TaskLabels(ConstantSequence(0, 20))])
    streams = benchmark_from_datasets(train=[one], test=[one])
    model = nn.Sequential(nn.Linear(4, 1), nn.Flatten(0))
    strategy = learner(cls, model, criterion=nn.MSELoss())
    strategy.train(streams.train_stream[0])
    (_, y), _ = strategy.buffer.everything([0])
    assert sorted(y.tolist()) == [1.7e9 + i for i in range(20)]


@pytest.mark.parametrize("cls", [MetaSGD, MAMLPlusPlus, FTMLVS, ContinualMAML, FOML])
def test_who_keeps_something_for_each_parameter_refuses_other_ones(data, cls):
    model, streams = mlp(), stream(data)
    model[0].requires_grad_(False)
    strategy = learner(cls, model)
    strategy.train(streams.train_stream[0])
    model[0].requires_grad_(True)
    with pytest.raises(UsageError, match=rf"parameter 0.bias has been unfrozen since {cls.__name__} was built"):
        strategy.train(streams.train_stream[1])


def test_a_batch_norm_of_one_value_is_refused_in_training(data):
    """As PyTorch's own layer refuses it; below it no gradient is left, and running variances go to zero."""
    for cls, settings in ((TrainOnEverything, {"train_mb_size": 1}), (FTML, {"support_size": 1})):
        model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 3))
        with pytest.raises(UsageError, match="a batch norm of one value a channel"):
            learner(cls, model, **settings).train(stream(data).train_stream[0])
