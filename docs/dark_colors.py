"""The colours of figures on a dark page of the site: those that the report's own page has there."""

from __future__ import annotations

import re

from ftml_bench.report.dark import colors

PAGE = "#131416"  # furo's
DARK = colors(PAGE)


def darkened(svg: str) -> str:
    """An SVG file of Matplotlib's for a dark page; what says no colour, black by default, becomes white."""
    text = re.sub(r"#[0-9a-fA-F]{6}\b", lambda color: DARK.get(color[0].lower(), color[0]), svg)
    return text.replace("<svg ", '<svg fill="#FFFFFF" ', 1)
