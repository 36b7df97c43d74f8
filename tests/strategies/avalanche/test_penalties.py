"""EWC, MAS, SI and RWalk with FTML: each one's penalty in the meta-update, by hand."""

import copy

import pytest
import torch
from avalanche.benchmarks import nc_benchmark
from avalanche.core import SupervisedPlugin
from avalanche.models import MTSimpleMLP
from avalanche.training import Naive
from avalanche.training.plugins import EvaluationPlugin, EWCPlugin, MASPlugin, RWalkPlugin, SynapticIntelligencePlugin
from torch.nn.functional import cross_entropy

from ftml_bench.benchmarks import arrivals
from ftml_bench.strategies import FTML, FromScratch, TrainOnEverything
from ftml_bench.strategies.avalanche.stock import on_arrivals
from tests.strategies.avalanche.small import (
    Around,
    assert_penalty,
    batches,
    fisher,
    ftml,
    points,
    quadratic,
    train,
    values,
)


@pytest.mark.parametrize("mode", ["separate", "online"])
def test_ewc_pulls_the_meta_parameters_back_by_the_fisher_information(mode, stream):
    around = Around()
    settings = {"separate": {}, "online": {"mode": "online", "decay_factor": 0.5}}[mode]
    strategy = ftml(*around.of(EWCPlugin(ewc_lambda=3.0, **settings)))
    kept = train(strategy, stream, lambda: copy.deepcopy(strategy.model))
    fishers = [fisher(net, batches(e)) for net, e in zip(kept[:2], stream.train_stream[:2], strict=True)]
    anchors = [values(net) for net in kept[:2]]
    last = around.before.steps[-1][0]  # the meta-parameters before the last step
    if mode == "separate":
        parts = [quadratic(f, a, last) for f, a in zip(fishers, anchors, strict=True)]
        expected = sum(penalty for penalty, _ in parts)
        gradient = [g0 + g1 for g0, g1 in zip(parts[0][1], parts[1][1], strict=True)]
    else:
        summed = [0.5 * f0 + f1 for f0, f1 in zip(*fishers, strict=True)]
        expected, gradient = quadratic(summed, anchors[1], last)
    assert_penalty(around, -1, expected, gradient, 3.0)


def test_mas_pulls_the_meta_parameters_back_by_the_sensitivity_of_the_outputs(stream):
    around = Around()
    strategy = ftml(*around.of(MASPlugin(lambda_reg=0.7, alpha=0.4)), lr=0.05)
    kept = train(strategy, stream, lambda: copy.deepcopy(strategy.model))

    def norm(outputs, _):
        return outputs.pow(2).sum(1).mean()

    first, second = (
        fisher(net, batches(e), norm, power=1) for net, e in zip(kept[:2], stream.train_stream[:2], strict=True)
    )
    weights = [0.4 * a + 0.6 * b for a, b in zip(first, second, strict=True)]
    expected, gradient = quadratic(weights, values(kept[1]), around.before.steps[-1][0])
    assert_penalty(around, -1, expected, gradient, 0.7)


def test_si_pulls_the_meta_parameters_back_by_the_path_that_they_took(stream):
    around = Around()
    strategy = ftml(*around.of(SynapticIntelligencePlugin(si_lambda=2000.0)))
    train(strategy, stream)
    importance = [torch.zeros_like(p) for p in strategy.model.parameters()]
    for exp in (0, 1):
        path = around.after.steps[4 * exp : 4 * exp + 4]
        moved = [e - s for s, e in zip(path[0][0], path[-1][2], strict=True)]
        for i, m in enumerate(moved):
            work = sum(gradient[i] * (new[i] - old[i]) for old, gradient, new in path)
            importance[i] = importance[i] - work / (m**2 + 1e-7)
    weights = [w.clamp(max=0.001) for w in importance]
    anchors = around.after.steps[7][2]
    expected, gradient = quadratic(weights, anchors, around.before.steps[-1][0])
    assert_penalty(around, -1, expected, gradient, 1000.0)


