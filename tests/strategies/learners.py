"""Every learner, small."""

import pytest
import torch
from avalanche.training.plugins import EvaluationPlugin
from torch import nn

from ftml_bench.models import RainbowNet
from ftml_bench.protocol import evaluations
from ftml_bench.strategies import FTML, FollowTheLeader, FromScratch, TrainOnEverything

JOINT = {"train_mb_size": 40, "steps": 2}
LEARNERS = {
    "FTML": (FTML, {"meta_batch_size": 2, "steps": 2, "update_steps": 3}),
    "FTML transductive": (FTML, {"meta_batch_size": 2, "steps": 2, "batch_norm": "transductive"}),
    "FollowTheLeader": (FollowTheLeader, {**JOINT, "update_steps": 3}),
    "FollowTheLeader adam": (FollowTheLeader, {**JOINT, "fine_tuning": "adam", "inner_lr": 1e-3}),
    "TrainOnEverything": (TrainOnEverything, JOINT),
    "TrainOnEverything groups": (TrainOnEverything, {**JOINT, "batch_norm": "support"}),
    "FromScratch": (FromScratch, JOINT),
}
every_learner = pytest.mark.parametrize("name", LEARNERS)


def small_net():
    torch.manual_seed(0)
    return RainbowNet(filters=4, layers=3, image_size=14)


def build(name, *, model=None, **changes):
    cls, settings = LEARNERS[name]
    model = model or small_net()
    settings = {"eval_mb_size": 50, "criterion": nn.CrossEntropyLoss(label_smoothing=0.1), **settings, **changes}
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    return cls(model=model, optimizer=optimizer, evaluator=EvaluationPlugin(), **settings)


def parameters(strategy):
    return torch.cat([p.detach().flatten() for p in strategy.model.parameters()])


def losses(strategy, benchmark):
    return [e.loss for e in evaluations(strategy, benchmark, 20)]
