"""Keywords that are written once: in signatures, documentation and errors of every learner."""

import inspect

import pytest
from avalanche.training.templates import SupervisedTemplate
from torch.optim import SGD
from typing_extensions import Unpack

from ftml_bench.errors import UsageError
from ftml_bench.models import SinusoidMLP
from ftml_bench.strategies import FTML, FollowTheLeader, FromScratch, TrainOnEverything
from ftml_bench.strategies.avalanche.base import Learner
from ftml_bench.strategies.avalanche.keywords import AvalancheKeywords, LearnerKeywords, with_defaults

LEARNERS = [FTML, FollowTheLeader, FromScratch, TrainOnEverything]


class Mine(FTML):
    """A learner of a stranger's.

    :param strength: of something.
    """

    def __init__(self, *, strength: float = 1.0, **others):
        super().__init__(**others)
        self.strength = strength


class Named(Learner):
    def __init__(self, *, strength: float = 1.0, **learner: Unpack[LearnerKeywords]):
        super().__init__(**learner)


def test_avalanches_keywords_are_those_of_avalanche_with_its_defaults():
    theirs = {
        name: p.default
        for name, p in inspect.signature(SupervisedTemplate).parameters.items()
        if name not in ("kwargs", "base_kwargs") and p.kind is p.KEYWORD_ONLY
    }
    ours = with_defaults(AvalancheKeywords, {"model": inspect.Parameter.empty, "optimizer": inspect.Parameter.empty})
    assert set(ours) == set(theirs)
    assert type(ours.pop("criterion")) is type(theirs.pop("criterion"))
    differing = {name: (value, theirs[name]) for name, value in ours.items() if value != theirs[name]}
    assert differing == {"eval_mb_size": (None, 1)}


@pytest.mark.parametrize("learner", LEARNERS)
def test_every_keyword_stands_in_signature_and_documentation(learner):
    parameters = inspect.signature(learner).parameters
    assert list(parameters)[:4] == ["model", "optimizer", "criterion", "train_mb_size"]
    assert {"steps", "seed", "buffer_folder", "update_size", "batch_norm", "plugins"} <= set(parameters)
    assert all(p.kind is p.KEYWORD_ONLY for p in parameters.values())
    assert [name for name in parameters if learner.__doc__.count(f":param {name}:") != 1] == []


def test_a_subclass_takes_and_documents_what_it_adds():
    assert "strength" in inspect.signature(Mine).parameters
    assert ":param strength: of something." in Mine.__doc__
    assert list(inspect.signature(Named).parameters)[-1] == "buffer_folder"
    assert ":param seed:" in Named.__doc__


@pytest.mark.parametrize("learner", [*LEARNERS, Mine, Named])
def test_a_misspelt_word_is_refused_with_the_nearest(learner):
    model = SinusoidMLP()
    with pytest.raises(UsageError, match=r"update_sise.*update_size"):
        learner(model=model, optimizer=SGD(model.parameters(), lr=0.1), update_sise=3)


def test_defaults_are_those_of_the_signature():
    model = SinusoidMLP()
    learner = FTML(model=model, optimizer=SGD(model.parameters(), lr=0.1))
    for name, p in inspect.signature(FTML).parameters.items():
        if name in vars(learner) and isinstance(p.default, (int, float, str)) and name != "device":
            assert getattr(learner, name) == p.default, name
    assert (learner.update_steps, learner.engine.inner_steps) == (5, 5)
