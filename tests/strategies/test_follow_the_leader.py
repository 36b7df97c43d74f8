"""FollowTheLeader: earlier rounds only, then fine-tuning."""

import pytest
import torch
from avalanche.core import SupervisedPlugin
from avalanche.training.plugins import EvaluationPlugin

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
