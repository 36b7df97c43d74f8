"""Settings and parts of a wrong kind: one line when a learner is built, whichever it is."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from ftml_bench import strategies
from ftml_bench.adaptation import make_engine
from ftml_bench.buffer import Reservoir, TaskBuffer
from ftml_bench.errors import UsageError
from ftml_bench.strategies import FTML, FollowTheLeader, FromScratch, TrainOnEverything
from ftml_bench.strategies.avalanche.base import Learner

LEARNERS = [cls for cls in vars(strategies).values() if isinstance(cls, type) and issubclass(cls, Learner)]
every_learner = pytest.mark.parametrize("cls", LEARNERS, ids=lambda cls: cls.__name__)


def built(cls=FTML, **settings):
    model = nn.Linear(4, 3)
    return cls(**{"model": model, "optimizer": torch.optim.SGD(model.parameters(), lr=0.1), **settings})


def refused(cls=FTML, **settings):
    with pytest.raises(UsageError) as found:
        built(cls, **settings)
    assert "\n" not in str(found.value)
    return str(found.value)


@every_learner
@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"steps": 2.5}, "steps=2.5: expected None or a whole number"),
        ({"steps": "5"}, "steps='5': expected None or a whole number"),
        ({"update_size": 2.5}, "update_size=2.5: expected a whole number"),
        ({"seed": "a"}, "seed='a': expected a whole number"),
        ({"train_epochs": True}, "train_epochs=True: expected a whole number"),
        ({"train_mb_size": 0}, "train_mb_size=0: expected a number of at least 1"),
        ({"eval_mb_size": 0}, "eval_mb_size=0: expected a number of at least 1"),
        ({"buffer": 1000}, "buffer=1000: expected a rule, such as Reservoir(1000), or None, which keeps all"),
        ({"optimizer": None}, "optimizer=None: expected an optimiser, as torch.optim.SGD(model.parameters(), lr=0.1)"),
        ({"criterion": "mse"}, "criterion='mse': expected a function or module (outputs, targets) -> loss"),
        ({"criterion": None}, "criterion=None: expected a function or module (outputs, targets) -> loss"),
        ({"criterion": nn.MSELoss}, "expected a function or module (outputs, targets) -> loss"),
        ({"model": nn.Linear}, "expected a module of PyTorch, an nn.Module"),
    ],
    ids=str,
)
def test_of_every_learner(cls, settings, line):
    assert line in refused(cls, **settings)


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"inner_lr": "0.1"}, "inner_lr='0.1': expected a number"),
        ({"inner_lr": True}, "inner_lr=True: expected a number"),
        ({"inner_lr": math.inf}, "inner_lr=inf: expected a number above 0"),
        ({"inner_lr": math.nan}, "inner_lr=nan: expected a number"),
        ({"meta_batch_size": 2.5}, "meta_batch_size=2.5: expected None or a whole number"),
        ({"support_size": 1.5}, "support_size=1.5: expected None or a whole number"),
        ({"query_size": "1"}, "query_size='1': expected None or a whole number"),
        ({"inner_steps": 2.5}, "inner_steps=2.5: expected a whole number"),
        ({"update_steps": 1.5}, "update_steps=1.5: expected None or a whole number"),
        ({"second_order": "no"}, "second_order='no': expected True or False"),
        ({"permute_labels": 1}, "permute_labels=1: expected True or False"),
        ({"inner_clip": "1"}, "inner_clip='1': expected None or a number"),
        ({"adapted": None}, "adapted=None: expected 'all', 'last_layer' or names of parameters"),
    ],
    ids=str,
)
def test_of_learners_that_adapt(settings, line):
    assert refused(FTML, **settings) == line


def test_a_rate_that_nothing_would_train_is_refused():
    rate = nn.Parameter(torch.tensor(0.1))
    assert "MetaSGD, MAMLPlusPlus and FTMLVS learn their inner rates" in refused(FTML, inner_lr=rate)


def test_of_joint_learners():
    assert refused(TrainOnEverything, group_size=0) == "group_size=0: expected a number of at least 1"
    assert refused(FollowTheLeader, inner_lr=math.inf) == "inner_lr=inf: expected a number above 0"
    assert refused(FromScratch, step_factor=1.5) == "step_factor=1.5: expected a whole number"


def test_of_a_learner_of_ones_own():
    class Mine(FTML):
        def __init__(
            self, *, strength: float = 1.0, often: "int | None" = None, other: list[int] | None = None, **more
        ):
            super().__init__(**more)

    assert refused(Mine, strength="1") == "strength='1': expected a number"
    assert refused(Mine, often=0.5) == "often=0.5: expected None or a whole number"
    built(Mine, strength=1, often=None, other="of no kind that is known here")


def test_numbers_of_numpy_are_numbers():
    assert built(steps=np.int64(3), inner_lr=np.float32(0.1), seed=np.int32(1)).steps == 3


def test_what_is_set_later_and_engines_of_ones_own_are_no_exception():
    learner = built()
    with pytest.raises(UsageError, match=r"inner_lr='0\.1': expected a number above 0"):
        learner.inner_lr = "0.1"
    assert learner.inner_lr == 0.1
    for settings in ({"inner_lr": 0.1, "inner_steps": 1.5}, {"inner_lr": math.nan, "inner_steps": 1}):
        with pytest.raises(UsageError, match=r"expected a (whole )?number"):
            make_engine("loop", nn.Linear(2, 1), nn.MSELoss(), **settings)
    with pytest.raises(UsageError, match=r"points=2\.5: expected a whole number of at least 1"):
        Reservoir(2.5)
    with pytest.raises(UsageError, match="expected a rule, such as Reservoir"):
        TaskBuffer(rule=Reservoir)


def test_an_optimiser_whose_step_needs_a_closure_is_refused():
    optimizer = torch.optim.LBFGS(nn.Linear(4, 3).parameters())
    assert refused(optimizer=optimizer).startswith("LBFGS takes its step by a closure, which Avalanche's training loop")


def test_a_model_without_numbers_is_refused():
    line = "weight of the model is on the device 'meta', which holds no numbers: expected 'cpu'"
    assert refused(model=nn.Linear(4, 3, device="meta")) == line
