"""Single letters of formulas as plain letters in italics.

A browser takes those of MathML from the block of mathematical italics, which few fonts have: without one of them every
letter is an empty box.
"""

import re

LETTER = re.compile(r"<mi>(\w)</mi>")


def plain(mathml: str) -> str:
    """MathML whose single letters need no mathematics font; `static/site.css` slants them."""
    return LETTER.sub(r'<mi mathvariant="normal" class="letter">\1</mi>', mathml)
