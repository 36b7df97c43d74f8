"""Whether settings have the types that a constructor's signature says, before it is called.

pydantic compares; a setting whose type is not written, or is written in a way that nobody can read, passes.
"""

from __future__ import annotations

import inspect
import json
import types
from collections.abc import Callable, Iterable
from typing import Any, Literal, Union, get_args, get_origin

from pydantic import ConfigDict, TypeAdapter, ValidationError
from typing_extensions import get_type_hints

from ftml_bench.errors import UsageError
from ftml_bench.runs.values import shown

_WORDS = {int: "a whole number", float: "a number", bool: "true or false", str: "text", type(None): "null"}
_PLAIN = (type(None), bool, int, float, str, list, dict)


def parameters_of(cls: Callable[..., Any], where: str) -> dict[str, inspect.Parameter]:
    """The parameters of a class's constructor by name.

    :raises UsageError: it is nothing that can be called, or has no signature.
    """
    try:
        return dict(inspect.signature(cls).parameters)
    except (TypeError, ValueError) as error:
        raise UsageError(f"{where}: expected a class with a signature, got {shown(cls)}") from error


def refuse_wrong_types(cls: Callable[..., Any], settings: dict[str, Any], where: str) -> None:
    """Sees that plain values have the types that the signature of `cls` says, or are its defaults.

    :param where: named in the error, with the setting's name.
    :raises UsageError: the first that has another type.
    """
    parameters = parameters_of(cls, where)
    for name, value in settings.items():
        parameter = parameters.get(name)
        if parameter is None or parameter.annotation is parameter.empty or value is parameter.default:
            continue
        hint = _type_of(cls, parameter)
        if not _fits(value, hint):
            raise UsageError(f"{where}: {name}: expected {_described(hint)}, got {shown(value)}")


def _type_of(cls: Any, parameter: inspect.Parameter) -> Any:
    """The type of a parameter; of one that is written as text, what that names where it is written."""
    if not isinstance(parameter.annotation, str):
        return parameter.annotation
    for owner in inspect.getmro(cls) if inspect.isclass(cls) else [cls]:
        function = inspect.unwrap(vars(owner).get("__init__", owner))
        if getattr(function, "__annotations__", {}).get(parameter.name) == parameter.annotation:
            written = types.SimpleNamespace(__annotations__={parameter.name: parameter.annotation})
            try:
                return get_type_hints(written, getattr(function, "__globals__", None))[parameter.name]
            except Exception:  # names that are there for type checkers alone
                return Any
    return Any


def _fits(value: Any, hint: Any) -> bool:
    if get_origin(hint) in (Union, types.UnionType):
        return any(_fits(value, one) for one in get_args(hint))
    if getattr(hint, "_is_protocol", False) and not getattr(hint, "_is_runtime_protocol", False):
        return not isinstance(value, _PLAIN)  # pydantic cannot tell
    try:
        text = json.dumps(value)
        adapter = TypeAdapter(hint, config=ConfigDict(arbitrary_types_allowed=True))
    except Exception:  # no plain value, or no type
        return True
    try:
        adapter.validate_json(text, strict=True)  # strict, but a list for a tuple: YAML has no other
    except ValidationError:
        return False
    return True


def _described(hint: Any) -> str:
    """A type in words."""
    if hint in _WORDS:
        return _WORDS[hint]
    origin, inner = get_origin(hint), get_args(hint)
    if origin is Literal:
        return " or ".join(map(repr, inner))
    if origin in (Union, types.UnionType):
        plain = [kind for kind in inner if kind in _WORDS or get_origin(kind)]
        return " or ".join(dict.fromkeys(map(_described, plain or inner)))
    if origin is tuple and Ellipsis not in inner:
        return f"a list of {len(inner)} values"
    if inspect.isclass(origin) and issubclass(origin, Iterable):
        return "keys with values" if issubclass(origin, dict) else "a list"
    return getattr(hint, "__name__", str(hint))