@pytest.mark.parametrize("delta_t", [2, 10])
def test_rwalk_pulls_the_meta_parameters_back_by_importance_and_score(delta_t, stream):
    plain = []

    class Plain(SupervisedPlugin):
        """The gradients of the unadapted model on the minibatch, which RWalk takes its importances from."""

        def before_training_iteration(self, strategy, **kwargs):
            loss = cross_entropy(strategy.model(strategy.mb_x), strategy.mb_y)
            plain.append(torch.autograd.grad(loss, list(strategy.model.parameters())))

    around = Around()
    strategy = ftml(Plain(), *around.of(RWalkPlugin(ewc_lambda=0.5, ewc_alpha=0.9, delta_t=delta_t)))
    for experience in stream.train_stream[:2]:
        strategy.train(experience, eval_streams=[])
    eps = torch.finfo(torch.float).eps
    zeros = [torch.zeros_like(p) for p in strategy.model.parameters()]
    importance, loss, score, mark = None, zeros, zeros, around.before.steps[0][0]
    for t in range(4):
        old, _, new = around.before.steps[t]
        square = [g**2 for g in plain[t]]
        importance = square if t == 0 else [0.9 * s + 0.1 * i for s, i in zip(square, importance, strict=True)]
        loss = [v - g * (n - o) for v, g, n, o in zip(loss, plain[t], new, old, strict=True)]
        if (t + 1) % delta_t == 0:
            score = [
                s + v / (0.5 * i * (n - m) ** 2 + eps)
                for s, v, i, n, m in zip(score, loss, importance, new, mark, strict=True)
            ]
            loss, mark = zeros, new
    top_importance = max(i.max() for i in importance)
    top_score = max(s.max() for s in score)
    weights = [
        i / top_importance + (s.relu() / top_score if top_score > 0 else 0)
        for i, s in zip(importance, score, strict=True)
    ]
    expected, gradient = quadratic(weights, around.before.steps[3][2], around.before.steps[-1][0])
    assert_penalty(around, -1, expected, gradient, 0.5)
    assert all(around.after.modes)
    assert all(p.isfinite().all() for p in strategy.model.parameters())


class Heads:
    """What RWalk computes, by hand, for a model whose heads appear with their tasks: parameters by name."""

    def __init__(self, alpha, delta_t):
        self.alpha, self.delta_t, self.steps = alpha, delta_t, 0
        self.importance, self.scores, self.penalties, self.anchors = {}, {}, {}, {}

    def begin(self, net):
        self.marks = {n: p.detach().clone() for n, p in net.named_parameters()}
        self.losses = {n: torch.zeros_like(p) for n, p in self.marks.items()}
        self.new_scores = {n: torch.zeros_like(p) for n, p in self.marks.items()}

    def step(self, gradients, old, new):
        if self.steps == 0:
            self.importance = {n: g**2 for n, g in gradients.items()}
        else:
            for n, g in gradients.items():
                before = self.importance.get(n)
                self.importance[n] = g**2 if before is None else self.alpha * g**2 + (1 - self.alpha) * before
            for n in self.importance.keys() - gradients.keys():  # its gradient is 0
                self.importance[n] = (1 - self.alpha) * self.importance[n]
        for n, g in gradients.items():
            self.losses[n] = self.losses[n] - g * (new[n] - old[n])
        self.steps += 1
        if self.steps % self.delta_t == 0:
            for n, i in self.importance.items():
                moved = (new[n] - self.marks[n]) ** 2
                self.new_scores[n] = self.new_scores[n] + self.losses[n] / (
                    0.5 * i * moved + torch.finfo(torch.float).eps
                )
            self.marks, self.losses = dict(new), {n: torch.zeros_like(p) for n, p in new.items()}

    def end(self, net, first):
        half = 1.0 if first else 0.5
        self.scores = {n: half * (self.scores.get(n, 0) + s) for n, s in self.new_scores.items()}
        top_score = max(s.max() for s in self.scores.values())
        top = max(i.max() for i in self.importance.values())
        self.penalties = {
            n: i / top + (self.scores[n].relu() / top_score if top_score > 0 else 0) for n, i in self.importance.items()
        }
        self.anchors = {n: p.detach().clone() for n, p in net.named_parameters()}

    def penalty(self, values):
        return sum((w * (values[n] - self.anchors[n]) ** 2).sum() for n, w in self.penalties.items())


