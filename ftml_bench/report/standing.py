"""The tables that stand in a leaderboard's folder against those that its curves make."""

from __future__ import annotations

import re
from pathlib import Path
from tempfile import TemporaryDirectory

from ftml_bench.errors import UsageError
from ftml_bench.report import figures, measures, page
from ftml_bench.report.contents import Contents, compute
from ftml_bench.results.looks import looks
from ftml_bench.runs.verify import Fault

_MADE_BY = re.compile(r"Matplotlib v[\w.+]+")
_NUMBER = re.compile(r"-?\d+(?:\.\d+)?")
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
    drawn = _drawn(contents)
    for (results, *others), names in zip(contents.tables, contents.figures(), strict=True):
        for table in (results, *others):
            if page.html(table) not in standing:
                found.append(Fault("report.html", f"the table {table.heading!r} is not what the curves make"))
        for name in names:
            svg = root / "figures" / f"{name}.svg"
            if not all(svg.with_suffix(kind).is_file() for kind in (".svg", ".png", ".pdf")):
                found.append(Fault(f"figures/{name}", "is missing"))
            elif page.figure(svg, results.heading) not in standing:
                found.append(Fault("report.html", f"its figure is not figures/{name}.svg"))
            elif not _same_picture(svg.read_text(encoding="utf-8"), drawn[name]):
                found.append(Fault(f"figures/{name}.svg", "does not show what the curves make"))
    return found


def _drawn(contents: Contents) -> dict[str, str]:
    """The figures as SVG, by name."""
    look = looks(contents.definition.benchmarks)
    with TemporaryDirectory() as temporary:
        for result in contents.results:
            figures.draw(result, look, Path(temporary))
            measures.draw(result, look, Path(temporary))
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
