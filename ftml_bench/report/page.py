"""The report as one HTML page that needs nothing beside it: no network, no other file."""

from __future__ import annotations

import base64
import hashlib
import re
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any
from unicodedata import category
from urllib.parse import quote

import yaml
from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup

from ftml_bench.report import charts, downloads, figures, making, overview
from ftml_bench.report.contents import Contents
from ftml_bench.report.dark import following
from ftml_bench.report.tables import NONE, Table, ranked, unbroken
from ftml_bench.results.looks import looks

_SITE = files("ftml_bench.report") / "site"
_NUMBER = re.compile(r"(?:> )?([-+]?\d+(?:\.\d+)?)([kMGT]?)\b")
_COORDINATES = re.compile(r' (?:d|x|y)="[^"]*"|translate\([^)]*\)')  # of an SVG file: to a hundredth of a point
_DECIMALS = re.compile(r"(\.\d\d)\d+")
_SAFE = " !$()*+,/:;=?@[]^{|}~'"  # what stands for itself in the address of an SVG file
_UNITS = {"": 1, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}


def render(contents: Contents, folder: Path) -> str:
    """The page.

    :param folder: where the figures are, as SVG files, and the pictures of tasks, if there are any.
    """
    definition, runs = contents.definition, contents.runs
    look = looks(definition.benchmarks)
    benchmarks = [
        {
            "result": result,
            "tables": [Markup(html(table)) for table in tables],
            "drawn": [Markup(picture(folder / f"{name}.svg", tables[0].heading)) for name in names],
            "tasks": [Markup(picture(file, tables[0].heading)) for file in tasks(folder, result.spec.name)],
            "caption": figures.caption(result, look),
            "rows": [making.of_row(definition, result.spec.name, row.name, runs) for row in result.spec.rows],
        }
        for result, tables, names in zip(contents.results, contents.tables, contents.figures(), strict=True)
    ]
    scripts = [_text("uplot/uPlot.iife.min.js"), _text("page.js")]
    return _template("page.html").render(
        contents=contents,
        benchmarks=benchmarks,
        overview=Markup(picture(folder / f"{overview.NAME}.svg", definition.name)) if contents.results else "",
        overview_caption=overview.caption(contents.results),
        facts=making.of_all(definition, runs),
        archive=downloads.address(contents),
        definition=yaml.safe_dump(definition.to_dict(), sort_keys=False, allow_unicode=True),
        data=[charts.of_benchmark(result, runs, look) for result in contents.results],
        style=Markup(_text("uplot/uPlot.min.css") + _text("page.css")),
        license=Markup(_text("uplot/LICENSE")),
        scripts=[Markup(script) for script in scripts],
        hashes=[_hash(script) for script in scripts],
    )


def html(table: Table) -> str:
    """A table with its notes. Every cell says by which number it is sorted."""
    return _template("table.html").render(table=table, value=sort_value, unbroken=unbroken, ranked=ranked)


def tasks(folder: Path, benchmark: str) -> list[Path]:
    """The picture of a benchmark's tasks among the figures, if it is there."""
    file = folder / f"{benchmark}-tasks.png"
    return [file] if file.is_file() else []


def picture(file: Path, title: str) -> str:
    """An SVG or PNG file as an image that needs no file."""
    if file.suffix == ".svg":
        data = f"svg+xml,{quote(_short(following(file.read_text(encoding='utf-8'))), safe=_SAFE)}"
    else:
        data = f"png;base64,{base64.b64encode(file.read_bytes()).decode()}"
    shown = {
        "measures": "what was measured, over rounds",
        "tasks": "the first data of the first rounds",
        overview.NAME: "how fast every row learns, and what it takes",
    }
    what = shown.get(file.stem.rpartition("-")[2], "how fast each round is learned, over rounds")
    address = Markup(f"data:image/{data}")  # nothing in it ends an attribute
    return _template("picture.html").render(address=address, alt=f"{title}: {what}", tasks=file.suffix == ".png")


def _short(svg: str) -> str:
    """The same picture in fewer letters. Double quotes, which an address must escape, become single ones."""
    text = " ".join(re.sub(r"<!--.*?-->", "", svg, flags=re.DOTALL).split()).replace("> <", "><")
    text = _COORDINATES.sub(lambda found: _DECIMALS.sub(r"\1", found[0]), text)
    return text if "'" in text else text.replace('"', "'")


def sort_value(cell: str) -> str:
    """What a cell is sorted by: its last number of those with arrows between, without units; empty: text, or none.

    >>> sort_value("149.2 ± 3.0 → 40.1 ± 2.0"), sort_value("1.2M"), sort_value("> 900"), sort_value("ahead")
    ('40.1', '1200000', '900.001', '')
    """
    text = cell.rpartition("→")[2].strip()
    found = _NUMBER.match(text)
    if text == NONE or not found:
        return ""
    number = float(found[1]) * _UNITS[found[2]] + (0.001 if text.startswith(">") else 0)
    return f"{number:.12g}"


@cache
def _environment() -> Environment:
    """Templates that escape what they are given, so that names and texts of a definition are shown, never obeyed."""
    environment = Environment(
        loader=FunctionLoader(_text),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_visible,
    )
    environment.policies["json.dumps_kwargs"] = {"sort_keys": True, "separators": (",", ":")}
    return environment


def _visible(value: Any) -> Any:
    """Control characters of a text are written out, as in a terminal; its lines and spaces stay."""
    if not isinstance(value, str) or isinstance(value, Markup) or value.isprintable():
        return value
    is_control = (category(c).startswith("C") and c not in "\n\t" for c in value)
    pairs = zip(value, is_control, strict=True)
    return "".join(c.encode("unicode_escape", "surrogatepass").decode() if escape else c for c, escape in pairs)


def _template(name: str) -> Any:
    return _environment().get_template(name)


def _text(name: str) -> str:
    return (_SITE / name).read_text(encoding="utf-8")


def _hash(script: str) -> str:
    """Of a script, by which the page's own rules let it run and no other."""
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
