"""What is broken in Avalanche itself, worked round here and in `stock_repairs`, or refused in one sentence.

Everything here is about Avalanche 0.6.0, the newest release there is; each part may go with the first release that
mends it (`tests/strategies/avalanche` shows each fault, so that a test says when). Avalanche's own code is not
changed: beside a plugin that needs it, a strategy of ours gets a small companion plugin that puts things right, and
Avalanche's own strategies get their mended forms when they are built for arrivals.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import MethodType, SimpleNamespace

import numpy as np
import qpsolvers
import torch
from avalanche.benchmarks import DatasetExperience, OnlineCLExperience
from avalanche.core import BasePlugin, SupervisedPlugin
from avalanche.models import avalanche_forward
from avalanche.training.plugins import (
    AGEMPlugin,
    FeatureDistillationPlugin,
    GEMPlugin,
    LFLPlugin,
    MIRPlugin,
    RWalkPlugin,
    SynapticIntelligencePlugin,
)
from avalanche.training.utils import ParamData, zerolike_params_dict
from torch import Tensor, nn

from ftml_bench.buffer.round import Round
from ftml_bench.errors import UsageError
from ftml_bench.strategies.avalanche.per_round import PerRound, per_round


class Companion(SupervisedPlugin):
    """Runs right before or right after the plugin that it puts right."""

    def __init__(self, plugin) -> None:
        super().__init__()
        self.plugin = plugin


class OwnWeightsForSI(Companion):
    """SI remembers weights as views of the live ones on a CPU: nothing ever seems to move, and its penalty stays 0."""

    def before_training_exp(self, strategy, *args, **kwargs) -> None:
        """Copy the weights that the penalty pulls to."""
        own_weights(self.plugin.ewc_data[0])

    def before_training_iteration(self, strategy, *args, **kwargs) -> None:
        """Copy the weights before the step."""
        own_weights(self.plugin.syn_data["old_theta"])


def own_weights(weights) -> None:
    for weight in weights.values():
        weight.data = weight.data.clone()


class ImportancesForRWalk(Companion):
    """RWalk stops with an AssertionError after an experience without a training step, and with a KeyError at the first
    step of one in which the model has grown a head."""

    def before_training_exp(self, strategy, *args, **kwargs) -> None:
        """The path starts here; a head that has grown is as one that was there before, unused."""
        begin_path(self.plugin, strategy.model)

    def after_training_exp(self, strategy, *args, **kwargs) -> None:
        """Nothing has been important then."""
        if self.plugin.iter_importance is None:
            self.plugin.iter_importance = zerolike_params_dict(strategy.model)


def begin_path(plugin, model: nn.Module) -> None:
    RWalkPlugin.before_training(plugin, SimpleNamespace(model=model))
    if plugin.exp_scores is not None:  # there are none before the end of an experience
        plugin.exp_scores = zerolike_params_dict(model) | plugin.exp_scores


class ModeAndScoresForRWalk(Companion):
    """RWalk leaves the model in evaluation mode, divides 0 by 0 after fewer than `delta_t` iterations, and forgets the
    importance of parameters that the last minibatch did not use: heads of other tasks."""

    saved_attributes = ("importance",)

    def __init__(self, plugin) -> None:
        super().__init__(plugin)
        self.importance: dict[str, ParamData] = {}

    def before_training_iteration(self, strategy, *args, **kwargs) -> None:
        """Back to training mode; what was not used has a gradient of 0."""
        strategy.model.train()
        keep_unused(self.plugin, self.importance)
        self.importance = dict(self.plugin.iter_importance)

    def after_training_exp(self, strategy, *args, **kwargs) -> None:
        """Where no parameter has a score yet, the penalty is by the importances alone."""
        scale_without_scores(self.plugin)


def scale_without_scores(plugin) -> None:
    largest = max(score.data.max() for score in plugin.exp_scores.values())
    if largest == 0:
        importances = plugin.exp_importance
        scale = max(importance.data.max() for importance in importances.values())
        for name, penalty in plugin.exp_penalties.items():
            penalty.data = importances[name].data / scale.clamp_min(torch.finfo(scale.dtype).tiny)


def keep_unused(plugin, before: dict[str, ParamData]) -> None:
    """Put back RWalk's importances of parameters that the minibatch did not use: their moving average with 0."""
    for name, old in before.items():
        if name not in plugin.iter_importance:
            value = (1 - plugin.ewc_alpha) * old.data
            plugin.iter_importance[name] = ParamData(name, device=value.device, init_tensor=value)


class ModeForLFL(Companion):
    """LFL leaves the model in evaluation mode."""

    def before_backward(self, strategy, *args, **kwargs) -> None:
        """Back to training mode."""
        strategy.model.train()


class FeaturesForDistillation(Companion):
    """Feature distillation reads what the last forward pass has left in `model.features`: in FTML's inner loop that is
    of one task, by adapted parameters."""

    def before_backward(self, strategy, *args, **kwargs) -> None:
        """The features of the whole minibatch, by the model that is trained."""
        if hasattr(strategy, "engine") and self.plugin.prev_model is not None:
            avalanche_forward(strategy.model, strategy.mb_x, strategy.mb_task_id)
        if not isinstance(getattr(strategy.model, "features", None), torch.Tensor):
            raise UsageError(
                f"FeatureDistillationPlugin reads the features that the forward pass keeps in model.features: "
                f"{type(strategy.model).__name__} keeps none"
            )


