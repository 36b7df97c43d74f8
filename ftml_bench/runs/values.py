"""Plain values as YAML gives them, bounded in size, depth and digits, and checked one by one: what came, what was
expected, and where, in one line.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

import yaml

from ftml_bench import errors
from ftml_bench.errors import UsageError, encodable

MOST_VALUES = 10_000  # of a text, aliases written out; our definitions have less than 300
DEEPEST = 20  # lists and mappings in each other
LARGEST = 2**63  # whole numbers stay below it: nearly everything holds them in 64 bits

_FOLDER_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9 ._+()=-]*")
_LONGEST_NAME = 200  # of the 255 bytes that disks have; figures and temporary files are named after it
# Windows takes these for devices, in any case, whatever stands behind a dot; others have characters not taken here.
_DEVICE = re.compile(r"(con|prn|aux|nul|(com|lpt)[0-9]) *(\..*)?", re.IGNORECASE)


def parse_yaml(text: str, where: str) -> Any:
    """The plain values of a YAML text. 1e-3 is a number and 1:30 is text, as in YAML 1.2, and a key may stand only once
    in a mapping.

    :raises UsageError: not YAML, too large, or nested too deep or in itself; names the line.
    """
    try:
        return yaml.load(text, _Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        line = f" line {mark.line + 1}" if mark else ""
        raise UsageError(f"{where}:{line} {error.problem or error.context}") from error
    except yaml.YAMLError as error:
        raise UsageError(f"{where}: not YAML: {' '.join(str(error).split())}") from error
    except ValueError as error:  # of PyYAML, such as a date that there is not
        raise UsageError(f"{where}: not YAML: {error}") from error


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader without its traps: repeated keys; 1e-3 read as text, 1:30 as 90 and 010 as 8; and texts of a
    few lines that stand for values without end.
    """

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self._depth = 0
        self._values = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        self._depth += 1
        self._values += 1
        self._bound(self._values, self._depth, self.peek_event())
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node

    def get_single_node(self) -> yaml.Node | None:
        node = super().get_single_node()
        if node is not None:
            self._measure(node, {})
        return node

    def _measure(self, node: yaml.Node, found: dict[yaml.Node, tuple[int, int]]) -> tuple[int, int]:
        """How many values a node stands for, aliases written out, and how deep they lie.

        What an alias names stands before it, so that nothing is measured twice.
        """
        if node not in found:
            found[node] = 0, 0  # until it is known
            inner = [n for pair in node.value for n in pair] if isinstance(node, yaml.MappingNode) else node.value
            measured = [self._measure(n, found) for n in inner] if isinstance(node, yaml.CollectionNode) else []
            found[node] = 1 + sum(size for size, _ in measured), 1 + max((depth for _, depth in measured), default=0)
            self._bound(*found[node], node)
        elif found[node] == (0, 0):
            self._refuse("a value is a part of itself", node)
        return found[node]

    def _bound(self, values: int, depth: int, at: Any) -> None:
        if values > MOST_VALUES:
            self._refuse(f"it stands for more than {MOST_VALUES} values", at)
        if depth > DEEPEST:
            self._refuse(f"nested deeper than {DEEPEST} lists and mappings", at)

    def _refuse(self, problem: str, at: Any) -> None:
        raise yaml.composer.ComposerError(None, None, problem, at.start_mark)

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except (AttributeError, LookupError) as error:  # of PyYAML, about a text that does not fit the tag before it
            problem = f"{shown(node.value)} is no {node.tag.rpartition(':')[2]}"
            raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark) from error

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

    def construct_scalar(self, node: yaml.ScalarNode | yaml.MappingNode) -> str:
        text = super().construct_scalar(node)
        if text != encodable(text):  # "\ud800", which no file could hold
            problem = f"{shown(text)} holds half a character"
            raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark)
        return text

    def construct_yaml_int(self, node: yaml.ScalarNode) -> int:
        text = self.construct_scalar(node)
        # Python reads no more than 4300 digits.
        number = int(text, 0) if len(text) <= len(str(LARGEST)) + 1 else LARGEST
        if abs(number) >= LARGEST:
            problem = f"a whole number of {len(text)} characters: expected less than 2 to the power of 63"
            raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark)
        return number


# PyYAML's are YAML 1.1: 1:30 is 90, 010 is 8.
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in found if not tag.endswith((":int", ":float"))]
    for first, found in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
for _tag, _pattern in {
    "int": r"[-+]?(0|[1-9]\d*|0x[0-9a-fA-F]+)",
    "float": r"[-+]?(\d+\.\d*|\.\d+|\d+(?=[eE]))([eE][-+]?\d+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
}.items():
    _Loader.add_implicit_resolver(
        f"tag:yaml.org,2002:{_tag}", re.compile(f"({_pattern})$", re.ASCII), list("-+.0123456789")
    )
_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_yaml_int)


def folder_name(value: str) -> str:
    """A text that can be the name of a folder on every system.

    Letters without accents alone: disks differ in how they write others.
    """
    if not _FOLDER_NAME.fullmatch(value) or value.endswith((" ", ".")):
        raise UsageError(
            f"{value!r} cannot be the name of a folder "
            "(a letter or digit first, then letters, digits, spaces and ._+()=-, no space or dot at the end)"
        )
    if _DEVICE.fullmatch(value):
        raise UsageError(f"{value!r} cannot be the name of a folder: Windows has a device of that name")
    if len(value) > _LONGEST_NAME:
        raise UsageError(
            f"{shown(value)} cannot be the name of a folder: it has {len(value)} characters, expected "
            f"{_LONGEST_NAME} at most"
        )
    return value


def folder_for(name: str) -> str:
    """What the folder of a class is called: of "module:Class" the class, without underscores before it."""
    name = name.split(":")[-1]
    return name.lstrip("_") or name


def folder_names(names: Iterable[str], taken: Iterable[str] = ()) -> None:
    """Different texts that can be the names of folders side by side, also where "a" and "A" are the same.

    :param taken: names of what else lies there.
    """
    found: dict[str, str | None] = {name.lower(): None for name in taken}
    for name in names:
        folder_name(name)
        if name.lower() in found:
            other = found[name.lower()]
            if other is None:
                raise UsageError(f"{name!r} is the name of what the results are written to: expected another")
            raise UsageError(f"{other!r} and {name!r} are one folder on a disk that does not tell case apart")
        found[name.lower()] = name


def shown(value: Any) -> str:
    """A value as an error shows it: short, in one line; of a file, where None stands for nothing."""
    return "nothing" if value is None else errors.shown(value)