class ByName(SupervisedPlugin):
    """Follows `Heads` through the training, beside RWalk."""

    def __init__(self, heads):
        super().__init__()
        self.heads, self.expected = heads, []

    def before_training_exp(self, strategy, **kwargs):
        self.heads.begin(strategy.model)

    def before_training_iteration(self, strategy, **kwargs):
        named = dict(strategy.model.named_parameters())
        self.old = {n: p.detach().clone() for n, p in named.items()}
        output = strategy.model(strategy.mb_x, strategy.mb_task_id)
        gradients = torch.autograd.grad(cross_entropy(output, strategy.mb_y), list(named.values()), allow_unused=True)
        self.gradients = {n: g for n, g in zip(named, gradients, strict=True) if g is not None}
        self.expected.append(self.heads.penalty(self.old))

    def after_training_iteration(self, strategy, **kwargs):
        new = {n: p.detach().clone() for n, p in strategy.model.named_parameters()}
        self.heads.step(self.gradients, self.old, new)

    def after_training_exp(self, strategy, **kwargs):
        self.heads.end(strategy.model, first=strategy.clock.train_exp_counter == 0)


class Losses(SupervisedPlugin):
    def __init__(self):
        super().__init__()
        self.seen = []

    def before_backward(self, strategy, **kwargs):
        self.seen.append(strategy.loss.item())


@pytest.mark.parametrize("delta_t", [2, 3])
@pytest.mark.parametrize("cls", [FTML, FromScratch, TrainOnEverything], ids=lambda cls: cls.__name__)
def test_rwalk_keeps_the_heads_of_all_tasks(cls, delta_t, tasks):
    """Heads appear in training alone, and a minibatch leaves some of them unused."""
    torch.manual_seed(0)
    net = MTSimpleMLP(input_size=5, hidden_size=4)
    net.features[2].p = 0.0  # or two passes would draw two masks
    by_name, before, after = ByName(Heads(0.9, delta_t)), Losses(), Losses()
    strategy = cls(
        model=net,
        optimizer=torch.optim.SGD(net.parameters(), lr=0.3),
        train_mb_size=2,
        steps=5,
        evaluator=EvaluationPlugin(),
        plugins=[by_name, before, RWalkPlugin(ewc_lambda=0.5, ewc_alpha=0.9, delta_t=delta_t), after],
        **({"meta_batch_size": 1, "support_size": 3, "query_size": 3} if cls is FTML else {}),
    )
    for experience in tasks.train_stream:
        strategy.train(experience, eval_streams=[])
        strategy.eval(tasks.test_stream)
    added = [a - b for a, b in zip(after.seen, before.seen, strict=True)]
    assert added == pytest.approx([0.5 * float(e) for e in by_name.expected], rel=1e-3, abs=1e-6)
    assert max(added) > 1e-4
    assert all(p.isfinite().all() for p in net.parameters())


def test_rwalk_on_arrivals_takes_multi_head_models(tasks):
    net = MTSimpleMLP(input_size=5, hidden_size=4)
    strategy = on_arrivals(Naive)(
        model=net,
        optimizer=torch.optim.SGD(net.parameters(), lr=0.3),
        train_mb_size=4,
        steps=3,
        evaluator=EvaluationPlugin(),
        plugins=[plugin := RWalkPlugin(ewc_lambda=0.5, delta_t=10)],
    )
    for experience in tasks.train_stream:
        for arrival in arrivals(experience, [6, 4]):
            strategy.train(arrival, eval_streams=[])
            strategy.eval(tasks.test_stream)
    assert net.training
    assert all(p.isfinite().all() for p in net.parameters())
    assert {n for n in plugin.exp_penalties if "classifiers" in n} == {
        f"classifier.classifiers.{t}.classifier.{kind}" for t in range(3) for kind in ("weight", "bias")
    }


def test_si_takes_models_with_heads_that_a_step_does_not_use():
    stream = nc_benchmark(points(30), points(30), n_experiences=3, task_labels=True, shuffle=False)
    strategy = ftml(SynapticIntelligencePlugin(1.0), net=MTSimpleMLP(input_size=5, hidden_size=8), meta_batch_size=1)
    train(strategy, stream)
    assert all(p.isfinite().all() for p in strategy.model.parameters())