class ScaledForGEM(Companion):
    """GEM stops with a TypeError once gradients are long (1e3): quadprog takes its program for inconsistent then."""

    def before_training(self, strategy, *args, **kwargs) -> None:
        """Let it solve the same program, scaled."""
        self.plugin.solve_quadprog = MethodType(projected, self.plugin)


def projected(plugin, g: Tensor) -> Tensor:
    """As `GEMPlugin.solve_quadprog`: the gradient g (P,) with as much of the reference gradients as the program asks.

    :raises UsageError: if there is no solution, where gradients are not finite.
    """
    reference, gradient = plugin.G.cpu().double().numpy(), g.cpu().double().numpy()
    products = reference @ reference.T + 1e-3 * np.eye(len(reference))
    scale = np.trace(products) / len(reference)
    v = qpsolvers.solve_qp(
        products / scale,
        reference @ gradient / scale,
        lb=np.full(len(reference), float(plugin.memory_strength)),
        solver="quadprog",
    )
    if v is None or not np.isfinite(v).all():
        raise UsageError(
            "GEMPlugin finds no projection, for gradients are not finite: the training has diverged; a smaller "
            "learning rate, or clipped gradients, may keep it from that"
        )
    return torch.from_numpy(v @ reference + gradient).float()


class SampleForAGEM(Companion):
    """A-GEM draws `sample_size // experiences` points of each experience: 0, and a ValueError, after enough of them."""

    def before_training_exp(self, strategy, *args, **kwargs) -> None:
        """At least one of each."""
        sample_of_every_experience(self.plugin)


def sample_of_every_experience(plugin) -> None:
    plugin.sample_size = max(plugin.sample_size, len(plugin.buffers) + 1)


class ClassesForMIR(Companion):
    """MIR takes the classes of the last minibatch for those of the experience and replays no others.

    Our minibatches hold points of all rounds, so that it would never replay anything.
    """

    def after_training_exp(self, strategy, *args, **kwargs) -> None:
        """Let it read the classes of the experience."""
        targets = torch.as_tensor(list(strategy.experience.dataset.targets)).unique()
        # The last minibatch is done with; Avalanche drops it next.
        strategy.mbatch = [targets, targets, targets]


BEFORE: dict[type, type[Companion]] = {
    FeatureDistillationPlugin: FeaturesForDistillation,
    GEMPlugin: ScaledForGEM,
    MIRPlugin: ClassesForMIR,
    RWalkPlugin: ImportancesForRWalk,
}
AFTER: dict[type, type[Companion]] = {
    SynapticIntelligencePlugin: OwnWeightsForSI,
    RWalkPlugin: ModeAndScoresForRWalk,
    AGEMPlugin: SampleForAGEM,
    LFLPlugin: ModeForLFL,
}


def with_repairs(plugins: Sequence[BasePlugin] | None) -> list[BasePlugin]:
    """The plugins, each beside the companions that it needs; also for plugins wrapped in `per_round`."""
    repaired: list[BasePlugin] = []
    for plugin in plugins or []:
        inner = plugin.plugin if isinstance(plugin, PerRound) else plugin
        for table in (BEFORE, None, AFTER):
            if table is None:
                repaired.append(plugin)
                continue
            companions = [companion(inner) for kind, companion in table.items() if isinstance(inner, kind)]
            repaired += [per_round(c) if inner is not plugin else c for c in companions]
    return repaired


def as_arrival(experience: DatasetExperience, round: Round | None) -> DatasetExperience:
    """A piece of Avalanche's own online splitter with what it lacks; any other experience as it is.

    `split_online_stream` numbers its pieces through the whole stream, drops the round's task labels and classes, and
    does not mark the last piece where the size divides the round. With the round's own number Avalanche's forgetting,
    backward transfer and accuracy on trained experiences are right again (its issue 1343).

    :param round: what has arrived of its round; None: nothing.
    """
    origin = getattr(experience, "origin_experience", None)
    if not isinstance(experience, OnlineCLExperience) or origin is None or hasattr(experience, "n_seen_in_round"):
        return experience
    whole, dataset, stacked = len(origin.dataset), experience.dataset, getattr(experience, "stacked", None)
    arrived = len(dataset) if round is None else round.arrived + len(round.unseen(stacked, dataset))
    arrival = OnlineCLExperience(
        dataset=experience.dataset,
        origin_experience=origin,
        is_first_subexp=experience.is_first_subexp,
        is_last_subexp=experience.is_last_subexp or arrived >= whole,
        sub_stream_length=experience.sub_stream_length,
        access_task_boundaries=experience.access_task_boundaries,
    )
    arrival.current_experience = origin.current_experience
    # Not `origin_stream`: it raises where the splitter was used without a stream, and nothing was set.
    stream = experience._origin_stream
    arrival.origin_stream = origin.origin_stream if stream is None else stream
    arrival.n_seen_in_round = arrived
    for name in ("task_labels", "classes_in_this_experience"):
        if hasattr(origin, name):
            setattr(arrival, name, list(getattr(origin, name)))
    if len(getattr(arrival, "task_labels", [])) == 1:
        arrival.task_label = arrival.task_labels[0]
    return arrival
