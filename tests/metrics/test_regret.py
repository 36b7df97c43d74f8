"""The regret, live: strategies on linear regression against the closed forms, and on other streams by hand."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch
from avalanche.training.plugins import EvaluationPlugin
from avalanche.training.supervised import Naive
from torch import nn

from ftml_bench.benchmarks import LinearRegression, RainbowDigits, Sinusoids, arrivals
from ftml_bench.metrics import regret_metrics
from ftml_bench.protocol import evaluations, held_out
from ftml_bench.strategies import FTML, FollowTheLeader, FromScratch, TrainOnEverything

ROUNDS = 10
REGRET = "Regret/eval_phase/test_stream"
LOSS = "Loss_Of_Round/eval_phase/test_stream"
EXACT = {"meta_batch_size": None, "support_size": None, "query_size": None, "inner_steps": 1}


@pytest.fixture(scope="module")
def linear():
    return LinearRegression(rounds=ROUNDS, dimensions=3, images_per_round=8, held_out_per_round=6, mu=0.2)


def build(cls, benchmark, metrics=(), lr=1.5, **settings):
    model = benchmark.model()
    for p in model.parameters():
        nn.init.zeros_(p)
    settings = {"steps": 60, **settings}
    return cls(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=lr),
        criterion=benchmark.criterion,
        evaluator=EvaluationPlugin(*metrics),
        eval_mb_size=4,
        **settings,
    )


def learners(benchmark, recorder=None):
    """Exact ones: every training step is on all data. Without a recorder, no metrics."""

    def of(cls, **settings):
        evaluator = [] if recorder is None else [regret_metrics(benchmark=benchmark)]
        strategy = build(cls, benchmark, evaluator, **settings)
        if recorder is not None:
            strategy.evaluator.loggers = [recorder]
        return strategy

    return {
        "FTML": lambda: of(FTML, inner_lr=benchmark.inner_lr, lr=3.0, **EXACT),
        "joint": lambda: of(TrainOnEverything, draw="all"),
        "joint, updated": lambda: of(FollowTheLeader, draw="all", inner_lr=benchmark.inner_lr, update_steps=1),
        "from scratch": lambda: of(FromScratch, train_mb_size=8),
    }


def leaders(benchmark, name):
    """w_t of every round in closed form, (T, d)."""
    first = torch.zeros(1, 3, dtype=torch.float64)
    if name == "from scratch":
        return first.expand(ROUNDS, 3)
    solution = benchmark.w_maml if name == "FTML" else benchmark.w_joint
    return torch.cat([first, torch.stack([solution(n) for n in range(1, ROUNDS)])])


@pytest.mark.parametrize("name", ["FTML", "joint", "joint, updated", "from scratch"])
def test_the_regret_of_every_learner_is_that_of_its_closed_form(name, linear, recorder):
    strategy = learners(linear, recorder)[name]()
    list(evaluations(strategy, linear, linear.arrivals))
    w = leaders(linear, name)
    losses = linear.losses(linear.updated(w) if name in ("FTML", "joint, updated") else w)
    curves = recorder.curves()
    assert set(curves) == {REGRET, LOSS}  # the same for every strategy
    assert [x for x, _ in curves[REGRET]] == list(range(1, ROUNDS + 1))
    assert all(type(value) is float for curve in curves.values() for _, value in curve)
    assert [value for _, value in curves[LOSS]] == pytest.approx(losses.tolist(), abs=1e-6)
    least = torch.stack([linear.losses(linear.updated(linear.w_maml(n)))[:n].sum() for n in range(1, ROUNDS + 1)])
    expected = (losses.cumsum(0) - least).tolist()
    assert [value for _, value in curves[REGRET]] == pytest.approx(expected, abs=1e-5)
    assert expected[-1] > 0


def test_evaluated_after_the_round_was_trained_on_there_is_no_regret(linear, recorder):
    """The loss of w_{t+1} on round t, from the learning curve, is be-the-leader's; that of w_t is not."""
    strategy = learners(linear, recorder)["FTML"]()
    after = torch.tensor([e.loss for e in evaluations(strategy, linear, linear.arrivals)], dtype=torch.float64)
    assert (after.cumsum(0) - linear.least_losses()).max() < 1e-6
    before = [value for _, value in recorder.curves()[REGRET]]
    assert max(before) > 0.1


