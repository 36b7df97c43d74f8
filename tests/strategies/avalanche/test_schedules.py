"""Schedules, early stopping, checkpoints and masks with FTML act on its meta-parameters."""

import io

import pytest
import torch
from avalanche.core import SupervisedPlugin
from avalanche.evaluation.metrics import WeightCheckpoint, accuracy_metrics
from avalanche.training.plugins import EarlyStoppingPlugin, EvaluationPlugin, LRSchedulerPlugin
from torch import nn

from ftml_bench.strategies import FTML
from tests.strategies.avalanche.small import Around, flat, ftml, model, train, values


def test_a_learning_rate_schedule_sets_the_meta_learning_rate(stream):
    net = model()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.4)
    around = Around()
    plugin = LRSchedulerPlugin(
        torch.optim.lr_scheduler.StepLR(optimizer, step_size=1, gamma=0.5), step_granularity="iteration"
    )
    strategy = FTML(
        model=net,
        optimizer=optimizer,
        plugins=around.of(plugin),
        steps=3,
        meta_batch_size=2,
        evaluator=None,
        support_size=3,
        query_size=3,
    )
    for experience in stream.train_stream[:2]:
        strategy.train(experience, eval_streams=[])
    for step, lr in enumerate([0.4, 0.2, 0.1] * 2):  # it starts anew with every experience
        start, gradient, end = around.after.steps[step]
        assert torch.allclose(flat(end), flat(start) - lr * flat(gradient), atol=1e-6)


class Scripted(FTML):
    """FTML whose predictions are right on a prescribed share of the points."""

    def forward(self):
        if self.is_training:
            return super().forward()
        right = torch.arange(len(self.mb_y)) < round(self.script.pop(0) * len(self.mb_y))
        return nn.functional.one_hot(torch.where(right, self.mb_y, (self.mb_y + 1) % 6), 6).float()


def test_early_stopping_ends_an_experience_and_returns_to_the_best_meta_parameters(stream):
    net = model()
    after_epoch = []

    class Look(SupervisedPlugin):
        def after_training_epoch(self, strategy, **kwargs):
            after_epoch.append(values(strategy.model))

    strategy = Scripted(
        model=net,
        optimizer=torch.optim.SGD(net.parameters(), lr=0.1),
        train_epochs=10,
        steps=1,
        meta_batch_size=1,
        eval_mb_size=10,
        eval_every=1,
        plugins=[EarlyStoppingPlugin(patience=2, val_stream_name="test_stream"), Look()],
        evaluator=EvaluationPlugin(accuracy_metrics(stream=True)),
    )
    strategy.script = [0.2, 0.5, 0.8, 0.6, 0.6, 0.9]  # before training and after each epoch
    with pytest.warns(UserWarning, match="is not computed yet"):
        strategy.train(stream.train_stream[0], eval_streams=[stream.test_stream[:1]])
    assert len(after_epoch) == 4  # two epochs after the best
    assert torch.equal(flat(values(net)), flat(after_epoch[1]))


def test_weight_checkpoints_hold_the_meta_parameters(stream):
    strategy = ftml(evaluator=EvaluationPlugin(WeightCheckpoint()))
    kept = []
    for experience in stream.train_stream:
        results = strategy.train(experience, eval_streams=[])
        name = f"WeightCheckpoint/train_phase/train_stream/Exp00{experience.current_experience}"
        saved = torch.load(io.BytesIO(results[name]), weights_only=False)
        assert torch.equal(flat(values(saved)), flat(values(strategy.model)))
        kept.append(flat(values(saved)))
    assert not torch.equal(kept[0], kept[1])


def test_a_mask_of_the_users_own_freezes_what_it_says(stream):
    class Mask(SupervisedPlugin):
        def after_backward(self, strategy, **kwargs):
            strategy.model.weight.grad[:3] = 0

    strategy = ftml(Mask())
    start = strategy.model.weight.detach().clone()
    train(strategy, stream)
    assert torch.equal(strategy.model.weight[:3], start[:3])
    assert (strategy.model.weight[3:] != start[3:]).any()
