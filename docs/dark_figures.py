"""Figures twice: as they are, and for readers of dark pages in the colours that the report's own page has there.

Of a picture that Matplotlib has drawn the SVG file beside it is shown, since it can be coloured anew; furo shows the
one whose class fits the page.
"""

from __future__ import annotations

import os
from pathlib import Path
from urllib.parse import unquote

from dark_colors import darkened
from docutils import nodes
from sphinx.transforms import SphinxTransform


class InTheDark(SphinxTransform):
    """Puts a dark figure beside each that Matplotlib has drawn."""

    default_priority = 100

    def apply(self, **kwargs) -> None:
        """Called for every page."""
        page = Path(self.env.doc2path(self.env.docname)).parent
        for node in list(self.document.findall(nodes.image)):
            node["uri"] = unquote(node["uri"])  # MyST leaves %20 in it, which Sphinx takes for a file's name
            drawn = (page / node["uri"]).with_suffix(".svg")
            if not drawn.is_file() or "Matplotlib" not in (svg := drawn.read_text(encoding="utf-8")):
                continue
            folder = Path(self.app.doctreedir, "dark", drawn.parent.parent.name)
            folder.mkdir(parents=True, exist_ok=True)
            dark = folder / f"{drawn.stem}-dark.svg"
            dark.write_text(darkened(svg), encoding="utf-8")
            other = node.deepcopy()
            for image, file, theme in ((node, drawn, "light"), (other, dark, "dark")):
                image["uri"] = Path(os.path.relpath(file, page)).as_posix()
                image["classes"].append(f"only-{theme}")
            node.parent.insert(node.parent.index(node) + 1, other)


def setup(app) -> dict[str, bool]:
    """Changes pages as they are read."""
    app.add_transform(InTheDark)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
