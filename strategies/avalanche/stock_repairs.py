"""What is broken in Avalanche's own strategies on arrivals (see `stock`), worked round, or refused in one sentence.

Mixins that go before a strategy's class, and plugins in the place of those that it has built. As in `repairs`, all of
it is about Avalanche 0.6.0, whose code is not changed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from avalanche.models import MultiTaskModule, avalanche_forward
from avalanche.models.utils import is_multi_task_module
from avalanche.training.plugins import (
    AGEMPlugin,
    GDumbPlugin,
    GEMPlugin,
    LFLPlugin,
    LwFPlugin,
    MIRPlugin,
    RWalkPlugin,
    SynapticIntelligencePlugin,
)
from avalanche.training.storage_policy import ClassBalancedBuffer
from avalanche.training.templates.base_sgd import BaseSGDTemplate
from avalanche.training.utils import cycle
from torch import nn
from torch.utils.data import DataLoader

from ftml_bench.strategies.avalanche.cost import Cost
from ftml_bench.strategies.avalanche.repairs import (
    begin_path,
    keep_unused,
    own_weights,
    projected,
    sample_of_every_experience,
    scale_without_scores,
)


class _Strategy(BaseSGDTemplate if TYPE_CHECKING else object):  # type: ignore[misc]
    arrival: Any
    experience: Any
    cost: Cost
    _in_step: bool


class _Once(_Strategy):
    """Cumulative appends the whole experience at every call; an arrival's points are to come in once."""

    def train_dataset_adaptation(self, **kwargs: Any) -> None:
        round, self.experience = self.experience, self.arrival
        super().train_dataset_adaptation(**kwargs)
        self.experience = round


class _FedOnce(ClassBalancedBuffer):
    """ER_ACE and GDumb feed their memory before training, so at every arrival: each point is to come in once."""

    def update(self, strategy: Any, **kwargs: Any) -> None:
        self.post_adapt(strategy, strategy.arrival)


class _ERACE(_Strategy):
    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.storage_policy.__class__ = _FedOnce


class _MetaLearner(_Strategy):
    """MER and LaMAML predict the minibatch again after each step, for metrics: no draw and no gradient."""

    def forward(self) -> Any:
        in_step, self._in_step = self._in_step, False
        try:
            with torch.set_grad_enabled(not self.is_training and torch.is_grad_enabled()):
                return super().forward()
        finally:
            self._in_step = in_step


class _LaMAML(_Strategy):
    """Trains a copy of the model that `higher` has patched, whose passes are not seen: counted by its algorithm."""

    def _inner_updates(self, **kwargs: Any) -> None:
        super()._inner_updates(**kwargs)
        # the minibatch without what a replay plugin has added, slice by slice; then all of it after each slice
        own = len(self.mb_y) if self.clock.train_exp_counter == 0 else min(len(self.mb_y), self.train_mb_size)
        self.cost.images += len(self.mb_y)
        self.cost.gradient_evaluations += own * (2 if self.second_order else 1) + self.n_inner_updates * len(self.mb_y)


