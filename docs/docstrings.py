"""Docstrings on their way to the pages: shapes as (N, *input), whose star reStructuredText would take for emphasis, and
a class's parameters once."""

import inspect
import re

SHAPE = re.compile(r"(?<=[( ])\*(?=\w+[,)])")


def _escape(app, what, name, obj, options, lines: list[str]) -> None:
    if what == "class":
        lines[:] = without_foreign_parameters(obj, lines)
    lines[:] = [SHAPE.sub(r"\*", line) for line in lines]


def without_foreign_parameters(cls: type, lines: list[str]) -> list[str]:
    """A class's docstring without that of a constructor of its base, whose parameters it does not take."""
    init = vars(cls).get("__init__")
    foreign = inspect.getdoc(cls.__init__) if init is not None and not init.__doc__ else None
    return "\n".join(lines).replace(foreign or "\0", "").splitlines()


def setup(app) -> dict[str, bool]:
    """Changes docstrings on their way to the pages only."""
    app.connect("autodoc-process-docstring", _escape)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
