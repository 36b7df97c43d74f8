"""What changes in an object while it runs, as tensors and plain values, and back.

An object is saved attribute by attribute: those that its class, or one of its bases, names in a class attribute
`saved_attributes`, or that stand in `AVALANCHE` for classes of Avalanche's. Every other attribute has to be a plain
setting that has not changed since the strategy was built; an object with anything else is refused by name, since it
would not go on as it was.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from copy import deepcopy
from types import BuiltinFunctionType, FunctionType
from typing import Any

import numpy as np
import torch
from avalanche.evaluation import metrics
from avalanche.evaluation.metrics.forgetting_bwt import BWT, Forgetting
from avalanche.evaluation.metrics.forward_transfer import ForwardTransfer
from avalanche.evaluation.metrics.loss import LossMetric
from avalanche.models import DynamicModule
from avalanche.training import plugins
from avalanche.training.plugins.clock import Clock
from avalanche.training.regularization import LearningWithoutForgetting
from avalanche.training.templates.base_sgd import PeriodicEval
from avalanche.training.utils import ParamData
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler

from ftml_bench.errors import UsageError
from ftml_bench.models.copies import copy_of
from ftml_bench.models.growing import fit

_FORGETTING = ("forgetting", "_current_metric", "eval_exp_id", "train_exp_id")
_TRANSFER = ("forward_transfer", "_current_metric", "eval_exp_id", "train_exp_id", "at_init")

# What changes in Avalanche's own (0.6.0). Classes by their exact type: another version's subclass is not trusted.
AVALANCHE: dict[type, tuple[str, ...]] = {
    plugins.EWCPlugin: ("saved_params", "importances"),
    plugins.LwFPlugin: ("lwf",),
    LearningWithoutForgetting: ("prev_model", "expcount", "prev_classes_by_task"),
    plugins.SynapticIntelligencePlugin: ("ewc_data", "syn_data"),
    plugins.MASPlugin: ("params", "importance"),
    plugins.RWalkPlugin: (
        *("checkpoint_params", "checkpoint_loss", "checkpoint_scores", "iter_grad", "iter_importance", "iter_params"),
        *("exp_scores", "exp_params", "exp_importance", "exp_penalties"),
    ),
    plugins.GEMPlugin: ("memory_x", "memory_y", "memory_tid", "G"),
    plugins.LRSchedulerPlugin: (
        "scheduler",
        "rolling_metric",
        "_was_training",
        "_just_validated",
        "_executed_train_iteration",
    ),
    plugins.EarlyStoppingPlugin: ("best_state", "best_val", "best_step"),
    plugins.EvaluationPlugin: ("metrics", "all_metric_results", "last_metric_results", "_active"),
    Clock: (
        "train_iterations",
        "train_exp_counter",
        "train_exp_epochs",
        "train_exp_iterations",
        "train_epoch_iterations",
        "total_iterations",
    ),
    PeriodicEval: ("do_final", "_is_eval_updated"),
    **dict.fromkeys(
        [
            metrics.MinibatchAccuracy,
            metrics.EpochAccuracy,
            metrics.RunningEpochAccuracy,
            metrics.ExperienceAccuracy,
            metrics.StreamAccuracy,
            metrics.MinibatchLoss,
            metrics.EpochLoss,
            metrics.RunningEpochLoss,
            metrics.ExperienceLoss,
            metrics.StreamLoss,
        ],
        ("_metric",),
    ),
    metrics.TrainedExperienceAccuracy: ("_metric", "_current_experience"),
    **dict.fromkeys([metrics.ExperienceForgetting, metrics.ExperienceBWT], _FORGETTING),
    **dict.fromkeys([metrics.StreamForgetting, metrics.StreamBWT], (*_FORGETTING, "stream_forgetting")),
    metrics.ExperienceForwardTransfer: _TRANSFER,
    metrics.StreamForwardTransfer: (*_TRANSFER, "stream_forward_transfer"),
    metrics.Accuracy: ("_mean_accuracy",),
    metrics.TaskAwareAccuracy: ("_mean_accuracy",),
    LossMetric: ("_mean_loss",),
    metrics.Mean: ("summed", "weight"),
    Forgetting: ("initial", "last"),
    BWT: ("initial", "last"),
    ForwardTransfer: ("initial", "previous"),
}

_KIND = "kind of value"  # the key that marks a dict which stands for something else
_PARTS_OF_MODULES = set(vars(nn.Module()))


class _UnknownTypeError(Exception):
    """A value of a type that cannot be saved; names the type."""


Settings = dict[str, Any]
Built = list[tuple[object, Settings]]


def settings_of_parts(objects: Iterable[object]) -> Built:
    """The plain attributes of objects as they are now, and of what they hold; to be compared with when saving."""
    return [(part, _settings(part)) for o in objects for part in _parts(o)]


def to_plain(value: Any, built: Built) -> Any:
    """A value as tensors, numbers, text, lists and dicts.

    :param built: from `settings_of_parts`, of when the strategy was built.
    :raises UsageError: for an object that holds what cannot be saved; names it.
    """
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or type(value) in (bool, int, float, str):
        return value
    if isinstance(value, Tensor):
        return value.detach().clone()
    if isinstance(value, list):
        return [to_plain(v, built) for v in value]
    if isinstance(value, tuple | set | frozenset):
        return {_KIND: type(value).__name__, "items": [to_plain(v, built) for v in value]}
    if isinstance(value, Mapping):
        if all(type(k) is str and k != _KIND for k in value):
            return {k: to_plain(v, built) for k, v in value.items()}
        return {_KIND: "dict", "items": [[to_plain(k, built), to_plain(v, built)] for k, v in value.items()]}
    if isinstance(value, nn.Module):
        return {_KIND: "module", "state": module_state(value)}
    if isinstance(value, ParamData):
        return {_KIND: "ParamData", "name": value.name, "data": value.data.detach().clone()}
    if isinstance(value, LRScheduler):
        return {_KIND: "scheduler", "class": type(value).__name__, "state": to_plain(value.state_dict(), built)}
    if not _names(type(value)) and all(o is not value for o, _ in built):
        raise _UnknownTypeError(type(value).__name__)
    return object_to_plain(value, built)


def from_plain(saved: Any, current: Any, model: nn.Module) -> Any:
    """The value that `to_plain` made `saved` of.

    :param current: what stands in its place now; objects are restored in place.
    :param model: the strategy's; saved copies of it are made from it.
    :raises UsageError: if another object stands there, or the same with other settings.
    """
    if isinstance(saved, list):
        old = current if isinstance(current, list) and len(current) == len(saved) else [None] * len(saved)
        return [from_plain(s, c, model) for s, c in zip(saved, old, strict=True)]
    if isinstance(saved, Tensor):
        return saved.clone()
    if not isinstance(saved, dict):
        return saved
    kind = saved.get(_KIND)
    if kind is None or kind == "dict":
        items = [[k, v] for k, v in saved.items()] if kind is None else saved["items"]
        values = current if isinstance(current, dict) else {}
        pairs = [(key := from_plain(k, None, model), from_plain(v, values.get(key), model)) for k, v in items]
        if not isinstance(current, dict):
            return dict(pairs)
        current.clear()  # in place: it may be a dict with a default, or a counter, which updates otherwise
        for key, value in pairs:
            current[key] = value
        return current
    if kind in ("tuple", "set", "frozenset"):
        items = from_plain(saved["items"], list(current) if isinstance(current, tuple) else None, model)
        return {"tuple": tuple, "set": set, "frozenset": frozenset}[kind](items)
    if kind == "module":
        copy = copy_of(model)
        load_module_state(copy, saved["state"])
        return copy
    if kind == "ParamData":
        return ParamData(saved["name"], init_tensor=saved["data"].clone(), device=saved["data"].device)
    if kind == "scheduler":
        _same("scheduler", saved["class"], type(current).__name__)
        current.load_state_dict(from_plain(saved["state"], current.state_dict(), model))
        return current
    return _object_from_plain(saved, current, model)


def module_state(module: nn.Module) -> dict[str, Any]:
    """Parameters, buffers, modes, frozen parameters, and what Avalanche's growing modules remember."""
    return {
        "tensors": {name: to_plain(value, []) for name, value in module.state_dict().items()},
        "training": [m.training for m in module.modules()],
        "frozen": [name for name, p in module.named_parameters() if not p.requires_grad],
        "attributes": {
            name: to_plain({k: v for k, v in vars(m).items() if k not in _PARTS_OF_MODULES and _is_plain(v)}, [])
            for name, m in module.named_modules()
            if isinstance(m, DynamicModule)
        },
    }


