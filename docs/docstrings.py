"""Lets docstrings write shapes as (N, *input), where reStructuredText would take the star for emphasis."""

import re

SHAPE = re.compile(r"(?<=[( ])\*(?=\w+[,)])")


def _escape(app, what, name, obj, options, lines: list[str]) -> None:
    lines[:] = [SHAPE.sub(r"\*", line) for line in lines]


def setup(app) -> dict[str, bool]:
    """Changes docstrings on their way to the pages only."""
    app.connect("autodoc-process-docstring", _escape)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
