"""What is public, and what of it is not documented: the build fails on any, and so do the tests."""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType

API = Path(__file__).parent / "api"


def modules() -> list[str]:
    """The modules that the API pages document whole."""
    return re.findall(r"automodule:: (\S+)", "\n".join(p.read_text(encoding="utf-8") for p in sorted(API.glob("*.md"))))


def names(module: ModuleType) -> list[str]:
    """A module's public names: its `__all__`, else the classes and functions that it defines."""
    if hasattr(module, "__all__"):
        return list(module.__all__)
    return [
        name
        for name, value in vars(module).items()
        if not name.startswith("_") and getattr(value, "__module__", None) == module.__name__
    ]


def undocumented(module: ModuleType) -> list[str]:
    """The public names of a module, and the public methods of its classes, that have no docstring."""
    missing = []
    for name in names(module):
        value = getattr(module, name)
        if not (inspect.isclass(value) or inspect.isroutine(value)):
            continue  # a constant is shown with its value
        missing += [name] if not value.__doc__ else []
        if inspect.isclass(value):
            missing += [
                f"{name}.{method}" for method in _own_methods(value) if not inspect.getdoc(getattr(value, method))
            ]
    return missing


def _own_methods(value: type) -> Iterable[str]:
    """The public methods and properties that a class of ours defines itself."""
    for name, member in vars(value).items():
        if not name.startswith("_") and (inspect.isroutine(member) or isinstance(member, property)):
            yield name


def _check(app, env) -> None:
    from sphinx.util import logging

    logger = logging.getLogger(__name__)
    shown = env.domaindata["py"]["objects"]
    for module_name in modules():
        module = importlib.import_module(module_name)
        for name in undocumented(module):
            logger.warning("%s.%s has no docstring", module_name, name)
        for name in names(module):
            if f"{module_name}.{name}" not in shown and (
                inspect.isclass(getattr(module, name)) or inspect.isroutine(getattr(module, name))
            ):
                logger.warning("%s.%s is on no page", module_name, name)


def setup(app) -> dict[str, bool]:
    """Checks when all pages have been read."""
    app.connect("env-check-consistency", _check)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
