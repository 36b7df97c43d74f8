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
    """A class's docstring without that of a constructor which is not ours: of Avalanche's, where ours takes others."""
    init = cls.__init__
    own = init.__doc__ and getattr(init, "__module__", "").startswith("ftml_bench")
    foreign = None if own else inspect.getdoc(init)
    return "\n".join(lines).replace(foreign or "\0", "").splitlines()


def setup(app) -> dict[str, bool]:
    """Changes docstrings on their way to the pages only."""
    app.connect("autodoc-process-docstring", _escape)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
