"""Whose statistics normalise, rule by rule, against a network written out with F.batch_norm."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from avalanche.core import SupervisedPlugin
from avalanche.training.plugins import EvaluationPlugin
from torch import nn

from ftml_bench.benchmarks import Sinusoids, arrivals
from ftml_bench.errors import UsageError
from ftml_bench.models import SinusoidMLP
from ftml_bench.strategies import FTML, FollowTheLeader, FromScratch, TrainOnEverything

MOMENTUM = 0.1  # PyTorch's
LR, UPDATES = 0.05, 3


def forward(parameters, x, statistics=None):
    """SinusoidMLP(norm=True) by hand; `statistics`: {norm: (mean, biased variance)}, None: those of x."""
    seen = {}
    for i in ("1", "2"):
        x = F.linear(x, parameters[f"linear{i}.weight"], parameters[f"linear{i}.bias"])
        seen[i] = (x.mean(0), x.var(0, correction=0))
        given = (None, None) if statistics is None else statistics[i]
        affine = parameters[f"norm{i}.weight"], parameters[f"norm{i}.bias"]
        x = F.batch_norm(x, *given, *affine, training=statistics is None, eps=1e-5).relu()
    return F.linear(x, parameters["head.weight"], parameters["head.bias"]), seen


def adapted(parameters, x, y):
    for _ in range(UPDATES):
        loss = F.mse_loss(forward(parameters, x)[0], y)
        gradients = torch.autograd.grad(loss, list(parameters.values()))
        parameters = {n: (p - LR * g) for (n, p), g in zip(parameters.items(), gradients, strict=True)}
    return {n: p.detach() for n, p in parameters.items()}


class Minibatch(SupervisedPlugin):
    """Keeps the first minibatch."""

    def before_forward(self, strategy, *args, **kwargs):
        if not hasattr(self, "kept"):
            self.kept = [part.clone() for part in strategy.mbatch]


@pytest.fixture
def stream(double_precision):
    return Sinusoids(rounds=2, images_per_round=12, held_out_per_round=9)


def trained(cls, stream, rule, *, rounds=1, **settings):
    torch.manual_seed(0)
    model = SinusoidMLP(hidden=6, norm=True)
    first = {n: p.detach().clone() for n, p in model.named_parameters()}
    minibatch = Minibatch()
    strategy = cls(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
        criterion=nn.MSELoss(),
        batch_norm=rule,
        inner_lr=LR,
        update_steps=UPDATES,
        steps=1,
        eval_mb_size=9,
        plugins=[minibatch],
        evaluator=EvaluationPlugin(),
        **settings,
    )
    for round in stream.train_stream[:rounds]:
        strategy.train(next(arrivals(round, 12)), eval_streams=[])
    strategy.model.eval()
    return strategy, first, minibatch.kept


META = {"meta_batch_size": 3, "support_size": 4, "query_size": 5, "inner_steps": 2}


def predictions(strategy, stream, t):
    """Of the held-out inputs: the learner's, as its evaluation loop gives them."""
    outputs = []

    class Outputs(SupervisedPlugin):
        def after_eval_forward(self, strategy, *args, **kwargs):
            outputs.append(strategy.mb_output.detach().clone())

    strategy.plugins.append(Outputs())
    strategy.eval([stream.test_stream[t]])
    return torch.cat(outputs)


def data(stream, t):
    return [part.double() for part in stream.train_stream[t].stacked.take(torch.arange(12))], [
        part.double() for part in stream.test_stream[t].stacked.take(torch.arange(9))
    ]


@pytest.mark.parametrize("engine", ["auto", "batched", "loop"])
@pytest.mark.parametrize("rule", ["support", "transductive", "own_query", "running"])
def test_ftml_predicts_by_the_rules_statistics(stream, rule, engine):
    strategy, first, (_, _, support_x, *_) = trained(FTML, stream, rule, engine=engine, **META)
    (x, y), (test_x, _) = data(stream, 0)
    own = adapted({n: p.detach().clone().requires_grad_() for n, p in strategy.model.named_parameters()}, x, y)
    if rule == "transductive":
        statistics = None
    elif rule == "running":  # of the supports of the one meta-step, at the parameters that it began with
        seen = [forward(first, task)[1] for task in support_x]
        n = support_x.shape[1]
        statistics = {}
        for i in ("1", "2"):
            mean, var = (torch.stack(part).mean(0) for part in zip(*(task[i] for task in seen), strict=True))
            statistics[i] = (MOMENTUM * mean, (1 - MOMENTUM) + MOMENTUM * var * n / (n - 1))
    else:
        statistics = forward(own, x)[1]
    torch.testing.assert_close(predictions(strategy, stream, 0), forward(own, test_x, statistics)[0])