@pytest.mark.parametrize("name", ["FTML", "joint, updated"])
def test_measuring_changes_nothing(name, linear, recorder):
    measured, plain = learners(linear, recorder)[name](), learners(linear)[name]()
    curves = [list(evaluations(strategy, linear, linear.arrivals)) for strategy in (measured, plain)]
    assert curves[0] == curves[1]  # losses, steps and gradient evaluations
    assert torch.equal(measured.model.weight, plain.model.weight)


def test_exact_ftml_arrives_at_w_maml_and_exact_joint_training_at_w_joint(linear):
    for name, solution in (("FTML", linear.w_maml()), ("joint", linear.w_joint())):
        strategy = learners(linear)[name]()
        list(evaluations(strategy, linear, linear.arrivals))
        assert torch.allclose(strategy.model.weight.flatten(), solution, atol=1e-4)
    assert (linear.w_maml() - linear.w_joint()).norm() > 0.1


# -- streams whose rounds arrive in several pieces and whose best learner is not known


def by_hand(strategy, benchmark, size, w_t):
    """f_t(U_t(w_t)) of every round: at its end, the learner with `w_t(round)` in place of its model is evaluated."""
    losses = []
    for round in benchmark.train_stream:
        states = [deepcopy(strategy.model.state_dict())]
        for arrival in arrivals(round, size):
            strategy.train(arrival, eval_streams=[])
            states.append(deepcopy(strategy.model.state_dict()))
        strategy.model.load_state_dict(w_t(states))
        results = strategy.eval([held_out(benchmark, round)])
        losses.append(next(v for k, v in results.items() if k.endswith(f"Exp{round.current_experience:03}")))
        strategy.model.load_state_dict(states[-1])
    return losses


@pytest.mark.parametrize(
    ("cls", "settings", "w_t"),
    [
        (FTML, {"meta_batch_size": 2, "support_size": 4, "query_size": 4}, lambda states: states[0]),
        (FollowTheLeader, {"train_mb_size": 20, "inner_lr": 0.01}, lambda states: states[-1]),
        (TrainOnEverything, {"train_mb_size": 20}, lambda states: states[0]),
        (TrainOnEverything, {"train_mb_size": 20, "batch_norm": "transductive"}, lambda states: states[0]),
        (Naive, {"train_mb_size": 5}, lambda states: states[0]),
    ],
)
@pytest.mark.parametrize("stream", ["digits", "sinusoids"])
def test_the_loss_of_a_round_is_that_of_the_model_that_has_not_trained_on_it(cls, settings, w_t, stream, recorder):
    from avalanche.evaluation.metrics import loss_metrics

    if stream == "digits":
        benchmark = RainbowDigits(rounds=3, images_per_round=24, held_out_per_round=20)
    else:
        benchmark = Sinusoids(rounds=3, images_per_round=24, held_out_per_round=20)
    if cls is not Naive:
        settings = {**settings, "steps": 3, "seed": 5}
    if cls is FTML:
        settings = {**settings, "inner_lr": 0.02}

    def fresh(evaluator):
        torch.manual_seed(0)
        model = benchmark.model()
        return cls(
            model=model,
            optimizer=torch.optim.SGD(model.parameters(), lr=0.05),
            criterion=benchmark.criterion,
            evaluator=evaluator,
            eval_mb_size=20,
            **settings,
        )

    torch.manual_seed(1)
    expected = by_hand(fresh(EvaluationPlugin(loss_metrics(experience=True))), benchmark, 8, w_t)
    torch.manual_seed(1)
    strategy = fresh(EvaluationPlugin(regret_metrics(benchmark=benchmark), loggers=[recorder]))
    list(evaluations(strategy, benchmark, 8))
    curves = recorder.curves()
    assert set(curves) == {LOSS}
    assert [x for x, _ in curves[LOSS]] == [1, 2, 3]
    if cls is Naive:  # its minibatches are drawn from the global state, which the two runs use differently
        assert curves[LOSS][0][1] == pytest.approx(expected[0], rel=1e-5)
    else:
        assert [value for _, value in curves[LOSS]] == pytest.approx(expected, rel=1e-5)


def test_without_a_benchmark_there_are_losses_alone(recorder, linear):
    strategy = build(TrainOnEverything, linear, [regret_metrics()], draw="all", steps=2)
    strategy.evaluator.loggers = [recorder]
    list(evaluations(strategy, linear, 4))
    assert set(recorder.curves()) == {LOSS}
    assert len(recorder.curves()[LOSS]) == ROUNDS
