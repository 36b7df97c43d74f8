"""What is saved of a strategy, and how it goes on from there."""

from __future__ import annotations

import inspect
import io
import itertools
import random
import re
import zipfile
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from avalanche.benchmarks import DatasetExperience
from avalanche.training.templates import SupervisedTemplate
from avalanche.training.utils import _at_task_boundary
from torch import nn

from ftml_bench.buffer import RULES
from ftml_bench.errors import UsageError
from ftml_bench.files import replacing
from ftml_bench.memory import is_out_of_memory
from ftml_bench.models.layer_state import Owned, is_object
from ftml_bench.saving.looks import Looks, looks_of
from ftml_bench.saving.plain_state import (
    Built,
    attributes_to_plain,
    from_plain,
    load_module_state,
    module_state,
    object_to_plain,
    put_attributes,
    see_that_they_agree,
    to_plain,
)

VERSION = 3
# Where and in what portions it runs, which may differ when it goes on, and what is compared by other means.
_NOT_SETTINGS = {"self", "model", "optimizer", "criterion", "plugins", "evaluator", "device", "eval_mb_size"}


@runtime_checkable
class Saveable(Protocol):
    """What a strategy that can be saved says of itself; every `Learner` does."""

    built_with: Built  # `settings_of_parts` of its plugins, of when it was built
    looked: Looks  # `looks_of_parts` of its model, criterion and optimiser then

    def state_dict(self) -> dict[str, Any]:
        """What it has come to, beside model, optimiser and plugins: tensors and plain values."""
        ...

    def load_state_dict(self, state: dict[str, Any], experiences: Iterable[DatasetExperience]) -> None:
        """Go back to what `state_dict` gave, after these experiences."""
        ...


def save(strategy: SupervisedTemplate, path: str | Path, **more: Any) -> None:
    """Save all that `strategy` needs to go on; the file is replaced as a whole or not at all, and is on the disk then.

    :param strategy: FTML or another of ours, between two calls of `train` and `eval`: after any arrival.
    :param more: plain values to lie beside it; `load_file` gives them back under "more".
    :raises UsageError: for another strategy, within a call of `train`, or if a plugin or metric holds state that is not
        known how to save; it is named.
    :raises OSError: it cannot be written, as on a full disk; what was saved before is still there.
    """
    path = Path(path)
    if not path.parent.is_dir():
        raise UsageError(f"{path}: the folder {path.parent} is missing")
    content = io.BytesIO()  # torch's own writing says of a full disk "unexpected pos", as a RuntimeError
    torch.save({**state_dict(strategy), "more": to_plain(more, [])}, content)
    with replacing(path) as file:
        file.write(content.getbuffer())


def load(strategy: SupervisedTemplate, path: str | Path, stream: Iterable[DatasetExperience]) -> int:
    """Bring `strategy` to where it was saved.

    :param strategy: built as the saved one was, untrained. If an error is raised, build it anew.
    :param stream: the experiences as they are trained on, from the first; as many are taken as had been trained on.
    :return: how many that are. An iterator stands before the next one to train on.
    :raises UsageError: no such file, a damaged one, one of another strategy, model, stream or setting; one line.
    """
    return load_state_dict(strategy, load_file(path, strategy.device), stream)


def load_file(path: str | Path, device: torch.device | str = "cpu") -> dict[str, Any]:
    """The content of a saved state.

    :param device: where what lay on an accelerator goes.
    :raises UsageError: no such file, or a damaged one.
    """
    path = Path(path)
    try:
        file = io.BytesIO(path.read_bytes())  # at once: what the system refuses is no damage
    except FileNotFoundError:
        raise UsageError(f"{path} is missing") from None
    except OSError as error:
        raise UsageError(f"{path}: cannot be read: {error.strerror}") from error
    try:
        with zipfile.ZipFile(file) as archive:
            if archive.testzip() is not None:  # torch does not look at the checksums
                raise UsageError(f"{path}: damaged")
        file.seek(0)
        content = torch.load(file, weights_only=True, map_location=partial(_place, str(device)))
    except UsageError:
        raise
    except Exception as error:  # what a broken archive raises is not said anywhere
        if is_out_of_memory(error):
            raise
        raise UsageError(f"{path}: damaged, or no saved state") from error
    if not isinstance(content, dict) or content.get("ftml_bench saved state") is None:
        raise UsageError(f"{path}: no saved state of ftml_bench")
    return content


