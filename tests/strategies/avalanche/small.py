"""Points, models and FTML, small enough to follow a plugin's arithmetic by hand."""

import pytest
import torch
from avalanche.core import SupervisedPlugin
from avalanche.models import FeatureExtractorModel, SimpleMLP
from avalanche.training import Naive
from avalanche.training.plugins import EvaluationPlugin
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import TensorDataset

from ftml_bench.strategies import FTML, FollowTheLeader, FromScratch, TrainOnEverything

LEARNERS = [FTML, FollowTheLeader, FromScratch, TrainOnEverything]


def points(n, classes=6, seed=0, shift=0):
    rng = torch.Generator().manual_seed(seed)
    y = torch.arange(n) % classes
    dataset = TensorDataset(torch.randn(n, 5, generator=rng) + torch.eye(6)[y][:, :5], (y + shift) % classes)
    dataset.targets = dataset.tensors[1].tolist()
    return dataset


def model():
    torch.manual_seed(0)
    return nn.Linear(5, 6)


def ftml(*plugins, net=None, lr=0.3, **changes):
    net = net or model()
    settings = {"meta_batch_size": 2, "support_size": 3, "query_size": 3, "inner_steps": 1, "steps": 4, **changes}
    return FTML(
        model=net,
        optimizer=torch.optim.SGD(net.parameters(), lr=lr),
        train_mb_size=4,
        eval_mb_size=30,
        plugins=list(plugins),
        **{"evaluator": EvaluationPlugin(), **settings},
    )


def values(net):
    return [p.detach().clone() for p in net.parameters()]


def stacked(dataset):
    x, y = zip(*[dataset[i][:2] for i in range(len(dataset))], strict=True)
    return torch.stack(x), torch.tensor(y)


class Around(SupervisedPlugin):
    """Looks at the loss and the gradients right before and right after the plugins between its two halves."""

    def __init__(self):
        super().__init__()
        self.before, self.after = Half(), Half()

    def of(self, *plugins):
        return [self.before, *plugins, self.after]


class Half(SupervisedPlugin):
    def __init__(self):
        super().__init__()
        self.losses, self.meta_gradients, self.gradients, self.steps, self.modes = [], [], [], [], []

    def before_training_iteration(self, strategy, **kwargs):
        self.start = values(strategy.model)

    def before_backward(self, strategy, **kwargs):
        self.modes.append(strategy.model.training)
        self.losses.append(strategy.loss.item())
        # of the loss so far: in the first half without the plugin's share
        of = list(strategy.model.parameters())
        self.meta_gradients.append(torch.autograd.grad(strategy.loss, of, retain_graph=True))

    def after_backward(self, strategy, **kwargs):
        self.gradients.append([p.grad.clone() for p in strategy.model.parameters()])
        self.mbatch = strategy.mbatch

    def after_update(self, strategy, **kwargs):
        self.steps.append((self.start, self.gradients[-1], values(strategy.model)))


def quadratic(weights, anchors, parameters):
    """Σ w (θ - θ*)², and its gradient."""
    penalty = sum((w * (p - a) ** 2).sum() for w, a, p in zip(weights, anchors, parameters, strict=True))
    return penalty, [2 * w * (p - a) for w, a, p in zip(weights, anchors, parameters, strict=True)]


def assert_penalty(around, index, expected, gradient, scale):
    """The plugin added `scale * expected` to the loss of one iteration, and its gradient to the meta-gradient."""
    added = around.after.losses[index] - around.before.losses[index]
    assert added > 1e-4
    assert added == pytest.approx(scale * float(expected), rel=1e-3)
    for own, meta, g in zip(around.after.gradients[index], around.before.meta_gradients[index], gradient, strict=True):
        assert torch.allclose(own - meta, scale * g, atol=1e-5, rtol=1e-3)


def batches(experience, size=4):
    x, y = stacked(experience.dataset)
    return list(zip(x.split(size), y.split(size), strict=True))


def fisher(net, data, loss=cross_entropy, power=2):
    """Mean over minibatches of |gradient|^power."""
    total = [torch.zeros_like(p) for p in net.parameters()]
    for x, y in data:
        gradients = torch.autograd.grad(loss(net(x), y), list(net.parameters()))
        total = [t + g.abs() ** power for t, g in zip(total, gradients, strict=True)]
    return [t / len(data) for t in total]


def train(strategy, stream, look=lambda: None):
    """Train on each experience; what `look` returns after each."""
    seen = []
    for experience in stream.train_stream:
        strategy.train(experience, eval_streams=[])
        seen.append(look())
    return seen


def feature_model():
    torch.manual_seed(0)
    return FeatureExtractorModel(nn.Sequential(nn.Linear(5, 4), nn.Tanh()), nn.Linear(4, 6))


def flat(tensors):
    return torch.cat([t.flatten() for t in tensors])


def long_gradients():
    """Two gradients, one against the other, as long as a meta-gradient gets before training diverges."""
    rng = torch.Generator().manual_seed(0)
    return 1e4 * torch.randn(4, 30, generator=rng), 1e4 * torch.randn(30, generator=rng)


def mlp():
    return SimpleMLP(num_classes=6, input_size=5, hidden_size=4)


def naive(plugin, net=None, **settings):
    net = net or model()
    return Naive(
        model=net,
        optimizer=torch.optim.SGD(net.parameters(), lr=0.3),
        train_mb_size=4,
        plugins=[plugin],
        evaluator=None,
        **settings,
    )
