"""The colours of figures on a dark page: those that the report's own page has there."""

from __future__ import annotations

import re

from ftml_bench.results.looks import COLORS, GREY, GREY_ON_DARK, ON_DARK

PAGE = "#131416"  # furo's
# The style's own colours, of page, grid, lines and letters.
_STYLE = {"#ffffff": PAGE, "#e6e6e6": "#2e3136", "#444444": "#c8ccd0", "#666666": "#a0a6ac", "#888888": "#8a9096"}
DARK = {
    **_STYLE,
    **{light.lower(): dark for light, dark in zip((*COLORS, GREY), (*ON_DARK, GREY_ON_DARK), strict=True)},
}


def darkened(svg: str) -> str:
    """An SVG file of Matplotlib's for a dark page; what says no colour, black by default, becomes white."""
    text = re.sub(r"#[0-9a-fA-F]{6}\b", lambda color: DARK.get(color[0].lower(), color[0]), svg)
    return text.replace("<svg ", '<svg fill="#FFFFFF" ', 1)
