"""What learners share that know no boundaries: fast weights that go on from arrival to arrival, and predict."""

from __future__ import annotations

import torch
from avalanche.models.utils import is_multi_task_module
from torch import Tensor, nn
from typing_extensions import Unpack

from ftml_bench.adaptation import adapted_names
from ftml_bench.adaptation.inner_loop import Input
from ftml_bench.adaptation.rule import PLAIN, InnerRule
from ftml_bench.adaptation.weights import call_with, put
from ftml_bench.errors import UsageError
from ftml_bench.models.copies import copy_of
from ftml_bench.models.norm import batch_statistics
from ftml_bench.strategies.avalanche.evaluation import grows
from ftml_bench.strategies.avalanche.unfit import refuse_compiled
from ftml_bench.strategies.meta_learner import MetaLearner, MetaLearnerKeywords
from ftml_bench.strategies.trained import refuse_others, trained

PREFIX = "fast_weight_"


class FastWeights(MetaLearner):
    """A learner whose model holds slow weights, its parameters, and fast ones, buffers by names of their own.

    The fast weights predict in evaluations, whatever the task: no label is looked at but for the statistics of norm
    layers. They are saved and copied with the model, whose forward pass does not use them. A learner of this kind says
    how they move.
    """

    arrived: tuple[Tensor, Tensor]  # x and y of the arrival at hand

    def __init__(self, **learner: Unpack[MetaLearnerKeywords]) -> None:
        super().__init__(**learner)
        refuse_compiled(self)
        if is_multi_task_module(self.model) or grows(self.model):
            what = "takes task labels" if is_multi_task_module(self.model) else "grows"
            raise UsageError(f"{type(self).__name__} knows no tasks: expected a model other than one that {what}")
        self._trained = trained(self.model, PREFIX)
        names = adapted_names(self.model, self.adapted)
        self._places = {name: f"{PREFIX}{i}" for i, name in enumerate(names)}
        for name, place in self._places.items():
            self.model.register_buffer(place, self.model.get_parameter(name).detach().clone())
        self._updates_in_one_pass = False  # there are none

    def make_train_dataloader(self, **kwargs) -> None:
        """As `MetaLearner.make_train_dataloader`."""
        refuse_others(type(self).__name__, self._trained, trained(self.model, PREFIX))
        super().make_train_dataloader(**kwargs)

    @property
    def fast(self) -> dict[str, Tensor]:
        """All weights, those that are adapted as they are by now."""
        slow = {name: p.detach() for name, p in self.model.named_parameters()}
        return {**slow, **{name: self.model.get_buffer(place) for name, place in self._places.items()}}

    @torch.no_grad()
    def _move_fast(self, start: dict[str, Tensor], x: Tensor, y: Tensor, steps: int, rule: InnerRule = PLAIN) -> None:
        """Let the fast weights be what inner steps on (x, y) lead to from `start`."""
        leaves = {name: w.detach().requires_grad_(name in self._places) for name, w in start.items()}
        moved = self.engine.adapt(leaves, x, y, steps, rule=rule)
        for name, place in self._places.items():
            self.model.get_buffer(place).copy_(moved[name])
        self.cost.gradient_evaluations += steps * len(y)

    def train_dataset_adaptation(self, **kwargs) -> None:
        """As Avalanche's; the points that have arrived now are read."""
        super().train_dataset_adaptation(**kwargs)
        self.arrived = self.buffer.latest(self.current_round, len(self.experience.dataset))

    @torch.no_grad()
    def _fast_loss(self, x: Tensor, y: Tensor) -> float:
        """The loss of the fast weights."""
        with batch_statistics():
            return float(self._criterion(call_with(self.model, self.fast, x.clone()), y))

    def _update(self, model: nn.Module, x: Input, y: Tensor) -> None:
        put({name: model.get_buffer(place) for name, place in self._places.items()}, model, self.model)

    def _model_of(self, task: tuple[int, ...] | None) -> nn.Module:
        if self._data_of(task) is not None:
            return super()._model_of(task)
        copy = copy_of(self.model)
        put({name: copy.get_buffer(place) for name, place in self._places.items()}, copy, self.model)
        return copy
