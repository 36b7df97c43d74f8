"""The tables that stand in a leaderboard's folder against those that its curves make."""

from __future__ import annotations

import base64
import io
import json
import math
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from ftml_bench.errors import UsageError
from ftml_bench.report import charts, downloads, figures, measures, overview, page
from ftml_bench.report.contents import Contents, compute
from ftml_bench.results.looks import looks
from ftml_bench.runs.verify import Fault

_MADE_BY = re.compile(r"Matplotlib v[\w.+]+")
_NUMBER = re.compile(r"-?\d+(?:\.\d+)?")
_CHARTS = re.compile(r'<script type="application/json" id="data">(.*?)</script>', re.DOTALL)
_ARCHIVE = re.compile(f'href="{re.escape(downloads.PREFIX)}([^"]*)"')
_TOLERANCE = 0.01  # points, on the page


def faults(root: Path) -> list[Fault]:
    """What is not what `ftml-bench report` would write. Figures are drawn again and compared number by number, if they
    were drawn by the Matplotlib that is installed: others place things otherwise.

    :raises UsageError: the report refuses the folder.
    """
    contents = compute(root)
    found = []
    for name, text in (
        ("leaderboard.md", contents.markdown()),
        ("leaderboard.csv", contents.csv()),
        ("seeds.csv", contents.seeds_csv()),
    ):
        standing = _text(root / name)
        if standing is None:
            found.append(Fault(name, "is missing"))
        elif standing != text:
            found.append(Fault(name, f"is not what the curves make: {_first_difference(standing, text)}"))
    standing = _text(root / "report.html")
    if standing is None:
        return [*found, Fault("report.html", "is missing")]
    found += _of_data(contents, standing)
    drawn = _drawn(contents)
    for (results, *others), names in zip(contents.tables, contents.figures(), strict=True):
        for table in (results, *others):
            if page.html(table) not in standing:
                found.append(Fault("report.html", f"the table {table.heading!r} is not what the curves make"))
        for tasks in page.tasks(root / "figures", names[0]):
            if page.picture(tasks, results.heading) not in standing:
                found.append(Fault("report.html", f"its picture of tasks is not figures/{tasks.name}"))
        for name in names:
            found += _of_figure(root, name, results.heading, standing, drawn[name])
    if contents.results:
        found += _of_figure(root, overview.NAME, contents.definition.name, standing, drawn[overview.NAME])
    return found


def _of_figure(root: Path, name: str, title: str, standing: str, drawn: str) -> Iterator[Fault]:
    """:param title: of what the page shows it."""
    svg = root / "figures" / f"{name}.svg"
    if not all(svg.with_suffix(f".{kind}").is_file() for kind in figures.KINDS):
        yield Fault(f"figures/{name}", "is missing")
    elif page.picture(svg, title) not in standing:
        yield Fault("report.html", f"its figure is not figures/{name}.svg")
    elif not _same_picture(svg.read_text(encoding="utf-8"), drawn):
        yield Fault(f"figures/{name}.svg", "does not show what the curves make")


def _of_data(contents: Contents, standing: str) -> Iterator[Fault]:
    """What the page's charts show, and what it holds to be taken away."""
    look = looks(contents.definition.benchmarks)
    expected = [charts.of_benchmark(result, contents.runs, look) for result in contents.results]
    data = _CHARTS.search(standing)
    if data is None or not _same_data(json.loads(data[1]), json.loads(json.dumps(expected))):
        yield Fault("report.html", "its charts do not show what the curves make")
    archive = _ARCHIVE.search(standing)
    if archive is None or _unzipped(archive[1]) != downloads.texts(contents):
        yield Fault("report.html", "its archive does not hold the data of the runs")


def _same_data(standing: Any, expected: Any) -> bool:
    """Whether two values of JSON are the same, numbers up to rounding."""
    if isinstance(expected, dict):
        same = isinstance(standing, dict) and standing.keys() == expected.keys()
        return same and all(_same_data(standing[key], value) for key, value in expected.items())
    if isinstance(expected, list):
        same = isinstance(standing, list) and len(standing) == len(expected)
        return same and all(map(_same_data, standing, expected))
    if isinstance(expected, float) and isinstance(standing, (int, float)):
        return math.isclose(standing, expected, rel_tol=1e-3, abs_tol=1e-9)
    return bool(standing == expected)


def _unzipped(archive: str) -> dict[str, str] | None:
    """The texts of an archive; None of what is none."""
    try:
        with zipfile.ZipFile(io.BytesIO(base64.b64decode(archive))) as file:
            return {name: file.read(name).decode() for name in file.namelist()}
    except (zipfile.BadZipFile, ValueError):
        return None


def _drawn(contents: Contents) -> dict[str, str]:
    """The figures as SVG, by name."""
    look = looks(contents.definition.benchmarks)
    with TemporaryDirectory() as temporary:
        for result in contents.results:
            figures.draw(result, look, Path(temporary), ["svg"])
            measures.draw(result, look, Path(temporary), ["svg"])
        if contents.results:
            overview.draw(contents.results, look, Path(temporary), ["svg"])
        return {file.stem: file.read_text(encoding="utf-8") for file in Path(temporary).glob("*.svg")}


def _same_picture(standing: str, drawn: str) -> bool:
    """Whether all numbers of two SVG files are the same, up to rounding; True for those of two Matplotlibs."""
    if _MADE_BY.findall(standing) != _MADE_BY.findall(drawn):
        return True
    texts, expected = _NUMBER.split(standing), _NUMBER.split(drawn)
    if len(texts) != len(expected):
        return False
    numbers = zip(_NUMBER.findall(standing), _NUMBER.findall(drawn), strict=True)
    return all(abs(float(a) - float(b)) <= _TOLERANCE for a, b in numbers)


def _text(file: Path) -> str | None:
    try:
        return file.read_bytes().decode()
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{file}: cannot be read: {error}") from error


def _first_difference(standing: str, text: str) -> str:
    lines, expected = standing.split("\n"), text.split("\n")
    pairs = zip([*lines, "its end"], [*expected, "its end"], strict=False)
    number, (line, other) = next((i, pair) for i, pair in enumerate(pairs, 1) if pair[0] != pair[1])
    return f"line {number} is {line[:60]!r}, expected {other[:60]!r}"
