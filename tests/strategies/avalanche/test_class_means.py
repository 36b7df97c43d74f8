"""Classifiers by class means (NCM, FeCAM) with every learner, against the means by hand."""

import warnings

import pytest
import torch
from avalanche.evaluation.metrics import accuracy_metrics
from avalanche.models import FeCAMClassifier, NCMClassifier
from avalanche.training import Naive
from avalanche.training.plugins import (
    CurrentDataFeCAMUpdate,
    CurrentDataNCMUpdate,
    EvaluationPlugin,
    FeCAMOracle,
    MemoryNCMUpdate,
    NCMOracle,
)
from torch import nn

from ftml_bench.strategies import FTML, FollowTheLeader
from ftml_bench.strategies.avalanche.stock import on_arrivals
from tests.strategies.avalanche.small import LEARNERS, stacked


class ByMeans(nn.Module):
    """Trained with a linear head, evaluated with a classifier by class means, as Avalanche's examples have it."""

    def __init__(self, classifier):
        super().__init__()
        torch.manual_seed(0)
        self.feature_extractor = nn.Sequential(nn.Linear(5, 4), nn.ReLU())  # FeCAM takes roots of features
        self.train_classifier, self.eval_classifier = nn.Linear(4, 6), classifier

    def forward(self, x):
        self.features = self.feature_extractor(x)
        return (self.train_classifier if self.training else self.eval_classifier)(self.features)


@pytest.mark.parametrize("plugin", [CurrentDataNCMUpdate, lambda: MemoryNCMUpdate(30), NCMOracle])
@pytest.mark.parametrize(
    "build", [*LEARNERS, lambda **settings: on_arrivals(Naive)(**settings)], ids=lambda b: getattr(b, "__name__", "")
)
def test_classifiers_by_class_means_predict_with_every_learner(build, plugin, stream):
    net = ByMeans(NCMClassifier(normalize=False))
    strategy = build(
        model=net,
        optimizer=torch.optim.SGD(net.parameters(), lr=0.1),
        train_mb_size=4,
        eval_mb_size=30,
        steps=3,
        evaluator=EvaluationPlugin(accuracy_metrics(stream=True)),
        plugins=[plugin()],
    )
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for experience in stream.train_stream:
            strategy.train(experience, eval_streams=[])
            results = strategy.eval(stream.test_stream)
    said = [str(w.message).split(":")[0] for w in caught if "evaluated as it is" in str(w.message)]
    assert said == ([type(strategy).__name__] if isinstance(strategy, FTML | FollowTheLeader) else [])
    x, y = (torch.cat(part) for part in zip(*[stacked(e.dataset) for e in stream.test_stream], strict=True))
    with torch.no_grad():
        features = net.feature_extractor(x)
    distances = torch.cdist(features, net.eval_classifier.class_means)
    assert list(results.values()) == [pytest.approx(float((distances.argmin(1) == y).float().mean()))]
    if plugin is NCMOracle:  # all data, by the model as it is now
        own_x, own_y = (torch.cat(p) for p in zip(*[stacked(e.dataset) for e in stream.train_stream], strict=True))
        with torch.no_grad():
            means = torch.stack([net.feature_extractor(own_x[own_y == c]).mean(0) for c in range(6)])
        assert torch.allclose(net.eval_classifier.class_means, means, atol=1e-5)


@pytest.mark.parametrize("plugin", [CurrentDataFeCAMUpdate, FeCAMOracle])
@pytest.mark.parametrize("cls", LEARNERS, ids=lambda cls: cls.__name__)
@pytest.mark.filterwarnings("ignore:.*evaluated as it is")
def test_fecam_predicts_with_every_learner(cls, plugin, stream):
    net = ByMeans(FeCAMClassifier())
    strategy = cls(
        model=net,
        optimizer=torch.optim.SGD(net.parameters(), lr=0.1),
        train_mb_size=4,
        eval_mb_size=30,
        steps=3,
        evaluator=EvaluationPlugin(accuracy_metrics(stream=True)),
        plugins=[plugin()],
    )
    for experience in stream.train_stream:
        strategy.train(experience, eval_streams=[])
        results = strategy.eval(stream.test_stream)
    x, y = (torch.cat(part) for part in zip(*[stacked(e.dataset) for e in stream.test_stream], strict=True))
    with torch.no_grad():
        right = net.eval()(x).argmax(1) == y
    assert list(results.values()) == [pytest.approx(float(right.float().mean()))]
