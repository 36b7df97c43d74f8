"""The role `results`: links to a committed leaderboard's page, data and definition, which are copied to the site."""

from __future__ import annotations

import shutil
from pathlib import Path

from docutils import nodes

RESULTS = Path(__file__).parent.parent / "leaderboards" / "results"
FILES = {
    "report.html": "page with everything",
    "leaderboard.csv": "numbers of the tables",
    "seeds.csv": "numbers of every seed",
    "leaderboard.yaml": "definition",
}


def _results(name, rawtext, text, lineno, inliner, options=None, content=None):
    """A line of links for the leaderboard that is named."""
    parts: list[nodes.Node] = []
    for file, title in FILES.items():
        parts += [nodes.Text(", " if parts else ""), nodes.reference(rawtext, title, refuri=f"results/{text}/{file}")]
    return [nodes.Text("Files: "), *parts, nodes.Text(".")], []


def _copy(app, error) -> None:
    if error is None and app.builder.format == "html":
        for folder in (file.parent for file in RESULTS.rglob("leaderboard.yaml")):
            target = Path(app.outdir, "results", folder.relative_to(RESULTS))
            target.mkdir(parents=True, exist_ok=True)
            for file in FILES:
                shutil.copy(folder / file, target / file)


def setup(app) -> dict[str, bool]:
    """Adds the role, and copies the files when everything else is written."""
    app.add_role("results", _results)
    app.connect("build-finished", _copy)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
