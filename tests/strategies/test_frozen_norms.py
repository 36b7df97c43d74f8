"""A norm layer that a model keeps in evaluation mode, against a layer of its own that knows no other mode."""

import pytest
import torch
import torch.nn.functional as F
from avalanche.training.plugins import EvaluationPlugin
from torch import nn

from ftml_bench.benchmarks import Sinusoids
from ftml_bench.saving import load_state_dict, state_dict
from ftml_bench.strategies import FTML, FollowTheLeader, FromScratch, TrainOnEverything


class Plain(nn.Module):
    def __init__(self, norm):
        super().__init__()
        self.weight, self.bias = norm.weight, norm.bias
        self.mean, self.var = norm.running_mean.clone(), norm.running_var.clone()

    def forward(self, x):
        return F.batch_norm(x, self.mean, self.var, self.weight, self.bias, training=False)


class Frozen(nn.Sequential):
    def train(self, mode=True):
        super().train(mode)
        self[1].eval()
        return self


ENGINES = [(FTML, rule, engine) for rule in FTML.BATCH_NORM_RULES for engine in ("auto", "vmap", "loop", "higher")]
OTHERS = [(c, rule, None) for c in (FollowTheLeader, FromScratch, TrainOnEverything) for rule in c.BATCH_NORM_RULES]


@pytest.mark.parametrize(("cls", "rule", "engine"), [*ENGINES, *OTHERS])
def test_a_frozen_norm_is_normalised_by_its_own_statistics(cls, rule, engine, double_precision):
    stream, found = Sinusoids(rounds=2, images_per_round=12, held_out_per_round=9), []
    for frozen in (True, False):
        torch.manual_seed(0)
        norm = nn.BatchNorm1d(6)
        norm.running_mean.fill_(0.3)
        norm.running_var.fill_(2.0)
        layers = nn.Linear(1, 6), norm if frozen else Plain(norm), nn.Tanh(), nn.Linear(6, 1)
        model = Frozen(*layers) if frozen else nn.Sequential(*layers)
        settings = {"meta_batch_size": 2, "support_size": 4, "query_size": 4, "engine": engine} if engine else {}
        strategy = cls(
            model=model,
            optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
            criterion=nn.MSELoss(),
            batch_norm=rule,
            steps=2,
            train_mb_size=6,
            evaluator=EvaluationPlugin(),
            **settings,
        )
        for round in stream.train_stream:
            strategy.train(round, eval_streams=[])
        assert torch.equal(norm.running_mean, torch.full((6,), 0.3))
        model.eval()
        copy = strategy.model_for(stream.test_stream[1])
        found.append(nn.utils.parameters_to_vector(copy.parameters()).detach())
        found.append(copy(torch.linspace(-2, 2, 5)[:, None].to(found[0])).detach())
    torch.testing.assert_close(found[:2], found[2:])


@pytest.mark.parametrize("cls", [FTML, FollowTheLeader, FromScratch, TrainOnEverything])
def test_it_is_so_in_an_evaluation_that_comes_before_any_training_too(cls, double_precision):
    """As after a saved state."""
    stream = Sinusoids(rounds=2, images_per_round=12, held_out_per_round=9)

    def built():
        torch.manual_seed(0)
        model = Frozen(nn.Linear(1, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Linear(6, 1))
        model[1].running_mean.fill_(0.3)
        assert model[1].training  # nobody has called `train` yet
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        return cls(model=model, optimizer=optimizer, criterion=nn.MSELoss(), steps=1, evaluator=EvaluationPlugin())

    def predictions(strategy):
        return strategy.model_for(stream.test_stream[0]).eval()(torch.linspace(-2, 2, 5)[:, None]).detach()

    whole, resumed = built(), built()
    assert resumed.model[1].training  # nor has the learner left its mark
    whole.train(stream.train_stream[0], eval_streams=[])
    load_state_dict(resumed, state_dict(whole), stream.train_stream)
    assert torch.equal(predictions(resumed), predictions(whole))
