"""Each contract of a strategy is broken by something."""

import numpy as np
import pytest
import torch
from avalanche.training import Naive

from ftml_bench import check as checks
from ftml_bench.check import STRATEGY_CONTRACTS
from ftml_bench.strategies import FTML, FromScratch, TrainOnEverything
from tests.check.contracts import SMALL


class Positional(FromScratch):
    def __init__(self, model, optimizer, **others):
        super().__init__(model=model, optimizer=optimizer, **others)


class TakesAnything(FromScratch):
    def __init__(self, *, no_such_keyword=None, **others):
        super().__init__(**others)


class Unseeded(TrainOnEverything):
    def _draw(self):
        x, *rest = super()._draw()
        return [x + np.random.rand(), *rest]


class EvaluationTrains(FromScratch):
    @torch.no_grad()
    def eval(self, *args, **kwargs):
        for parameter in self.model.parameters():
            parameter *= 0.9
        return super().eval(*args, **kwargs)


class EvaluationDraws(Naive):
    def __init__(self, *, steps, seed, **others):
        super().__init__(train_epochs=steps, **others)

    def eval(self, *args, **kwargs):
        torch.rand(1)
        return super().eval(*args, **kwargs)


class Idle(FromScratch):
    def _steps(self):
        return 0


class EmptyIsNaN(FromScratch):
    def train(self, experiences, *args, **kwargs):
        if not len(experiences.dataset):
            for parameter in self.model.parameters():
                parameter.data *= float("nan")
            return None
        return super().train(experiences, *args, **kwargs)


class NeedsTwo(TrainOnEverything):
    def _before_training_exp(self, **kwargs):
        if len(self.experience.dataset) < 2:
            raise RuntimeError("two, please")
        super()._before_training_exp(**kwargs)


class Explodes(FromScratch):
    def model_for(self, experience):
        model = super().model_for(experience)
        next(model.parameters()).data *= float("nan")
        return model


class Forgets(TrainOnEverything):
    """Keeps a state that it does not save."""

    drawn = 0

    def _draw(self):
        self.drawn += 1
        x, *rest = super()._draw()
        return [x * self.drawn, *rest]


class SeesTheFuture(TrainOnEverything):
    """Draws from the whole round, of which a part has arrived."""

    def _draw(self):
        whole = self.experience.origin_experience.stacked
        x, y = whole.take(torch.arange(len(whole)))
        return [x.float() / 255, y, torch.zeros(len(y), dtype=torch.long)]


class SeesTheAnswers(FTML):
    """Adapts to held-out labels."""

    def model_for(self, experience):
        x, y = experience.stacked.take(torch.arange(10))
        return self._adapted_copy(x.float() / 255, y)


@pytest.mark.parametrize(
    ("contract", "cls"),
    [
        ("keyword-only constructor", Positional),
        ("a misspelt keyword raises", TakesAnything),
        ("same seed, same result", Unseeded),
        ("evaluation changes nothing", EvaluationTrains),
        ("evaluation changes nothing", EvaluationDraws),
        ("training steps are taken and counted", Idle),
        ("an empty arrival is refused or harmless", EmptyIsNaN),
        ("arrivals of one sample", NeedsTwo),
        ("metrics are finite numbers", Explodes),
        ("save and resume", Forgets),
        ("no leak of what has not arrived or is held out", SeesTheFuture),
        ("no leak of what has not arrived or is held out", SeesTheAnswers),
    ],
)
def test_a_strategy_can_break_each(contract, cls):
    settings = SMALL["FTML"] if issubclass(cls, FTML) else {}
    subject = checks.StrategySubject(f"{__name__}:{cls.__name__}", cls, settings, "RainbowDigits", {})
    outcome = checks.outcome_of(contract, STRATEGY_CONTRACTS[contract], subject)
    assert outcome.verdict == "broken", outcome
