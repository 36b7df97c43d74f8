"""Strategies to save: every learner, small, with every kind of metric, and how they go on."""

import random

import numpy as np
import torch
from avalanche.evaluation import metrics
from avalanche.training import plugins
from avalanche.training.plugins import EvaluationPlugin
from torch import nn

from ftml_bench import metrics as ours
from ftml_bench.protocol import held_out
from ftml_bench.saving import load, state_dict
from ftml_bench.strategies import (
    FOML,
    FTML,
    FTMLVS,
    IMAML,
    MOML,
    ContinualMAML,
    FollowTheLeader,
    FromScratch,
    MAMLPlusPlus,
    MetaSGD,
    Reptile,
    TaskAverages,
    TrainOnEverything,
)

JOINT = {"train_mb_size": 20, "steps": 2}
META = {"meta_batch_size": 2, "steps": 2, "inner_steps": 2}
LEARNERS = {
    "FTML": (FTML, META),
    "FollowTheLeader": (FollowTheLeader, {**JOINT, "update_steps": 2}),
    "TrainOnEverything": (TrainOnEverything, JOINT),
    "TrainOnEverything groups": (TrainOnEverything, {**JOINT, "batch_norm": "support"}),
    "FromScratch": (FromScratch, JOINT),
    **{cls.__name__: (cls, META) for cls in (FOML, ContinualMAML, IMAML, MAMLPlusPlus, MetaSGD, MOML, Reptile)},
    "FTMLVS": (FTMLVS, {**META, "support_size": 4}),
    "TaskAverages": (TaskAverages, {"steps": 2, "inner_steps": 2}),
}
OPTIMIZERS = {
    "Adam": lambda p: torch.optim.Adam(p, lr=1e-2),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, nesterov=True),
}


def dropout_net():
    """Batch norm (buffers) and dropout (draws from the global generator)."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Flatten(), nn.Linear(588, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Dropout(0.3), nn.Linear(6, 10)
    )


def evaluator(**more):
    return EvaluationPlugin(
        metrics.accuracy_metrics(epoch=True, experience=True, stream=True, trained_experience=True),
        metrics.loss_metrics(minibatch=True, epoch_running=True, experience=True, stream=True),
        metrics.forgetting_metrics(experience=True, stream=True),
        metrics.bwt_metrics(experience=True, stream=True),
        ours.efficiency_metrics(),
        ours.checkpoint_metrics(checkpoints=[12]),
        ours.final_performance_metrics(),
        ours.learning_curve_metrics(),
        ours.regret_metrics(),
        ours.only_class_metrics(),
        ours.shots_metrics(),
        **more,
    )


def build(name="FTML", *, optimizer="Adam", make_plugins=None, model=None, **changes):
    cls, settings = LEARNERS[name]
    model = model or dropout_net()
    optimizer = OPTIMIZERS[optimizer](model.parameters())
    given = make_plugins(optimizer) if make_plugins else []
    settings = {"eval_mb_size": 50, "evaluator": evaluator(), **settings, "plugins": given, **changes}
    return cls(model=model, optimizer=optimizer, **settings)


def go(strategy, benchmark, experiences, evaluate=None):
    """Train on each and evaluate it and the first round; `evaluate`: whole streams instead."""
    for experience in experiences:
        strategy.train(experience, eval_streams=[])
        strategy.eval(evaluate or [held_out(benchmark, 0), held_out(benchmark, experience)])
    return strategy


def outcome(strategy):
    """All that a later step or a table could depend on, as plain values."""
    return comparable(state_dict(strategy))


def comparable(value):
    if isinstance(value, torch.Tensor):
        return (str(value.dtype), tuple(value.shape), value.cpu().contiguous().numpy().tobytes())
    if isinstance(value, dict):
        return [(k, comparable(v)) for k, v in value.items()]
    return [comparable(v) for v in value] if isinstance(value, list) else value


def somewhere_else():
    """Another process would have other states of the global generators."""
    torch.manual_seed(99)
    np.random.seed(99)
    random.seed(99)


def continued(path, build_again, benchmark, stream, evaluate=None):
    strategy = build_again()
    somewhere_else()
    done = load(strategy, path, stream)
    return go(strategy, benchmark, stream[done:], evaluate)


def scheduler(optimizer):
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, [3, 9], gamma=0.1)
    return plugins.LRSchedulerPlugin(schedule, reset_scheduler=False, reset_lr=False, step_granularity="iteration")


def plateau(optimizer):
    schedule = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=0)
    return plugins.LRSchedulerPlugin(schedule, reset_scheduler=False, reset_lr=False, metric="train_loss")
