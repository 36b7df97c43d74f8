"""Plugins that bring their own data are refused."""

import pytest
import torch
from avalanche.training.plugins import (
    BiCPlugin,
    CoPEPlugin,
    GDumbPlugin,
    GSS_greedyPlugin,
    RARPlugin,
    ReplayPlugin,
)

from ftml_bench.errors import UsageError
from ftml_bench.strategies import per_round
from tests.strategies.avalanche.scripts import (
    every_learner,
    learner,
    net,
    plain,
)

REPLAY = {
    "ReplayPlugin": lambda: ReplayPlugin(mem_size=20),
    "CoPEPlugin": lambda: CoPEPlugin(mem_size=20, n_classes=6, p_size=6),
    "GDumbPlugin": lambda: GDumbPlugin(20),
    "GSS_greedyPlugin": lambda: GSS_greedyPlugin(mem_size=20, input_size=[6]),
    "RARPlugin": lambda: RARPlugin(batch_size_mem=4),
    "BiCPlugin": lambda: BiCPlugin(mem_size=20),
    "ReplayPlugin, by rounds": lambda: per_round(ReplayPlugin(mem_size=20)),
}


@every_learner
@pytest.mark.parametrize("name", REPLAY)
def test_plugins_that_bring_their_own_data_are_refused_before_anything_is_trained(name, cls):
    strategy = learner(cls, plugins=[REPLAY[name]()])
    criterion = strategy._criterion
    with pytest.raises(
        UsageError, match=f"{name.split(',')[0]} replaced the .* of {cls.__name__}, .* leave that plugin out"
    ):
        strategy.train(plain().train_stream[0], eval_streams=[])
    assert torch.equal(strategy.model.weight, net().weight)
    assert (len(strategy.buffer.rounds), strategy.cost.steps) == (0, 0)
    assert strategy._criterion is criterion