def _place(device: str, storage: Any, saved_on: str) -> Any:
    """Leaves on the CPU what lay there, as some plugins' tensors do beside a model on an accelerator."""
    return storage if saved_on == "cpu" else torch.serialization.default_restore_location(storage, device)


def state_dict(strategy: SupervisedTemplate) -> dict[str, Any]:
    """What `save` writes: tensors (copies) and plain values."""
    if not _is_saveable(strategy):
        raise UsageError(f"{type(strategy).__name__} cannot be saved: it is no strategy of ftml_bench")
    if strategy.experience is not None or strategy._eval_streams is not None:
        raise UsageError("a strategy is saved between two calls of train and eval, not within one")
    return {
        "ftml_bench saved state": VERSION,
        "strategy": type(strategy).__name__,
        "settings": _settings(strategy),
        "experiences": strategy.clock.train_exp_counter,
        "model": module_state(strategy.model, strategy.looked),
        "text": _text_of(strategy.model),
        "optimizer": _optimizer_state(strategy),
        "criterion": _criterion_state(strategy),
        "learner": to_plain(strategy.state_dict(), []),
        "plugins": [object_to_plain(plugin, strategy.built_with) for plugin in strategy.plugins],
        "plugin_names": _plugin_names(strategy),
        "loggers": [to_plain(logger.state_dict(), []) for logger in _loggers_with_state(strategy)],
        "random": _random_state(strategy.device),
    }


def _loggers_with_state(strategy: SupervisedTemplate) -> list[Any]:
    """Those that have to know where they were, as `CSVLogger`."""
    return [logger for logger in strategy.evaluator.loggers if hasattr(logger, "load_state_dict")]


def _is_saveable(strategy: object) -> bool:
    return isinstance(strategy, Saveable)


def load_state_dict(strategy: SupervisedTemplate, state: Mapping[str, Any], stream: Iterable[DatasetExperience]) -> int:
    """Bring `strategy` to the state that `state_dict` gave; see `load`."""
    with _damage_named():
        _compare(strategy, state)
        trained_on = state["experiences"]
    seen = list(itertools.islice(stream, trained_on))
    if len(seen) < trained_on:
        raise UsageError(f"{trained_on} experiences had been trained on; the stream has {len(seen)}")
    with _damage_named():
        _grow(strategy, seen)
        load_module_state(strategy.model, state["model"], strategy.looked)
        _compare_texts(state["text"], _text_of(strategy.model))
        _load_optimizer_state(strategy, state["optimizer"])
        _load_criterion_state(strategy, state["criterion"])
        for plugin, saved in zip(strategy.plugins, state["plugins"], strict=True):
            from_plain(saved, plugin, strategy.model)
        strategy.load_state_dict(from_plain(state["learner"], None, strategy.model), seen)
        _set_random_state(state["random"], strategy.device)
        # last, as one of them cuts its file; one that was added since has nothing to go back to
        for logger, saved in zip(_loggers_with_state(strategy), state["loggers"], strict=False):
            logger.load_state_dict(from_plain(saved, None, strategy.model))
    return len(seen)


@contextmanager
def _damage_named() -> Iterator[None]:
    """What a state that lacks something raises is said in one line."""
    try:
        yield
    except UsageError:
        raise
    except (AttributeError, LookupError, RuntimeError, StopIteration, TypeError, ValueError) as error:
        if is_out_of_memory(error):
            raise
        raise UsageError(f"damaged saved state ({type(error).__name__}: {error})") from error


