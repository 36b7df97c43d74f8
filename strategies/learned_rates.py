"""What learners that learn their inner rates share: the rates are parameters of the model, by names of their own."""

from __future__ import annotations

from typing import NoReturn

import torch
from torch import Tensor, nn

from ftml_bench.adaptation import Engine, InnerRule, adapted_names
from ftml_bench.errors import UsageError
from ftml_bench.strategies.avalanche.evaluation import grows
from ftml_bench.strategies.avalanche.unfit import refuse_compiled
from ftml_bench.strategies.ftml import FTML
from ftml_bench.strategies.trained import refuse_others, trained

PREFIX = "inner_rate_"


class LearnedRates(FTML):
    """FTML whose inner rates the outer optimiser trains with the weights, all from `inner_lr`.

    They are parameters of the model, so that they are saved, copied and updated with it; its forward pass does not use
    them, and no inner step changes them. A learner of this kind says of what shape they are (`_rate_like`) and for how
    many inner steps, or what it learns instead (`_first`) and which `rule` that makes. The rates of the last of these
    steps hold for all later ones.
    """

    def __init__(self, **learner) -> None:
        super().__init__(**learner)
        refuse_compiled(self)
        if grows(self.model):
            raise UsageError(
                f"{type(self).__name__} takes no model that can grow, whose new weights would have no rate: expected a "
                f"model of one size"
            )
        self._trained = trained(self.model, PREFIX)
        weights = [name for name, _ in self.model.named_parameters() if not name.startswith(PREFIX)]
        names = [name for name in adapted_names(self.model, self.adapted) if name in weights]
        # of each inner step: where in the model the rate of a weight stands
        self._places = [{n: f"{PREFIX}{step}_{i}" for i, n in enumerate(names)} for step in range(self._rate_steps())]
        for place, value in self._first().items():
            self.model.register_parameter(place, nn.Parameter(value))
            self.optimizer.param_groups[-1]["params"].append(self.model.get_parameter(place))
        self.engine_settings["adapted"] = names
        self.engine.adapted = names

    def make_train_dataloader(self, **kwargs) -> None:
        """As `MetaLearner.make_train_dataloader`."""
        refuse_others(type(self).__name__, self._trained, trained(self.model, PREFIX))
        super().make_train_dataloader(**kwargs)

    def _first(self) -> dict[str, Tensor]:
        """What is learned, by its place in the model, as it starts."""
        places = [pair for of_step in self._places for pair in of_step.items()]
        return {place: self._rate_like(self._weight(name)).fill_(self.engine.inner_lr) for name, place in places}

    def _weight(self, name: str) -> Tensor:
        return self.model.get_parameter(name).detach()

    def _rate_steps(self) -> int:
        """For how many inner steps there are rates."""
        return 1

    def _rate_like(self, weight: Tensor) -> Tensor:
        """An empty tensor for the rate of a weight: of its shape, or one number."""
        return torch.empty_like(weight)

    @property
    def engine(self) -> Engine:
        """As FTML's. Where its `inner_lr` was set, which nothing would follow, it is refused."""
        engine = super().engine
        if engine.inner_lr != self.engine_settings["inner_lr"]:
            self._refuse_rate(engine.inner_lr)
        return engine

    @property
    def inner_lr(self) -> float:
        """What the rates start from."""
        return self.engine.inner_lr

    @inner_lr.setter
    def inner_lr(self, value: float) -> None:
        self._refuse_rate(value)

    def _refuse_rate(self, value: float) -> NoReturn:
        raise UsageError(
            f"inner_lr={value}: the rates of {type(self).__name__} are learned and only start from inner_lr: set the "
            f"model's parameters {PREFIX}..."
        )

    @property
    def rule(self) -> InnerRule:
        """The rates as they are now."""
        return InnerRule([{n: self.model.get_parameter(place) for n, place in of.items()} for of in self._places])
