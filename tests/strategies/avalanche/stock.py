"""Avalanche's own strategies, small: on arrivals, and as they are."""

import random

import numpy as np
import torch
from avalanche.core import SupervisedPlugin
from avalanche.training.plugins import EvaluationPlugin
from torch import nn

from ftml_bench import registry
from ftml_bench.seeding import derive
from ftml_bench.strategies.avalanche.stock import on_arrivals

# Every strategy that docs/extending-strategy.md lists, with the keywords that it cannot do without.
STRATEGIES = {
    "avalanche.training:Naive": {},
    "avalanche.training:Cumulative": {},
    "avalanche.training:Replay": {"mem_size": 20},
    "avalanche.training:GDumb": {"mem_size": 20},
    "avalanche.training:EWC": {"ewc_lambda": 10.0},
    "avalanche.training:SynapticIntelligence": {"si_lambda": 10.0},
    "avalanche.training:LwF": {"alpha": 1.0, "temperature": 2.0},
    "avalanche.training:MAS": {},
    "avalanche.training:AGEM": {"patterns_per_exp": 5},
    "avalanche.training:DER": {"mem_size": 20, "batch_size_mem": 4},
    "avalanche.training:ER_ACE": {"mem_size": 20, "batch_size_mem": 4},
    "avalanche.training:MIR": {"mem_size": 20, "subsample": 10, "batch_size_mem": 4},
    "avalanche.training:MER": {"mem_size": 20, "batch_size_mem": 4, "n_inner_steps": 1},
    "avalanche.training.supervised.lamaml:LaMAML": {},
    "avalanche.training.supervised.lamaml_v2:LaMAML": {"buffer_mb_size": 4},
}


class Net(nn.Sequential):
    """Small, with a norm layer and dropout: it draws in training and has state."""

    def __init__(self):
        super().__init__(nn.Flatten(), nn.Linear(588, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 10))


def settings(name, model=None, lr=0.01, **changes):
    torch.manual_seed(0)
    model = (nn.Sequential(nn.Flatten(), nn.Linear(588, 10)) if "MER" in name else Net()) if model is None else model
    given = {
        "model": model,
        "optimizer": torch.optim.SGD(model.parameters(), lr=lr),
        "criterion": nn.CrossEntropyLoss(),
        "train_mb_size": 8,
        "eval_mb_size": 20,
        "evaluator": EvaluationPlugin(),
        **STRATEGIES[name],
    }
    return {**given, **changes}


def build(name, steps=2, seed=0, **changes):
    return on_arrivals(registry.load("strategy", name))(steps=steps, seed=seed, **settings(name, **changes))


def parameters(strategy):
    return torch.cat([p.detach().flatten() for p in strategy.model.parameters()])


class StopAfter(SupervisedPlugin):
    """Ends an experience after so many steps."""

    def __init__(self, steps):
        super().__init__()
        self.steps = steps

    def after_training_iteration(self, strategy, **kwargs):
        if strategy.clock.train_exp_iterations + 1 >= self.steps:  # the clock ticks after the plugins
            strategy.stop_training()


def stock(name, *, steps, seed, **changes):
    """Avalanche's class as it is, with `steps` steps an experience, and the random states that `on_arrivals` seeds."""
    changes = {"train_epochs": steps, "plugins": [StopAfter(steps)], **changes}
    strategy = registry.load("strategy", name)(**settings(name, **changes))
    seed = derive(seed, "stock")
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
    return strategy
