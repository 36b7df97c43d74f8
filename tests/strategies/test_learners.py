"""What is alike in every learner: costs by hand, steps, keywords, and what a setting may be."""

import pytest
import torch
from avalanche.benchmarks import benchmark_from_datasets
from avalanche.benchmarks.utils import as_classification_dataset
from avalanche.training.plugins import EvaluationPlugin, GDumbPlugin, ReplayPlugin
from torch import nn
from torch.utils.data import TensorDataset

from ftml_bench.errors import UsageError
from ftml_bench.models import TaskBatchNorm
from ftml_bench.protocol import evaluations, run
from ftml_bench.strategies import FTML, FollowTheLeader, FromScratch, TrainOnEverything
from tests.strategies.learners import build, every_learner, small_net


@every_learner
def test_costs_are_counted_as_by_hand(name, digits):
    strategy = build(name)
    list(evaluations(strategy, digits, 20))  # 3 rounds of 2 arrivals of 20, 2 steps each
    steps, images, gradients = 6 * 2, 6 * 2 * 40, 6 * 2 * 40
    updates = {"FTML": 3, "FTML transductive": 5, "FollowTheLeader": 3, "FollowTheLeader adam": 5}.get(name, 0)
    if name.startswith("FTML"):
        gradients = 12 * 2 * (5 * 10 + 10 + 5 * 10)  # T (K S + Q + K S)
    if name.startswith("FollowTheLeader"):  # nothing to train on in the first round
        steps, images, gradients = steps * 2 // 3, images * 2 // 3, gradients * 2 // 3
    assert strategy.cost.steps == strategy.clock.train_iterations == steps
    assert strategy.cost.images == images
    assert strategy.cost.gradient_evaluations == gradients + updates * 3 * (20 + 40)


def test_steps_default_to_an_epoch_of_the_arrival(digits):
    strategy = build("FTML", steps=None, train_mb_size=8)
    assert [e.steps for e in evaluations(strategy, digits, 20)] == [3, 6, 9, 12, 15, 18]


@every_learner
@pytest.mark.parametrize(
    ("plugin", "message"),
    [
        (lambda: ReplayPlugin(mem_size=20), "ReplayPlugin replaced the dataloader"),
        (lambda: GDumbPlugin(20), "GDumbPlugin replaced the model"),
    ],
)
def test_plugins_that_replace_the_dataloader_or_the_model_are_refused(name, digits, plugin, message):
    strategy = build(name, plugins=[plugin()])
    with pytest.raises(UsageError, match=message) as error:  # noqa: PT012 (the second experience shows it)
        for round in digits.train_stream:
            strategy.train(round, eval_streams=[])
    assert "\n" not in str(error.value)


def test_a_stock_stream_with_a_users_own_batch_norm_model_runs():
    torch.manual_seed(0)
    x, y = torch.rand(4, 30, 3, 8, 8), torch.randint(0, 3, (4, 30))

    def dataset(t):
        tensors = TensorDataset(x[t], y[t])
        tensors.targets = y[t].tolist()
        return as_classification_dataset(tensors)

    stream = benchmark_from_datasets(train=[dataset(0), dataset(1)], test=[dataset(2), dataset(3)])
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3))
    weight = model[1].weight
    strategy = FTML(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
        train_mb_size=10,
        eval_mb_size=10,
        evaluator=EvaluationPlugin(),
    )
    for experience in stream.train_stream:
        strategy.train(experience, eval_streams=[])
        strategy.eval(stream.test_stream)
    assert strategy.cost.steps == 6
    assert type(model[1]) is TaskBatchNorm
    assert model[1].weight is weight


def test_positional_and_misspelt_keywords():
    model = small_net()
    optimizer = torch.optim.Adam(model.parameters())
    for cls in (FTML, TrainOnEverything, FromScratch, FollowTheLeader):
        strategy = cls(model, optimizer, nn.CrossEntropyLoss(), 32, 2, 64, evaluator=None)
        assert (strategy.train_mb_size, strategy.train_epochs, strategy.eval_mb_size) == (32, 2, 64)
        with pytest.raises(TypeError, match="inner_stpes"):
            cls(model=model, optimizer=optimizer, inner_stpes=1)


@pytest.mark.parametrize(
    ("cls", "setting", "message"),
    [
        (FTML, {"meta_batch_size": 0}, "meta_batch_size=0"),
        (FTML, {"support_size": None}, "both None"),
        (FTML, {"batch_norm": "own"}, "batch norm rule of FTML"),
        (FTML, {"batch_norm": "suport"}, "did you mean 'support'"),
        (FTML, {"steps": 0}, "steps=0"),
        (FTML, {"update_size": 0}, "update_size=0"),
        (FollowTheLeader, {"fine_tuning": "sgd"}, "unknown fine-tuning 'sgd'"),
        (FollowTheLeader, {"batch_norm": "own_query"}, "batch norm rule of FollowTheLeader"),
        (FollowTheLeader, {"update_steps": 0}, "update_steps=0"),
        (FromScratch, {"step_factor": 0}, "step_factor=0"),
        (TrainOnEverything, {"draw": "task"}, "did you mean 'tasks'"),
        (TrainOnEverything, {"group_size": 0}, "group_size=0"),
        (
            TrainOnEverything,
            {"batch_norm": "support", "group_size": 20, "train_mb_size": 50},
            "^train_mb_size=50 is no multiple of group_size=20: expected one, .*; nearest is 25$",
        ),
        (FollowTheLeader, {"group_size": 7, "train_mb_size": 20}, "nearest is 5$"),
    ],
)
def test_bad_settings_are_refused_with_one_line(cls, setting, message):
    model = small_net()
    with pytest.raises(UsageError, match=message) as error:
        cls(model=model, optimizer=torch.optim.Adam(model.parameters()), evaluator=None, **setting)
    assert "\n" not in str(error.value)


def test_run_takes_the_benchmarks_own_arrivals(digits):
    assert len(run(build("FTML"), digits, progress=False)) == 3 * 2
