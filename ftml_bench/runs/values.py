"""Plain values as YAML gives them, checked one by one: what came, what was expected, and where, in one line."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from typing import Any

import yaml

from ftml_bench.errors import UsageError, unknown

_FOLDER_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9 ._+()=-]*")
_LONGEST_NAME = 200  # of the 255 bytes that disks have; figures and temporary files are named after it
# Windows takes these for devices, in any case, whatever stands behind a dot; others have characters not taken here.
_DEVICE = re.compile(r"(con|prn|aux|nul|(com|lpt)[0-9]) *(\..*)?", re.IGNORECASE)
# Keywords of benchmarks, models and strategies that count something, by the names that the suite uses.
_SIZE_NAME = re.compile(r"rounds|steps|filters|heads|step_factor|\w+_(size|steps|per_round|per_class|classes|epochs)")
_RATE_NAME = re.compile(r"lr|\w+_lr")


def parse_yaml(text: str, where: str) -> Any:
    """The plain values of a YAML text. 1e-3 is a number, as in YAML 1.2, and a key may stand only once in a mapping.

    :raises UsageError: not YAML; names the line.
    """
    try:
        return yaml.load(text, _Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        line = f" line {mark.line + 1}" if mark else ""
        raise UsageError(f"{where}:{line} {error.problem or error.context}") from error
    except yaml.YAMLError as error:
        raise UsageError(f"{where}: not YAML: {' '.join(str(error).split())}") from error


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader without two of its traps: repeated keys, and 1e-3 read as a string."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, str):
                problem = f"keys must be text, not {key!r}"
                raise yaml.constructor.ConstructorError(None, None, problem, key_node.start_mark)
            if key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"{key!r} stands twice", key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d+"), list("-+.0123456789")
)


def mapping(value: Any, where: str) -> dict[str, Any]:
    """A mapping that is not empty."""
    if not isinstance(value, dict) or not value:
        raise UsageError(f"{where}: expected keys with values, got {shown(value)}")
    return value


def check_keys(value: Any, where: str, required: tuple[str, ...], optional: tuple[str, ...]) -> None:
    """Refuses unknown keys, with the nearest valid one, and missing ones."""
    given = mapping(value, where)
    for key in given:
        if key not in required + optional:
            raise UsageError(f"{where}: {unknown('key', key, required + optional)}")
    for key in required:
        if key not in given:
            raise UsageError(f"{where}: {key!r} is missing")


def string(value: Any, where: str) -> str:
    """A text."""
    if not isinstance(value, str):
        raise UsageError(f"{where}: expected text, got {shown(value)}")
    return value


def folder_name(value: Any, where: str) -> str:
    """A text that can be the name of a folder on every system.

    Letters without accents alone: disks differ in how they write others.
    """
    if not _FOLDER_NAME.fullmatch(string(value, where)) or value.endswith((" ", ".")):
        raise UsageError(
            f"{where}: {value!r} cannot be the name of a folder "
            "(a letter or digit first, then letters, digits, spaces and ._+()=-, no space or dot at the end)"
        )
    if _DEVICE.fullmatch(value):
        raise UsageError(f"{where}: {value!r} cannot be the name of a folder: Windows has a device of that name")
    if len(value) > _LONGEST_NAME:
        raise UsageError(
            f"{where}: {shown(value)} cannot be the name of a folder: it has {len(value)} characters, expected "
            f"{_LONGEST_NAME} at most"
        )
    return value


def folder_names(names: Iterable[str], where: str, taken: Iterable[str] = ()) -> None:
    """Different texts that can be the names of folders side by side, also where "a" and "A" are the same.

    :param taken: names of what else lies there.
    """
    found: dict[str, str | None] = {name.lower(): None for name in taken}
    for name in names:
        folder_name(name, where)
        if name.lower() in found:
            other = found[name.lower()]
            if other is None:
                raise UsageError(f"{where}: {name!r} is the name of what the results are written to: expected another")
            raise UsageError(f"{where}: {other!r} and {name!r} are one folder on a disk that does not tell case apart")
        found[name.lower()] = name


def size(value: Any, where: str) -> int:
    """A whole number of at least 1."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise UsageError(f"{where}: expected a whole number of at least 1, got {shown(value)}")
    return value


def number(value: Any, where: str) -> float:
    """A number, not a truth value."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise UsageError(f"{where}: expected a number, got {shown(value)}")
    return value


def filled_list(value: Any, where: str) -> list[Any]:
    """A list that is not empty."""
    if not isinstance(value, list | tuple) or not value:
        raise UsageError(f"{where}: expected a list with at least one entry, got {shown(value)}")
    return list(value)


def choice(value: Any, where: str) -> dict[str, Any]:
    """{"name": ..., keyword: value, ...}: a class and its keywords."""
    choice = settings_of(value, where, own=())
    if "name" not in choice:
        raise UsageError(f"{where}: 'name' is missing")
    string(choice["name"], f"{where}: name")
    return choice


def settings_of(value: Any, where: str, own: tuple[str, ...]) -> dict[str, Any]:
    """Keywords of a constructor; `own` are those that the suite itself passes."""
    if not isinstance(value, dict):
        raise UsageError(f"{where}: expected keys with values, got {shown(value)}")
    for key, entry in value.items():
        if key in own:
            raise UsageError(f"{where}: {key!r} cannot be set here, the leaderboard says it for all rows")
        if not _is_plain(entry):
            raise UsageError(f"{where}: {key}: expected text, numbers, true or false, or lists, got {shown(entry)}")
        for one in entry if isinstance(entry, list) else [entry]:
            if one is not None and _SIZE_NAME.fullmatch(key):
                size(one, f"{where}: {key}")
            elif one is not None and _RATE_NAME.fullmatch(key) and not number(one, f"{where}: {key}") > 0:
                raise UsageError(f"{where}: {key}: expected a number above 0, got {one:g}")
    return value


def _is_plain(value: Any) -> bool:
    """Whether JSON can hold it (YAML also has dates, sets and bytes)."""
    try:
        json.dumps(value)
    except TypeError:
        return False
    return True


def shown(value: Any) -> str:
    """A value as an error shows it: short, in one line."""
    text = "nothing" if value is None else repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
