"""The colours of figures on a dark page, the same as those of the page's charts."""

from __future__ import annotations

from ftml_bench.results.looks import COLORS, GREY, GREY_ON_DARK, ON_DARK

PAGE = "#15181C"  # of the report's own page
# Of the style of figures: grid, lines and letters.
_STYLE = {"#e6e6e6": "#2e3136", "#444444": "#c8ccd0", "#666666": "#a0a6ac", "#888888": "#8a9096", "#999999": "#8a9096"}


def colors(page: str) -> dict[str, str]:
    """Colour on white -> colour on a dark page, itself of the colour `page`."""
    looks = zip((*COLORS, GREY), (*ON_DARK, GREY_ON_DARK), strict=True)
    return {"#ffffff": page, **_STYLE, **{light.lower(): dark for light, dark in looks}}


def following(svg: str) -> str:
    """An SVG file of Matplotlib's that is dark where the reader's pages are; what says no colour, black by default,
    becomes white then."""
    rules = [
        f'[style*="{what}: {light}"]{{{what}:{dark}!important}}'
        for light, dark in colors(PAGE).items()
        for what in ("fill", "stroke")
        if f"{what}: {light}" in svg
    ]
    style = f"<style>@media (prefers-color-scheme:dark){{svg{{fill:#fff}}{''.join(rules)}}}</style>"
    return svg.replace("</svg>", f"{style}</svg>")
