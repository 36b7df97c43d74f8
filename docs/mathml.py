"""Formulas as MathML, which browsers draw themselves: no script has to be fetched to see them."""

from docutils import nodes
from docutils.utils.math.latex2mathml import tex2mathml
from letters import plain


def _inline(writer, node: nodes.math) -> None:
    writer.body.append(plain(tex2mathml(node.astext())))
    raise nodes.SkipNode


def _block(writer, node: nodes.math_block) -> None:
    writer.body.append(f'<div class="formula">{plain(tex2mathml(node.astext(), as_block=True))}</div>')
    raise nodes.SkipNode


def setup(app) -> dict[str, bool]:
    """Registers the renderer; Sphinx takes the only one that is added."""
    app.add_html_math_renderer("mathml", (_inline, None), (_block, None))
    app.config.html_math_renderer = "mathml"
    return {"parallel_read_safe": True, "parallel_write_safe": True}
