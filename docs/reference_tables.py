"""The directive `reference`: a table of the fields of a class, or of the names in a constant (see `reference_rows`).

A name that nothing is said of, and words for a name that is not there, fail the build, and the tests.
"""

from __future__ import annotations

from docutils import nodes
from docutils.parsers.rst import directives
from reference_rows import rows
from sphinx.util.docutils import SphinxDirective


class Reference(SphinxDirective):
    """See the module."""

    required_arguments = 1
    has_content = True
    option_spec = {"renamed": directives.unchanged}

    def run(self) -> list[nodes.Node]:
        """The table."""
        try:
            found = rows(self.arguments[0], "\n".join(self.content), self.options.get("renamed"))
        except ValueError as error:
            raise self.error(str(error)) from error
        lines = ["| | |", "|---|---|", *(f"| `{name}` | {words} |" for name, words in found)]
        return self.parse_text_to_nodes("\n".join(lines))


def setup(app) -> dict[str, bool]:
    """Adds the directive."""
    app.add_directive("reference", Reference)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
