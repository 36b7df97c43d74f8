"""The rows of the tables of keys and columns: names from the code, and what each means.

A line "name: words" explains a name; else the class's `:param name:` does.
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
    names = list(found) if isinstance(found, tuple) else _fields(found)
    said = [] if isinstance(found, tuple) else PARAM.findall(inspect.getdoc(found) or "")
    words = {name: " ".join(text.split()) for name, text in said}
    own = dict(LINE.findall(content))
    if unknown := [name for name in own if name not in names]:
        raise ValueError(f"{source} has no {', '.join(unknown)}")
    if missing := [name for name in names if name not in words | own]:
        raise ValueError(f"{source}: nothing is said of {', '.join(missing)}")
    other = {} if renamed is None else _imported(renamed)
    return [(other.get(name, name), (words | own)[name]) for name in names]


def _imported(place: str) -> Any:
    module, name = place.split(":")
    return getattr(importlib.import_module(module), name)


def _fields(cls: type) -> list[str]:
    return list(getattr(cls, "model_fields", None) or vars(cls)["__dataclass_fields__"])
