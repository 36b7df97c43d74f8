"""The report as one HTML page that needs nothing beside it."""

from __future__ import annotations

import base64
from collections.abc import Iterable
from html import escape
from pathlib import Path
from typing import Any

import yaml

from ftml_bench.report.contents import Contents
from ftml_bench.report.tables import Table
from ftml_bench.runs.definition import Definition
from ftml_bench.runs.record import Run

_CSS = """
:root { color-scheme: light; }
body { margin: 0 auto; max-width: 84rem; padding: 1.5rem 1rem 4rem; color: #1c1c1c; background: #fff;
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
h1 { font-size: 1.7rem; margin: 0; }
h2 { font-size: 1.25rem; margin: 2.5rem 0 .5rem; padding-top: 1rem; border-top: 1px solid #ddd; }
h3 { font-size: 1rem; margin: 1.75rem 0 .5rem; }
p.lead { color: #555; margin: .25rem 0 1rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .85rem; font-variant-numeric: tabular-nums; }
th, td { padding: .35rem .7rem; text-align: right; white-space: nowrap; border-bottom: 1px solid #e8e8e8; }
th { color: #555; font-weight: 600; border-bottom-color: #999; white-space: normal; vertical-align: bottom; }
th:first-child, td:first-child { text-align: left; position: sticky; left: 0; background: #fff; }
@media (max-width: 40rem) { td:first-child { white-space: normal; } }
ul.notes { color: #555; font-size: .85rem; padding-left: 1.2rem; margin: .6rem 0; }
.warning { border-left: 4px solid #D55E00; background: #fdf3ec; padding: .6rem 1rem; font-size: .9rem; }
.warning ul { margin: .3rem 0 0; padding-left: 1.2rem; }
img { width: 100%; min-width: 40rem; height: auto; display: block; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .2rem 1rem; font-size: .85rem; }
dt { color: #555; }
dd { margin: 0; overflow-wrap: anywhere; }
pre { font-size: .8rem; overflow-x: auto; background: #f6f6f6; padding: 1rem; }
summary { cursor: pointer; }
"""


def render(contents: Contents, figures: list[list[Path]]) -> str:
    """The page.

    :param figures: of each benchmark the SVG figures.
    """
    definition, runs = contents.definition, [run for _, run in contents.runs]
    parts = [
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>{escape(definition.name)}</title>',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<style>{_CSS}</style>\n</head>\n<body>",
        f'<h1>{escape(definition.name)}</h1>\n<p class="lead">{escape(definition.description)}</p>',
    ]
    parts += [f'<div class="warning">{escape(remark)}</div>' for remark in contents.remarks]
    if contents.problems:
        items = "".join(f"<li>{escape(problem)}</li>" for problem in contents.problems)
        parts.append(f'<div class="warning">Cells without a result:<ul>{items}</ul></div>')
    for (results, *others), files in zip(contents.tables, figures, strict=True):
        drawn = "\n".join(figure(file, results.heading) for file in files)
        parts.append(f"<h2>{escape(results.heading)}</h2>\n{drawn}\n{html(results)}")
        parts += [f"<h3>{escape(table.heading)}</h3>\n{html(table)}" for table in others]
    parts.append(f"<h2>How it was made</h2>\n{_provenance(definition, runs)}")
    text = yaml.safe_dump(definition.to_dict(), sort_keys=False, allow_unicode=True)
    parts.append(f"<details><summary>The definition</summary><pre>{escape(text)}</pre></details>\n</body>\n</html>\n")
    return "\n".join(parts)


def html(table: Table) -> str:
    """A table with its notes."""
    head = "".join(f'<th scope="col">{escape(column)}</th>' for column in table.columns)
    body = "\n".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in table.rows)
    notes = "".join(f"<li>{escape(note)}</li>" for note in table.notes)
    return (
        f'<div class="scroll"><table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody></table></div>\n'
        f'<ul class="notes">{notes}</ul>'
    )


def figure(file: Path, title: str) -> str:
    """An SVG file as an image that needs no file."""
    data = base64.b64encode(file.read_bytes()).decode()
    shown = "what was measured" if file.stem.endswith("-measures") else "how fast each round is learned"
    alt = f"{title}: {shown}, over rounds"
    return f'<div class="scroll"><img alt="{escape(alt)}" src="data:image/svg+xml;base64,{data}"></div>'


def _provenance(definition: Definition, runs: list[Run]) -> str:
    records = [run.record for run in runs]
    facts = {"definition": definition.hash, "seeds": ", ".join(map(str, definition.seeds))}
    for name in ("commit", "device", "machine", "command", "engine"):
        facts[name] = _distinct(record.get(name) for record in records)
    for package in sorted({package for record in records for package in record.get("versions", {})}):
        facts[package] = _distinct(record.get("versions", {}).get(package) for record in records)
    started = [record["started"] for record in records if record.get("started")]
    finished = [record["finished"] for record in records if record.get("finished")]
    if started and finished:
        facts["run"] = f"{min(started)} to {max(finished)}"
    items = "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in facts.items() if value)
    return f"<dl>{items}</dl>"


def _distinct(values: Iterable[Any]) -> str:
    """The different values among those of all runs: more than one means that the runs were not made alike."""
    return "; ".join(sorted({str(value) for value in values if value is not None}))