def load_module_state(module: nn.Module, saved: Mapping[str, Any]) -> None:
    """Restore what `module_state` gave, in place; classifiers of Avalanche's that grow get the saved units and heads.

    :raises UsageError: if the modules differ otherwise.
    """
    tensors = saved["tensors"]
    fit(module, tensors)
    now = module.state_dict()
    for name in [*tensors, *now]:
        if name not in now or name not in tensors:
            raise UsageError(f"the saved model has {'a' if name in tensors else 'no'} {name}, this one does not match")
        if isinstance(now[name], Tensor) and now[name].shape != tensors[name].shape:
            shapes = tuple(tensors[name].shape), tuple(now[name].shape)
            raise UsageError(f"{name} of the saved model has shape {shapes[0]}, of this one {shapes[1]}")
    module.load_state_dict(from_plain(tensors, None, module))
    for m, training in zip(module.modules(), saved["training"], strict=True):
        m.training = training
    for name, p in module.named_parameters():
        p.requires_grad_(name not in saved["frozen"])
    for name, attributes in saved["attributes"].items():
        for attribute, value in from_plain(attributes, None, module).items():
            setattr(module.get_submodule(name), attribute, value)


def object_to_plain(value: object, built: Built) -> dict[str, Any]:
    """A plugin or metric as `to_plain` gives it.

    :raises UsageError: if it holds what cannot be saved; names it.
    """
    kind = type(value).__name__
    names = _names(type(value))
    settings = _settings(value)
    if not _is_known(type(value)):
        at_first = next((settings for o, settings in built if o is value), {})
        for name, attribute in vars(value).items():
            unchanged = name in settings and name in at_first and settings[name] == at_first[name]
            # A plugin may know another, which is saved by itself.
            if name not in names and not unchanged and all(o is not attribute for o, _ in built):
                raise UsageError(
                    f"{kind} cannot be saved: its {name} ({type(attribute).__name__}) may change while it runs: leave "
                    f"{kind} out, or name what changes in its class attribute saved_attributes"
                )
    state = {}
    for name in names:
        if name in vars(value):
            try:
                state[name] = to_plain(vars(value)[name], built)
            except _UnknownTypeError as error:
                raise UsageError(f"{kind} cannot be saved: its {name} holds a {error}") from None
    return {
        _KIND: "object",
        "class": kind,
        "settings": to_plain({k: v for k, v in settings.items() if _is_plain(v)}, []),
        "state": state,
    }