class _WithLabels(nn.Module):
    """A model that may be given task labels, for what gives them to every model."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: torch.Tensor, task_labels: torch.Tensor | None = None) -> Any:
        return avalanche_forward(self.model, x, task_labels)


class _LaMAMLWithMemory(_Strategy):
    """The second form of LaMAML gives task labels to every model, also to those that take none. It predicts the
    minibatch and its memory after each slice: drawn once."""

    def __init__(self, *, model: nn.Module, **settings: Any) -> None:
        takes_labels = is_multi_task_module(model)
        super().__init__(model=model if takes_labels else _WithLabels(model), **settings)

    def _inner_updates(self, **kwargs: Any) -> None:
        drawn = self.cost.images
        memory = min(self.buffer.buffer_mb_size, len(self.buffer)) if self.clock.train_exp_counter > 0 else 0
        super()._inner_updates(**kwargs)
        self.cost.images = drawn + len(self.mb_y) + memory
        if self.second_order:  # of the slices; one pass of everything has been seen
            self.cost.gradient_evaluations += len(self.mb_y)


class _SI(SynapticIntelligencePlugin):
    """As `OwnWeightsForSI`; the path starts where the round does."""

    def before_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        if getattr(strategy.experience, "is_first_subexp", True):
            super().before_training_exp(strategy, **kwargs)
            own_weights(self.ewc_data[0])

    def before_training_iteration(self, strategy: Any, **kwargs: Any) -> None:
        super().before_training_iteration(strategy, **kwargs)
        own_weights(self.syn_data["old_theta"])


class _GEM(GEMPlugin):
    """As `ScaledForGEM`."""

    solve_quadprog = projected


class _AGEM(AGEMPlugin):
    """As `SampleForAGEM`."""

    sample_size: int

    def update_memory(self, dataset: Any, num_workers: int = 0, **kwargs: Any) -> None:
        sample_of_every_experience(self)
        super().update_memory(dataset, num_workers, **kwargs)


class _RWalk(RWalkPlugin):
    """As `ImportancesForRWalk` and `ModeAndScoresForRWalk`; the path starts where the round does, not the arrival."""

    def before_training(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        """Nothing yet: whether a round begins is known with its experience."""

    def before_training_exp(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        if getattr(strategy.experience, "is_first_subexp", True):
            begin_path(self, strategy.model)

    def before_training_iteration(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        before = dict(self.iter_importance or {})
        super().before_training_iteration(strategy, *args, **kwargs)
        keep_unused(self, before)
        strategy.model.train()

    def after_training_exp(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        super().after_training_exp(strategy, *args, **kwargs)
        scale_without_scores(self)


class _MIR(MIRPlugin):
    """Never replays a class of the last minibatch: nothing, where every round has all classes. Its memory holds
    earlier rounds alone, so all of it may be replayed."""

    def after_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        self.storage_policy.update(strategy, **kwargs)
        memory = self.storage_policy.buffer
        enough = len(memory) > self.batch_size_mem
        self.replay_loader = cycle(DataLoader(memory, self.subsample, shuffle=True)) if enough else None


class _LFL(LFLPlugin):
    """As `ModeForLFL`."""

    def before_backward(self, strategy: Any, **kwargs: Any) -> None:
        super().before_backward(strategy, **kwargs)
        strategy.model.train()


class _LwF(LwFPlugin):
    """Distils a model without heads a task only on the classes of the task with label 0."""

    def after_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        super().after_training_exp(strategy, **kwargs)
        if not isinstance(strategy.model, MultiTaskModule):
            classes = self.lwf.prev_classes_by_task
            classes[0] = set().union(*classes.values())


class _GDumb(GDumbPlugin):
    """Starts anew with every experience: with every round, not with every arrival."""

    def before_train_dataset_adaptation(self, strategy: Any, **kwargs: Any) -> None:
        self.storage_policy.__class__ = _FedOnce
        if getattr(strategy.experience, "is_first_subexp", True):
            super().before_train_dataset_adaptation(strategy, **kwargs)


# by name: importing LaMAML imports `higher`, which few need
MENDED_STRATEGIES = {
    "Cumulative": _Once,
    "ER_ACE": _ERACE,
    "lamaml.LaMAML": _LaMAML,
    "lamaml_v2.LaMAML": _LaMAMLWithMemory,
    "SupervisedMetaLearningTemplate": _MetaLearner,
}
MENDED_PLUGINS: dict[type, type] = {
    SynapticIntelligencePlugin: _SI,
    AGEMPlugin: _AGEM,
    GEMPlugin: _GEM,
    MIRPlugin: _MIR,
    RWalkPlugin: _RWalk,
    LFLPlugin: _LFL,
    LwFPlugin: _LwF,
    GDumbPlugin: _GDumb,
}

# class -> why it cannot be run
REFUSED = {
    "BiC": "in Avalanche 0.6.0 it replaces the data of an experience, which cannot be replaced",
    "ER_AML": "in Avalanche 0.6.0 it never ends if its memory of a group of classes is smaller than a minibatch",
    "FromScratchTraining": "in Avalanche 0.6.0 it keeps the running statistics of batch norm; take FromScratch",
    "ICaRL": "Avalanche 0.6.0 has it for benchmarks of the older kind only",
    "JointTraining": "it trains on all rounds at once; take TrainOnEverything or avalanche.training:Cumulative",
}