def _compare(strategy: SupervisedTemplate, state: Mapping[str, Any]) -> None:
    """Whether the state is one of this strategy, as far as can be said before anything is changed."""
    version = state.get("ftml_bench saved state")
    if version != VERSION:
        raise UsageError(f"a saved state of version {version}; this ftml_bench reads version {VERSION}")
    if state["strategy"] != type(strategy).__name__:
        raise UsageError(f"a saved state of {state['strategy']}, this strategy is {type(strategy).__name__}")
    settings = _settings(strategy)
    for name in dict.fromkeys([*state["settings"], *settings]):
        saved, now = state["settings"].get(name), settings.get(name)
        if saved != now:
            raise UsageError(f"{state['strategy']} was saved with {name}={saved!r}; here it is {now!r}")
    if state["plugin_names"] != _plugin_names(strategy):
        saved, now = (", ".join(names) for names in (state["plugin_names"], _plugin_names(strategy)))
        raise UsageError(f"saved with these plugins and metrics: {saved}; here they are: {now}")


def _settings(strategy: SupervisedTemplate) -> dict[str, Any]:
    """The arguments that the strategy was built with, as far as they are plain, and what runs it."""
    # As they were asked for: "auto" may be another engine before and after its first step.
    of_engine: dict[str, Any] = getattr(strategy, "engine_settings", {})
    settings = {
        "device": strategy.device.type,
        "engine": of_engine.get("name"),
        "criterion": _name_of(strategy._criterion),
        "optimizer": type(strategy.optimizer).__name__,
        "buffer": _rule_of(strategy),
        "task_sampler": looks_of(getattr(strategy, "task_sampler", None), inside=True),
    }
    for name in inspect.signature(type(strategy)).parameters:
        value = of_engine.get(name, getattr(strategy, name, None))
        if name not in _NOT_SETTINGS and isinstance(value, bool | int | float | str | list | None):
            settings.setdefault(name, value)
    return settings


def _rule_of(strategy: SupervisedTemplate) -> str | None:
    """What bounds the buffer. Of a class of somebody's own the name alone: what it holds may change while it runs."""
    rule = getattr(getattr(strategy, "buffer", None), "rule", None)
    if rule is None:
        return None
    return repr(rule) if type(rule) in RULES.values() else type(rule).__name__


def _name_of(criterion: object) -> Any:
    """Its class; of a function, which one."""
    return type(criterion).__name__ if isinstance(criterion, nn.Module) else looks_of(criterion, inside=True)


def _plugin_names(strategy: SupervisedTemplate) -> list[str]:
    return [type(plugin).__name__ for plugin in (*strategy.plugins, *strategy.evaluator.metrics)]


def _grow(strategy: SupervisedTemplate, seen: Iterable[DatasetExperience]) -> None:
    """Adapt a model that grows to the experiences, as training on them did."""
    strategy.model.to(strategy.device).train()
    strategy.is_training = True
    for experience in seen:
        if _at_task_boundary(experience, before=True):
            strategy.experience = experience
            strategy.model = strategy.model_adaptation()
    strategy.experience = None


def _text_of(model: nn.Module) -> str:
    """What a model says of itself, without addresses in memory."""
    return re.sub(r" at 0x[0-9a-fA-F]+", "", repr(model))


def _compare_texts(then: str, now: str) -> None:
    for one, other in itertools.zip_longest(then.splitlines(), now.splitlines(), fillvalue=""):
        if one != other:
            raise UsageError(f"the saved model has {one.strip()!r} where this one has {other.strip()!r}")


def _criterion_state(strategy: SupervisedTemplate) -> dict[str, Any] | None:
    criterion = strategy._criterion
    if isinstance(criterion, nn.Module):
        return module_state(criterion, strategy.looked, [strategy.model], contents=True)
    if is_object(criterion):
        return attributes_to_plain(criterion, strategy.looked, Owned([strategy.model]), contents=True)
    return None


