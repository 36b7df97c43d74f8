"""The rows of the tables of keys and columns: names from the code, and what each means.

A line "name: words" explains a name; else what its field says does, or the class's `:param name:`.
"""

from __future__ import annotations

import importlib
import inspect
import re
from typing import Any

PARAM = re.compile(r"^:param (\w+): (.*?)(?=^:|\Z)", re.MULTILINE | re.DOTALL)
LINE = re.compile(r"^(\w+): (.+)$", re.MULTILINE)


def rows(source: str, content: str, renamed: str | None = None) -> list[tuple[str, str]]:
    """(name, words) of every name of a source, in its order.

    :param source: "module:Name": a dataclass, a pydantic model, or names in a tuple.
    :param content: lines "name: words".
    :param renamed: "module:NAME" of a dictionary: names as a file has them.
    :raises ValueError: names without words, or words without a name.
    """
    found = _imported(source)
    words = _said(found)
    names = list(words)
    own = dict(LINE.findall(content))
    if unknown := [name for name in own if name not in names]:
        raise ValueError(f"{source} has no {', '.join(unknown)}")
    if missing := [name for name in names if not (words | own)[name]]:
        raise ValueError(f"{source}: nothing is said of {', '.join(missing)}")
    other = {} if renamed is None else _imported(renamed)
    return [(other.get(name, name), (words | own)[name]) for name in names]


def _imported(place: str) -> Any:
    module, name = place.split(":")
    return getattr(importlib.import_module(module), name)


def _said(found: Any) -> dict[str, str]:
    """Every name with its words in the code; empty where it says nothing."""
    if isinstance(found, tuple):
        return dict.fromkeys(found, "")
    if fields := getattr(found, "model_fields", None):
        return {field.alias or name: field.description or "" for name, field in fields.items()}
    params = {name: " ".join(text.split()) for name, text in PARAM.findall(inspect.getdoc(found) or "")}
    return {name: params.get(name, "") for name in vars(found)["__dataclass_fields__"]}
