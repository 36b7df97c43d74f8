"""What is broken in Avalanche itself, worked round for our strategies in this one file, or refused in one sentence.

Everything here is about Avalanche 0.6.0, the newest release there is; each part may go with the first release that
mends it (`tests/test_plugins.py` shows each fault in Avalanche, so that a test says when). Avalanche's own code is not
changed: beside a plugin that needs it, a strategy of ours gets a small companion plugin that puts things right.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from avalanche.benchmarks import DatasetExperience, OnlineCLExperience
from avalanche.core import BasePlugin, SupervisedPlugin
from avalanche.training.plugins import AGEMPlugin, GEMPlugin, MIRPlugin, RWalkPlugin, SynapticIntelligencePlugin
from avalanche.training.utils import zerolike_params_dict

from ftml_bench.errors import UsageError
from ftml_bench.strategies.per_round import PerRound, per_round


class Companion(SupervisedPlugin):
    """Runs right before or right after the plugin that it puts right."""

    def __init__(self, plugin) -> None:
        super().__init__()
        self.plugin = plugin


class OwnWeightsForSI(Companion):
    """SI remembers weights as views of the live ones on a CPU: nothing ever seems to move, and its penalty stays 0."""

    def before_training_exp(self, strategy, *args, **kwargs) -> None:
        """Copy the weights that the penalty pulls to."""
        _own(self.plugin.ewc_data[0])

    def before_training_iteration(self, strategy, *args, **kwargs) -> None:
        """Copy the weights before the step."""
        _own(self.plugin.syn_data["old_theta"])


def _own(weights) -> None:
    for weight in weights.values():
        weight.data = weight.data.clone()


class ImportancesForRWalk(Companion):
    """RWalk stops with an AssertionError after an experience without a training step."""

    def after_training_exp(self, strategy, *args, **kwargs) -> None:
        """Nothing has been important then."""
        if self.plugin.iter_importance is None:
            self.plugin.iter_importance = zerolike_params_dict(strategy.model)


class ModeAndScoresForRWalk(Companion):
    """RWalk leaves the model in evaluation mode, and divides 0 by 0 after fewer than `delta_t` iterations."""

    def before_training_iteration(self, strategy, *args, **kwargs) -> None:
        """Back to training mode."""
        strategy.model.train()

    def after_training_exp(self, strategy, *args, **kwargs) -> None:
        """Where no parameter has a score yet, the penalty is by the importances alone."""
        largest = max(score.data.max() for score in self.plugin.exp_scores.values())
        if largest == 0:
            importances = self.plugin.exp_importance
            scale = max(importance.data.max() for importance in importances.values())
            for name, penalty in self.plugin.exp_penalties.items():
                penalty.data = importances[name].data / scale.clamp_min(torch.finfo(scale.dtype).tiny)


class SampleForAGEM(Companion):
    """A-GEM draws `sample_size // experiences` points of each experience: 0, and a ValueError, after enough of them."""

    def before_training_exp(self, strategy, *args, **kwargs) -> None:
        """At least one of each."""
        self.plugin.sample_size = max(self.plugin.sample_size, len(self.plugin.buffers) + 1)


class ClassesForMIR(Companion):
    """MIR takes the classes of the last minibatch for those of the experience and replays no others.

    Our minibatches hold points of all rounds, so that it would never replay anything.
    """

    def after_training_exp(self, strategy, *args, **kwargs) -> None:
        """Let it read the classes of the experience."""
        targets = torch.as_tensor(list(strategy.experience.dataset.targets)).unique()
        # The last minibatch is done with; Avalanche drops it next.
        strategy.mbatch = [targets, targets, targets]


BEFORE: dict[type, type[Companion]] = {MIRPlugin: ClassesForMIR, RWalkPlugin: ImportancesForRWalk}
AFTER: dict[type, type[Companion]] = {
    SynapticIntelligencePlugin: OwnWeightsForSI,
    RWalkPlugin: ModeAndScoresForRWalk,
    AGEMPlugin: SampleForAGEM,
}


def with_repairs(plugins: Sequence[BasePlugin] | None) -> list[BasePlugin]:
    """The plugins, each beside the companions that it needs; also for plugins wrapped in `per_round`.

    :raises UsageError: for a plugin that cannot work here.
    """
    repaired: list[BasePlugin] = []
    for plugin in plugins or []:
        inner = plugin.plugin if isinstance(plugin, PerRound) else plugin
        _refuse(inner)
        for table in (BEFORE, None, AFTER):
            if table is None:
                repaired.append(plugin)
                continue
            companions = [companion(inner) for kind, companion in table.items() if isinstance(inner, kind)]
            repaired += [per_round(c) if inner is not plugin else c for c in companions]
    return repaired


def _refuse(plugin) -> None:
    if isinstance(plugin, GEMPlugin):
        import qpsolvers

        if "quadprog" not in qpsolvers.available_solvers:
            raise UsageError("GEMPlugin projects gradients with quadprog, which is not installed: pip install quadprog")


def as_arrival(experience: DatasetExperience, seen: int) -> DatasetExperience:
    """A piece of Avalanche's own online splitter with what it lacks; any other experience as it is.

    `split_online_stream` numbers its pieces through the whole stream, drops the round's task labels and classes, and
    does not mark the last piece where the size divides the round. With the round's own number Avalanche's forgetting,
    backward transfer and accuracy on trained experiences are right again (its issue 1343).

    :param seen: datapoints of the round that arrived before.
    """
    origin = getattr(experience, "origin_experience", None)
    if not isinstance(experience, OnlineCLExperience) or origin is None or hasattr(experience, "n_seen_in_round"):
        return experience
    whole = len(origin.dataset)
    arrived = seen if seen >= whole else seen + len(experience.dataset)
    arrival = OnlineCLExperience(
        dataset=experience.dataset,
        origin_experience=origin,
        is_first_subexp=experience.is_first_subexp,
        is_last_subexp=experience.is_last_subexp or arrived >= whole,
        sub_stream_length=experience.sub_stream_length,
        access_task_boundaries=experience.access_task_boundaries,
    )
    arrival.current_experience = origin.current_experience
    arrival.origin_stream = experience.origin_stream
    arrival.n_seen_in_round = arrived
    for name in ("task_labels", "classes_in_this_experience"):
        if hasattr(origin, name):
            setattr(arrival, name, list(getattr(origin, name)))
    if len(getattr(arrival, "task_labels", [])) == 1:
        arrival.task_label = arrival.task_labels[0]
    return arrival
