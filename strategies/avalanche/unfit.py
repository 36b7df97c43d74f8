"""Avalanche's plugins that cannot work in a learner of ours, or not with its model: refused before anything trains."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from avalanche.models import BaseModel, FeCAMClassifier, NCMClassifier
from avalanche.models.utils import is_multi_task_module
from avalanche.training import plugins
from avalanche.training.losses import ICaRLLossPlugin
from torch import nn

from ftml_bench.errors import UsageError
from ftml_bench.strategies.avalanche.per_round import PerRound

WhyNot = Callable[[Any, Any], str | None]  # of a plugin and a strategy; None: they go together


def refuse_unfit(strategy: Any) -> None:
    """Look at all plugins of a strategy, the criterion included if it is one.

    :raises UsageError: for the first that cannot work; says why.
    """
    for plugin in strategy.plugins:
        inner = plugin.plugin if isinstance(plugin, PerRound) else plugin
        for kinds, why_not in _UNFIT:
            reason = why_not(inner, strategy) if isinstance(inner, kinds) else None
            if reason is not None:
                raise UsageError(f"{type(inner).__name__} {reason}")


def refuse_compiled(strategy: Any) -> None:
    """
    :raises UsageError: for a model that torch.compile has wrapped, where a learner has parameters of its own in it.
    """
    if hasattr(strategy.model, "_orig_mod"):  # as torch's OptimizedModule has; its class is slow to import
        raise UsageError(
            f"{type(strategy).__name__} keeps parameters of its own in the model, which a model of torch.compile does "
            f"not take: give the model as it was before"
        )


def refuse_complex(strategy: Any) -> None:
    """
    :raises UsageError: for a model with complex parameters, where a learner's formulas are of real ones.
    """
    found = next((name for name, p in strategy.model.named_parameters() if p.is_complex()), None)
    if found is not None:
        raise UsageError(
            f"{type(strategy).__name__} takes real parameters, and {found} is complex: expected a model without "
            f"complex ones, or FTML"
        )


def replaced(part: str, strategy: Any) -> str:
    """What is said of a plugin that puts its own in the place of a part of a learner of ours."""
    return (
        f"replaced the {part} of {type(strategy).__name__}, which draws from its own buffer of all data and trains its "
        f"own model, so that replay is already there: leave that plugin out"
    )


def _replaces(part: str) -> WhyNot:
    return lambda plugin, strategy: replaced(part, strategy)


def _needs_one_head(plugin: Any, strategy: Any) -> str | None:
    if not is_multi_task_module(strategy.model):
        return None
    return f"works on the last layer of a model: {type(strategy.model).__name__} has one for every task"


def _needs_base_model(plugin: Any, strategy: Any) -> str | None:
    if isinstance(strategy.model, BaseModel):
        return None
    return f"needs a model with get_features (a BaseModel of Avalanche): {type(strategy.model).__name__} is none"


def _needs_features(plugin: Any, strategy: Any) -> str | None:
    model = type(strategy.model).__name__
    if is_multi_task_module(strategy.model):
        return f"reads the features of a whole minibatch: {model}, which takes task labels, keeps those of one task"
    if isinstance(getattr(strategy.model, "features", None), nn.Module):
        return f"puts its own into model.features, where {model} has its layers"
    if plugin.mode != "cosine":
        return f"stops in Avalanche 0.6.0 with mode={plugin.mode!r}: expected mode='cosine'"
    return None


def _needs_classifier(kind: type) -> WhyNot:
    def why_not(plugin: Any, strategy: Any) -> str | None:
        model = strategy.model
        if isinstance(getattr(model, "eval_classifier", None), kind) and hasattr(model, "feature_extractor"):
            return None
        return (
            f"needs a model that has a feature_extractor and, as its eval_classifier, a {kind.__name__}: "
            f"{type(model).__name__} has not"
        )

    return why_not


def _needs_one_loss_a_minibatch(plugin: Any, strategy: Any) -> str | None:
    if not hasattr(strategy, "engine"):
        return None
    return f"distils the minibatch at hand: the inner loop of {type(strategy).__name__} takes the loss of other points"


_UNFIT: list[tuple[tuple[type, ...], WhyNot]] = [
    (
        (
            *(plugins.ReplayPlugin, plugins.RARPlugin, plugins.BiCPlugin),
            *(plugins.CoPEPlugin, plugins.GSS_greedyPlugin),
        ),
        _replaces("dataloader"),
    ),
    ((plugins.GDumbPlugin,), _replaces("model")),
    ((plugins.GenerativeReplayPlugin,), _replaces("minibatch")),
    ((plugins.CWRStarPlugin,), _needs_one_head),
    ((plugins.LFLPlugin,), _needs_base_model),
    ((plugins.FeatureDistillationPlugin,), _needs_features),
    (
        (plugins.CurrentDataNCMUpdate, plugins.MemoryNCMUpdate, plugins.NCMOracle),
        _needs_classifier(NCMClassifier),
    ),
    (
        (plugins.CurrentDataFeCAMUpdate, plugins.MemoryFeCAMUpdate, plugins.FeCAMOracle),
        _needs_classifier(FeCAMClassifier),
    ),
    ((ICaRLLossPlugin,), _needs_one_loss_a_minibatch),
]