def _object_from_plain(saved: Mapping[str, Any], current: Any, model: nn.Module) -> Any:
    if current is None:  # one that its owner makes when it needs it
        cls: Any = next(c for c in AVALANCHE if c.__name__ == saved["class"])
        current = cls.__new__(cls)
    _same("object", saved["class"], type(current).__name__)
    now = _settings(current)
    for name, value in from_plain(saved["settings"], None, model).items():
        if name in now and now[name] != value:
            raise UsageError(f"{saved['class']} was saved with {name}={value!r}; here it is {now[name]!r}")
    for name, value in saved["state"].items():
        setattr(current, name, from_plain(value, vars(current).get(name), model))
    return current


def _same(kind: str, saved: str, now: str) -> None:
    if saved != now:
        raise UsageError(f"the saved state has the {kind} {saved} where this strategy has {now}")


def _names(cls: type) -> list[str]:
    """The attributes that change, of a class and of its bases."""
    found = [n for c in cls.__mro__ for n in (*AVALANCHE.get(c, ()), *vars(c).get("saved_attributes", ()))]
    return list(dict.fromkeys(found))


def _is_known(cls: type) -> bool:
    """Whether the class itself says, or is said, what changes in it."""
    return cls in AVALANCHE or "saved_attributes" in vars(cls)


def _parts(value: Any) -> Iterator[object]:
    """An object, and the objects that change in it."""
    if isinstance(value, list | tuple | set | frozenset | Mapping):
        for v in value.values() if isinstance(value, Mapping) else value:
            yield from _parts(v)
    elif hasattr(value, "__dict__") and not isinstance(value, Tensor | nn.Module | LRScheduler | type):
        yield value
        for name in _names(type(value)):
            yield from _parts(vars(value).get(name))


def _settings(value: object) -> Settings:
    """The attributes that are not saved, as far as they are plain or functions; copies."""
    names = _names(type(value))
    return {
        name: deepcopy(attribute)
        for name, attribute in getattr(value, "__dict__", {}).items()
        if name not in names and (_is_plain(attribute) or isinstance(attribute, _FIXED))
    }


_FIXED = (type, FunctionType, BuiltinFunctionType, torch.device, torch.dtype)


def _is_plain(value: Any) -> bool:
    """Whether it is numbers and text throughout."""
    if isinstance(value, Mapping):
        return all(_is_plain(k) and _is_plain(v) for k, v in value.items())
    if isinstance(value, list | tuple | set | frozenset):
        return all(_is_plain(v) for v in value)
    return value is None or isinstance(value, bool | int | float | str | np.generic)
