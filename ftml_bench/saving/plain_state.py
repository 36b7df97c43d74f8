"""What changes in an object while it runs, as tensors and plain values, and back.

An object is saved attribute by attribute: those that its class, or one of its bases, names in a class attribute
`saved_attributes`, or that stand in `AVALANCHE` for classes of Avalanche's. Those in `unsaved_attributes` begin anew.
Every other attribute has to be a plain setting that has not changed since the strategy was built; an object with
anything else is refused by name, since it would not go on as it was. Of layers, criteria and optimisers every attribute
is saved that can be, and compared where it has not changed (see `looks`).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from copy import deepcopy
from types import BuiltinFunctionType, FunctionType
from typing import Any, TypeGuard

import numpy as np
import torch
from avalanche.training.utils import ParamData
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler

from ftml_bench.errors import UsageError
from ftml_bench.models.copies import copy_of
from ftml_bench.models.growing import fit
from ftml_bench.models.layer_state import Owned, is_plain, leaves, put_buffer, unsaved_buffers
from ftml_bench.random_state import OWN, put_state, state_of
from ftml_bench.saving.avalanche_parts import AVALANCHE
from ftml_bench.saving.looks import Looks, at_first, attributes_of, buffers_of, looks_of, may_change, shown

_MISSING = object()
_KIND = "kind of value"  # the key that marks a dict which stands for something else


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
    if type(value) is deque:
        return {_KIND: "deque", "items": to_plain(list(value), built), "maxlen": value.maxlen}
    if type(value) in (tuple, torch.Size, set, frozenset):
        return {_KIND: type(value).__name__, "items": [to_plain(v, built) for v in value]}
    if isinstance(value, Mapping):
        if all(type(k) is str and k != _KIND for k in value):
            return {k: to_plain(v, built) for k, v in value.items()}
        return {_KIND: "dict", "items": [[to_plain(k, built), to_plain(v, built)] for k, v in value.items()]}
    if isinstance(value, np.ndarray) and value.dtype.kind in "biufc":
        content = torch.from_numpy(np.frombuffer(value.tobytes(), np.uint8).copy())
        return {_KIND: "array", "dtype": value.dtype.str, "shape": list(value.shape), "content": content}
    if isinstance(value, OWN):
        return {_KIND: "generator", "class": type(value).__name__, "state": to_plain(state_of(value), built)}
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
    if kind in ("tuple", "Size", "set", "frozenset"):
        items = from_plain(saved["items"], list(current) if isinstance(current, tuple) else None, model)
        return {"tuple": tuple, "Size": torch.Size, "set": set, "frozenset": frozenset}[kind](items)
    if kind == "deque":
        return deque(from_plain(saved["items"], None, model), saved["maxlen"])
    if kind == "array":
        content = saved["content"].cpu().numpy().tobytes()
        return np.frombuffer(content, np.dtype(saved["dtype"])).reshape(saved["shape"]).copy()
    if kind == "generator":
        _same("generator", saved["class"], type(current).__name__)
        put_state(current, from_plain(saved["state"], None, model))
        return current
    if kind == "module":
        target = copy_of(model) if current is None or current is model else current
        load_module_state(target, saved["state"])
        return target
    if kind == "ParamData":
        return ParamData(saved["name"], init_tensor=saved["data"].clone(), device=saved["data"].device)
    if kind == "scheduler":
        _same("scheduler", saved["class"], type(current).__name__)
        current.load_state_dict(from_plain(saved["state"], current.state_dict(), model))
        return current
    return _object_from_plain(saved, current, model)


def module_state(
    module: nn.Module, looks: Looks = (), others: Iterable[nn.Module] = (), *, contents: bool = False
) -> dict[str, Any]:
    """Parameters, buffers, modes, frozen parameters, and attributes of the layers.

    :param looks: from `looks_of_parts`, of when the strategy was built.
    :param others: modules that are saved by themselves.
    :param contents: see `attributes_to_plain`.
    :raises UsageError: if a layer holds what has changed and cannot be saved; names it.
    """
    owned = Owned([module, *others])
    layers = dict(module.named_modules())
    return {
        "tensors": {name: to_plain(value, []) for name, value in module.state_dict().items()},
        "unsaved": {name: to_plain(value, []) for name, value in unsaved_buffers(module).items()},
        "training": [layer.training for layer in layers.values()],
        "frozen": [name for name, p in module.named_parameters() if not p.requires_grad],
        "kinds": {name: type(layer).__qualname__ for name, layer in layers.items()},
        "attributes": {
            name: attributes_to_plain(layer, looks, owned, contents=contents) for name, layer in layers.items()
        },
    }


def load_module_state(module: nn.Module, saved: Mapping[str, Any], looks: Looks = (), what: str = "model") -> None:
    """Restore what `module_state` gave, in place; classifiers of Avalanche's that grow get the saved units and heads.

    :param what: it is, for errors.
    :raises UsageError: if the modules differ otherwise.
    """
    tensors = saved["tensors"]
    fit(module, tensors)
    now = module.state_dict()
    for name in [*tensors, *now]:
        if name not in now or name not in tensors:
            raise UsageError(f"the saved {what} has {'a' if name in tensors else 'no'} {name}, this one does not match")
        if isinstance(now[name], Tensor) and now[name].shape != tensors[name].shape:
            shapes = tuple(tensors[name].shape), tuple(now[name].shape)
            raise UsageError(f"{name} of the saved {what} has shape {shapes[0]}, of this one {shapes[1]}")
        if isinstance(now[name], Tensor) and now[name].dtype != tensors[name].dtype:
            types = tensors[name].dtype, now[name].dtype
            raise UsageError(f"{name} of the saved {what} has type {types[0]}, of this one {types[1]}")
    layers = dict(module.named_modules())
    for name in [*saved["kinds"], *layers]:
        then = saved["kinds"].get(name, "nothing")
        this = type(layers[name]).__qualname__ if name in layers else "nothing"
        if then != this:
            raise UsageError(f"{name or 'all'} of the saved {what} is {then}, of this one {this}")
    for name, layer in layers.items():
        title = f"{name} ({type(layer).__name__}) of the {what}" if name else f"{what} {type(layer).__name__}"
        see_that_they_agree(layer, saved["attributes"][name], looks, title)
    module.load_state_dict(from_plain(tensors, None, module))
    for name, value in saved["unsaved"].items():
        put_buffer(module, name, value)
    for layer, training in zip(layers.values(), saved["training"], strict=True):
        layer.training = training
    for name, p in module.named_parameters():
        p.requires_grad_(name not in saved["frozen"])
    put_attributes([(layer, saved["attributes"][name]) for name, layer in layers.items()], module)


def attributes_to_plain(owner: object, looks: Looks, owned: Owned, *, contents: bool = False) -> dict[str, Any]:
    """The attributes of a layer, criterion or optimiser: names, values, and looks of those that are as they were.

    :param owned: what is saved by itself.
    :param contents: whether looks are with the contents of tensors.
    :raises UsageError: for an attribute that has changed and cannot be saved; names it.
    """
    first = at_first(owner, looks)
    names, same, state = [], {}, {}
    buffers = buffers_of(owner)
    for name, value in {**buffers, **attributes_of(owner)}.items():
        names.append(name)
        look = looks_of(value, contents=contents)
        unchanged = first is not None and first.get(name, _MISSING) == look
        if unchanged:
            same[name] = look
        if name in buffers or any(leaf in owned for leaf in leaves(value)):
            continue
        try:
            state[name] = to_plain(value, [])
        except _UnknownTypeError as error:
            if first is not None and not unchanged and (name in first or may_change(value)):
                raise UsageError(
                    f"{type(owner).__name__} cannot be saved: its {name} ({error}) has changed since the strategy was "
                    f"built: expected numbers, text, tensors, generators, and lists, dicts or sets of them"
                ) from None
    return {"names": names, "unchanged": same, "state": state}


def see_that_they_agree(owner: object, saved: Mapping[str, Any], looks: Looks, what: str) -> None:
    """Whether what training had not changed in the saved owner is here the same, as the strategies were built.

    :param what: the owner's name, for errors.
    :raises UsageError: if it is not.
    """
    now = at_first(owner, looks)
    if now is None:
        return
    then = saved["unchanged"]
    for name in [*then, *(name for name in now if name not in saved["names"])]:
        if then.get(name, _MISSING) != now.get(name, _MISSING):
            words = [shown(of[name]) if name in of else "missing" for of in (then, now)]
            raise UsageError(f"{what} was saved with {name}={words[0]}; here it is {words[1]}")


@torch.no_grad()
def put_attributes(parts: Iterable[tuple[object, Mapping[str, Any]]], module: nn.Module) -> None:
    """Restore the values that `attributes_to_plain` gave.

    :param module: they are of, or the strategy's model.
    :raises UsageError: if two that shared a tensor do so no more.
    """
    owned = Owned([module])
    in_place: list[tuple[object, str, Tensor, Tensor]] = []
    for owner, saved in parts:
        for name, value in saved["state"].items():
            current = vars(owner).get(name)
            if _fits(current, value) and current not in owned:
                in_place.append((owner, name, current, value))  # others may hold it
            else:
                vars(owner)[name] = from_plain(value, current, module)
    for _, _, tensor, value in in_place:
        tensor.copy_(value)
    for owner, name, tensor, value in in_place:
        if not torch.allclose(tensor, value.to(tensor), rtol=0, atol=0, equal_nan=True):
            raise UsageError(
                f"{type(owner).__name__} cannot be restored: its {name} is a tensor that it held twice when it was "
                f"built and no more when it was saved: expected a tensor for each"
            )


def _fits(current: Any, value: Any) -> TypeGuard[Tensor]:
    return isinstance(value, Tensor) and isinstance(current, Tensor) and current.shape == value.shape


def object_to_plain(value: object, built: Built) -> dict[str, Any]:
    """A plugin or metric as `to_plain` gives it.

    :raises UsageError: if it holds what cannot be saved; names it.
    """
    kind = type(value).__name__
    names = _names(type(value))
    passing = _passing(type(value))
    settings = _settings(value)
    if not _is_known(type(value)):
        at_first = next((settings for o, settings in built if o is value), {})
        for name, attribute in vars(value).items():
            unchanged = name in settings and name in at_first and settings[name] == at_first[name]
            # A plugin may know another, which is saved by itself.
            if name not in [*names, *passing] and not unchanged and all(o is not attribute for o, _ in built):
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
        "settings": to_plain({k: v for k, v in settings.items() if is_plain(v)}, []),
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


def _passing(cls: type) -> list[str]:
    """The attributes that begin anew when a state is loaded."""
    return [n for c in cls.__mro__ for n in vars(c).get("unsaved_attributes", ())]


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
    names = [*_names(type(value)), *_passing(type(value))]
    return {
        name: deepcopy(attribute)
        for name, attribute in getattr(value, "__dict__", {}).items()
        if name not in names and (is_plain(attribute) or isinstance(attribute, _FIXED))
    }


_FIXED = (type, FunctionType, BuiltinFunctionType, torch.device, torch.dtype)
