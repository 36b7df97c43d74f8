"""Copies of models that keep what they have computed: in attributes, by hooks, and in the layers of other libraries."""

import copy
from functools import partial

import pytest
import torch
from avalanche.benchmarks import nc_benchmark
from avalanche.evaluation.metrics import accuracy_metrics, loss_metrics
from avalanche.training import Naive
from avalanche.training.plugins import EvaluationPlugin
from torch import nn
from torch.func import functional_call, vmap
from torch.nn.utils import prune
from torch.utils.data import TensorDataset

from ftml_bench.models.copies import _generator_with, copy_of
from ftml_bench.strategies import FTML, FollowTheLeader, FromScratch, TrainOnEverything
from ftml_bench.strategies.avalanche.stock import on_arrivals


class Plain(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.hidden, self.out = nn.Linear(5, 4), nn.Linear(4, 6)

    def forward(self, x):
        return self.out(self.hidden(x).tanh())


class Keeping(Plain):
    """Keeps its features in an attribute, and parts of them in a dict, as a view, and by a hook that is a method."""

    def __init__(self):
        super().__init__()
        self.features, self.kept, self.by_hook = None, {}, []
        self.hidden.register_forward_hook(self.note)

    def note(self, module, inputs, output):
        self.by_hook = [output]

    def forward(self, x):
        self.features = self.hidden(x).tanh()
        self.kept = {"all": (self.features, [self.features[0]])}
        return self.out(self.features)


def test_what_autograd_has_computed_is_copied_as_values():
    model, x = Keeping(), torch.randn(3, 5)
    model(x)
    with pytest.raises(RuntimeError, match="deepcopy protocol"):
        copy.deepcopy(model)
    twin = copy_of(model)
    assert torch.equal(twin.features, model.features)
    assert twin.features.data_ptr() != model.features.data_ptr()
    assert not twin.features.requires_grad
    assert twin.kept["all"][0] is twin.features  # one tensor stays one
    assert torch.equal(twin.kept["all"][1][0], model.features[0])
    assert [p.requires_grad for p in twin.parameters()] == [True] * 4
    model.features.sum().backward()  # the model's own graph is as it was
    before = model.by_hook[0]
    twin(2 * x)
    assert model.by_hook[0] is before  # a method that is a hook is the copy's own
    assert torch.equal(twin.by_hook[0], model.hidden(2 * x))


@pytest.mark.parametrize("wrap", [nn.utils.weight_norm, nn.utils.spectral_norm, partial(prune.identity, name="weight")])
def test_layers_that_compute_their_weight_are_copied(wrap):
    model, x = nn.Sequential(wrap(nn.Linear(5, 4))).eval(), torch.randn(3, 5)
    expected = model(x)
    assert torch.equal(copy_of(model)(x), expected)


def test_a_generator_is_copied_with_its_state():
    model = Plain()
    model.rng = torch.Generator().manual_seed(3)
    torch.rand(2, generator=model.rng)
    twin, restored = copy_of(model), _generator_with(model.rng.get_state(), model.rng.device)
    expected = torch.rand(4, generator=model.rng)
    assert torch.equal(torch.rand(4, generator=twin.rng), expected)
    assert torch.equal(torch.rand(4, generator=restored), expected)


def test_what_vmap_has_left_does_not_stop_a_copy():
    model, x = Keeping(), torch.randn(2, 3, 5)
    parameters = {n: p.detach().expand(2, *p.shape) for n, p in model.named_parameters()}
    vmap(lambda own, x: functional_call(model, own, (x,)))(parameters, x)
    twin = copy_of(model)
    assert torch.equal(twin(x[0]), Plain()(x[0]))


@pytest.mark.parametrize(
    "build",
    [FTML, TrainOnEverything, FromScratch, FollowTheLeader, lambda **settings: on_arrivals(Naive)(**settings)],
    ids=["FTML", "TrainOnEverything", "FromScratch", "FollowTheLeader", "on_arrivals"],
)
def test_every_learner_treats_a_model_that_keeps_its_features_as_any_other(build):
    y = torch.arange(36) % 6
    points = TensorDataset(torch.randn(36, 5, generator=torch.Generator().manual_seed(0)), y)
    points.targets = y.tolist()
    stream = nc_benchmark(points, points, n_experiences=3, task_labels=True, seed=0)
    results = []
    for kind in (Plain, Keeping):
        model = kind()
        strategy = build(
            model=model,
            optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
            train_mb_size=4,
            eval_mb_size=12,
            steps=3,
            evaluator=EvaluationPlugin(accuracy_metrics(experience=True), loss_metrics(experience=True)),
        )
        for experience in stream.train_stream:
            strategy.train(experience, eval_streams=[])
            model(torch.randn(2, 5))  # whoever uses it in between
            results.append((kind, strategy.eval(stream.test_stream)))
    assert all(a[1].keys() == b[1].keys() for a, b in zip(results[:3], results[3:], strict=True))
    for (_, plain), (_, keeping) in zip(results[:3], results[3:], strict=True):
        assert keeping == pytest.approx(plain, abs=1e-5)