@pytest.mark.parametrize("engine", ["auto", "batched", "loop"])
def test_the_query_of_a_meta_step_is_normalised_by_itself_but_for_one_rule(stream, engine):
    weights = {}
    for rule in ("support", "transductive", "own_query", "running"):
        strategy, first, (query_x, query_y, support_x, support_y, _) = trained(
            FTML, stream, rule, engine=engine, **META
        )
        weights[rule] = nn.utils.parameters_to_vector(strategy.model.parameters()).detach()
    start = {n: p.clone().requires_grad_() for n, p in first.items()}
    losses = []
    for task in range(3):  # the meta-step, written out
        own = start
        for _ in range(META["inner_steps"]):
            loss = F.mse_loss(forward(own, support_x[task])[0], support_y[task])
            gradients = torch.autograd.grad(loss, list(own.values()), create_graph=True)
            own = {n: p - LR * g for (n, p), g in zip(own.items(), gradients, strict=True)}
        x, y = query_x.view(3, 5, 1)[task], query_y.view(3, 5, 1)[task]
        losses.append(F.mse_loss(forward(own, x)[0], y))
    gradients = torch.autograd.grad(torch.stack(losses).mean(), list(start.values()))
    by_hand = torch.cat([(p - 0.1 * g).flatten() for p, g in zip(start.values(), gradients, strict=True)]).detach()
    for rule in ("transductive", "own_query", "running"):
        torch.testing.assert_close(weights[rule], by_hand)
    assert not torch.allclose(weights["support"], by_hand)


def test_follow_the_leader_under_running_is_trained_on_mixed_minibatches(stream):
    strategy, first, (x, *_) = trained(FollowTheLeader, stream, "running", rounds=2, train_mb_size=10)
    (own_x, own_y), (test_x, _) = data(stream, 1)
    own = adapted({n: p.detach().clone().requires_grad_() for n, p in strategy.model.named_parameters()}, own_x, own_y)
    seen = forward(first, x)[1]  # the whole minibatch, ungrouped
    statistics = {
        i: (MOMENTUM * mean, (1 - MOMENTUM) + MOMENTUM * var * len(x) / (len(x) - 1)) for i, (mean, var) in seen.items()
    }
    torch.testing.assert_close(predictions(strategy, stream, 1), forward(own, test_x, statistics)[0])


def untracked():
    """A learner's model whose norm keeps no running statistics, and the same with a norm that does."""
    models = []
    for tracks in (False, True):
        torch.manual_seed(0)
        norm = nn.BatchNorm1d(6, track_running_stats=tracks)
        models.append(nn.Sequential(nn.Linear(1, 6), norm, nn.Tanh(), nn.Linear(6, 1)))
    return models


@pytest.mark.parametrize(
    ("cls", "rule"),
    [
        *((FTML, rule) for rule in ("support", "own_query", "running")),
        *((FollowTheLeader, rule) for rule in ("support", "running")),
        (FromScratch, "support"),
        *((TrainOnEverything, rule) for rule in ("support", "running")),
    ],
)
def test_a_norm_without_running_statistics_follows_the_rule(cls, rule, stream):
    found = []
    for size in (9, 2, 1):
        for model in untracked():
            strategy = cls(
                model=model,
                optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
                criterion=nn.MSELoss(),
                batch_norm=rule,
                steps=2,
                train_mb_size=6,
                eval_mb_size=size,
                evaluator=EvaluationPlugin(),
                **(META if cls is FTML else {}),
            )
            strategy.train(stream.train_stream[0], eval_streams=[])
            # of a task that has arrived, and of one that has not
            found.append(torch.cat([predictions(strategy, stream, t).flatten()[:9] for t in (0, 1)]))
    for other in found[1:]:
        torch.testing.assert_close(other, found[1])


def test_a_norm_without_running_statistics_stays_so_under_transductive():
    model, _ = untracked()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    FTML(model=model, optimizer=optimizer, batch_norm="transductive", evaluator=None)
    assert model[1].running_mean is None


class Activated(nn.BatchNorm1d):
    def forward(self, x):
        return super().forward(x).sin()


BY_TASK = [
    (cls, rule) for cls in (TrainOnEverything, FollowTheLeader, FromScratch) for rule in ("support", "transductive")
]


@pytest.mark.parametrize(("cls", "rule"), BY_TASK)
@pytest.mark.parametrize("norm", [Activated, nn.SyncBatchNorm])
def test_a_norm_of_its_own_kind_which_would_mix_groups_is_refused(norm, cls, rule):
    model = nn.Sequential(nn.Linear(1, 6), norm(6), nn.Linear(6, 1))
    message = rf"{norm.__name__} \(1\) is a batch norm of its own kind.*expected nn.BatchNorm1d to 3d"
    with pytest.raises(UsageError, match=message):
        cls(
            model=model,
            optimizer=torch.optim.SGD(model.parameters(), 0.1),
            batch_norm=rule,
            evaluator=EvaluationPlugin(),
        )


@pytest.mark.parametrize("cls", [TrainOnEverything, FollowTheLeader])
def test_by_running_statistics_a_norm_of_its_own_kind_does_what_it_does(cls, stream):
    """Against a stock layer and the same function behind it."""
    found = []
    for layers in ([Activated(6)], [nn.BatchNorm1d(6), Sine()]):
        torch.manual_seed(0)
        first, last = nn.Linear(1, 6), nn.Linear(6, 1)
        model = nn.Sequential(first, *layers, last)
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        settings = {"criterion": nn.MSELoss(), "batch_norm": "running", "steps": 3, "train_mb_size": 6}
        strategy = cls(model=model, optimizer=optimizer, evaluator=EvaluationPlugin(), **settings)
        for round in stream.train_stream:
            strategy.train(round, eval_streams=[])
        copy = strategy.model_for(stream.test_stream[1]).eval()
        found.append(copy(torch.linspace(-1, 1, 5)[:, None]).detach())
    assert torch.allclose(*found, rtol=1e-12)


class Sine(nn.Module):
    def forward(self, x):
        return x.sin()