def _load_criterion_state(strategy: SupervisedTemplate, saved: Mapping[str, Any] | None) -> None:
    criterion = strategy._criterion
    if saved is None:
        return
    if isinstance(criterion, nn.Module):
        load_module_state(criterion, saved, strategy.looked, "criterion")
    else:
        see_that_they_agree(criterion, saved, strategy.looked, f"criterion {type(criterion).__name__}")
        put_attributes([(criterion, saved)], strategy.model)


def _trained(strategy: SupervisedTemplate) -> dict[str, nn.Parameter]:
    """What an optimiser may hold, by name: parameters of the model, and those of a criterion that learns."""
    criterion = strategy._criterion
    own = criterion.named_parameters() if isinstance(criterion, nn.Module) else ()
    return {**{f"criterion: {name}": p for name, p in own}, **dict(strategy.model.named_parameters())}


def _optimizer_state(strategy: SupervisedTemplate) -> dict[str, Any]:
    """Options and state by the parameters' names."""
    optimizer, known = strategy.optimizer, strategy.optimized_param_id
    current = {id(p): name for name, p in _trained(strategy).items()}
    # A parameter that has grown since is replaced, with an empty state, when training goes on.
    names = {**{id(p): name for name, p in (known or {}).items()}, **current}
    groups = []
    for group in optimizer.param_groups:
        for p in group["params"]:
            if id(p) not in names:
                raise UsageError(
                    f"the optimiser holds a tensor of shape {tuple(p.shape)} that is neither the model's nor the "
                    "criterion's"
                )
        options = {k: v for k, v in group.items() if k != "params"}
        groups.append({"names": [names[id(p)] for p in group["params"]], "options": to_plain(options, [])})
    state = {current[id(p)]: to_plain(dict(s), []) for p, s in optimizer.state.items() if id(p) in current}
    owned = Owned(part for part in (strategy.model, strategy._criterion) if isinstance(part, nn.Module))
    return {
        "groups": groups,
        "state": state,
        "known": None if known is None else list(known),
        "attributes": attributes_to_plain(optimizer, strategy.looked, owned),
    }


def _load_optimizer_state(strategy: SupervisedTemplate, saved: Mapping[str, Any]) -> None:
    optimizer = strategy.optimizer
    named = _trained(strategy)
    if len(saved["groups"]) != len(optimizer.param_groups):
        then, now = len(saved["groups"]), len(optimizer.param_groups)
        raise UsageError(f"the optimiser was saved with {then} groups of parameters; here it has {now}")
    see_that_they_agree(optimizer, saved["attributes"], strategy.looked, f"optimiser {type(optimizer).__name__}")
    put_attributes([(optimizer, saved["attributes"])], strategy.model)
    for group, saved_group in zip(optimizer.param_groups, saved["groups"], strict=True):
        group["params"] = [named[name] for name in saved_group["names"]]
        group.update(from_plain(saved_group["options"], None, strategy.model))
    optimizer.state = defaultdict(dict)
    for name, state in saved["state"].items():
        optimizer.state[named[name]] = from_plain(state, None, strategy.model)
    known = saved["known"]
    strategy.optimized_param_id = None if known is None else {name: named[name] for name in known}


def _random_state(device: torch.device) -> dict[str, Any]:
    """The global generators, from which layers such as dropout and some plugins draw."""
    version, words, gauss = random.getstate()
    kind, keys, *rest = np.random.get_state(legacy=True)
    assert isinstance(keys, np.ndarray)
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state(device).cpu() if device.type == "cuda" else None,
        "python": [version, torch.tensor(words), gauss],
        "numpy": [kind, torch.from_numpy(keys.astype(np.int64)), *rest],
    }


def _set_random_state(saved: Mapping[str, Any], device: torch.device) -> None:
    torch.set_rng_state(saved["torch"])
    if saved["cuda"] is not None:
        torch.cuda.set_rng_state(saved["cuda"].cpu(), device)
    version, words, gauss = saved["python"]
    random.setstate((version, tuple(words.tolist()), gauss))
    kind, keys, *rest = saved["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))
