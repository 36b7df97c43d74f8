"""FollowTheLeader: earlier rounds only, then fine-tuning."""

from copy import deepcopy

import pytest
import torch
import torch.nn.functional as F
from avalanche.core import SupervisedPlugin
from avalanche.training.plugins import EvaluationPlugin

from ftml_bench.benchmarks import arrivals
from ftml_bench.errors import UsageError
from ftml_bench.models import batch_statistics
from ftml_bench.protocol import evaluations
from ftml_bench.strategies import FollowTheLeader
from tests.strategies.learners import build, small_net


def test_follow_the_leader_trains_on_earlier_rounds_only(digits):
    strategy = build("FollowTheLeader")
    labels = set()

    class Labels(SupervisedPlugin):
        def before_forward(self, strategy, **kwargs):
            labels.update((strategy.current_round, int(t)) for t in strategy.mb_task_id)

    strategy.plugins.insert(0, Labels())
    list(evaluations(strategy, digits, 20))
    assert {current for current, _ in labels} == {1, 2}
    assert all(label < current for current, label in labels)


def test_follow_the_leader_fine_tunes_by_cut_gradients(digits):
    model = small_net()
    strategy = FollowTheLeader(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
        inner_lr=0.5,
        inner_clip=0.01,
        update_steps=3,
        evaluator=EvaluationPlugin(),
    )
    strategy.train(digits.train_stream[0], eval_streams=[])
    model.eval()
    copy = strategy.model_for(digits.test_stream[0])
    moved = max(float((a - b).abs().max()) for a, b in zip(copy.parameters(), model.parameters(), strict=True))
    assert moved == pytest.approx(3 * 0.5 * 0.01, rel=1e-4)


@pytest.mark.parametrize(("fine_tuning", "optimizer"), [("gd", torch.optim.SGD), ("adam", torch.optim.Adam)])
def test_follow_the_leader_fine_tunes_by_a_criterion_that_looks_at_the_weights(fine_tuning, optimizer, digits):
    model, lr = small_net(), 1e-3

    def penalised(own):
        return lambda outputs, y: F.cross_entropy(outputs, y) + sum(p.square().sum() for p in own.parameters())

    strategy = FollowTheLeader(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
        criterion=penalised(model),
        fine_tuning=fine_tuning,
        inner_lr=lr,
        update_steps=3,
        evaluator=EvaluationPlugin(),
    )
    strategy.train(digits.train_stream[0], eval_streams=[])
    model.eval()
    model.zero_grad()
    found = strategy.model_for(digits.test_stream[0])

    by_hand, (x, y) = deepcopy(model), digits.train_stream[0].stacked.take(torch.arange(40))
    loss, steps = penalised(by_hand), optimizer(by_hand.parameters(), lr=lr)
    for _ in range(3):
        steps.zero_grad()
        with batch_statistics():
            loss(by_hand(x.float() / 255), y).backward()
        steps.step()
    for own, expected in zip(found.parameters(), by_hand.parameters(), strict=True):
        torch.testing.assert_close(own, expected, rtol=1e-4, atol=1e-6)
    assert all(p.grad is None for p in model.parameters())


class Steps(SupervisedPlugin):
    """Steps of each arrival, and the rounds that they are on."""

    def __init__(self):
        super().__init__()
        self.found, self.rounds = [], set()

    def before_training_exp(self, strategy, **kwargs):
        self.found.append(0)

    def before_forward(self, strategy, **kwargs):
        self.found[-1] += 1
        self.rounds |= {(strategy.current_round, int(t)) for t in strategy.mb_task_id}


@pytest.mark.parametrize(("train_at", "steps"), [("arrivals", [0, 0, 2, 2, 2, 2]), ("round_end", [0, 0, 4, 0, 4, 0])])
def test_steps_at_arrivals_or_all_when_a_round_has_ended(train_at, steps, digits):
    strategy, seen = build("FollowTheLeader", train_at=train_at), Steps()
    strategy.plugins.append(seen)
    list(evaluations(strategy, digits, 20))
    assert seen.found == steps
    assert seen.rounds == {(1, 0), (2, 0), (2, 1)}


def test_steps_that_are_due_are_saved(digits):
    strategy = build("FollowTheLeader", train_at="round_end")
    run = evaluations(strategy, digits, 20)
    next(run)
    first = [next(iter(arrivals(digits.train_stream[0], 20)))]
    other, seen = build("FollowTheLeader", train_at="round_end"), Steps()
    other.load_state_dict(strategy.state_dict(), first)
    other.plugins.append(seen)
    other.train(digits.train_stream[1], eval_streams=[])
    assert seen.found == [2]


def test_another_time_of_training_is_refused():
    with pytest.raises(UsageError, match=r"unknown value of train_at 'round_ends': did you mean 'round_end'\?"):
        build("FollowTheLeader", train_at="round_ends")
