"""ARCHITECTURE.md against the code: who imports whom, and that what it names is there."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")


def floors():
    """The rooms from the lowest to the highest, those of a floor from left to right."""
    table = PAGE.split("| floor |")[1].split("\n\n")[0]
    rows = [re.findall(r"`(\w+)`", row) for row in table.splitlines()[2:]]
    return [room for row in reversed(rows) for room in row]


def modules():
    """Every module of the package and its file."""
    for folder in ("ftml_bench", "strategies", "benchmarks"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            yield ".".join(parts[1:] if parts[0] == "ftml_bench" else parts).removesuffix(".__init__"), path


def imported(path):
    """The modules of the package that a file imports, anywhere in it."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (a.name.removeprefix("ftml_bench.") for a in node.names if a.name.startswith("ftml_bench."))
        elif isinstance(node, ast.ImportFrom) and node.module == "ftml_bench":
            yield from (a.name for a in node.names if not a.name.startswith("__"))
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("ftml_bench."):
            yield node.module.removeprefix("ftml_bench.")


def upwards(rooms, name, names):
    """The imports of a module that the table does not allow."""
    own = name.split(".")[0]
    return [other for other in names if rooms.index(other.split(".")[0]) > rooms.index(own)]


def test_nothing_imports_upwards():
    rooms = floors()
    found = {name: upwards(rooms, name, imported(path)) for name, path in modules() if name not in ("__init__", "")}
    assert {name: others for name, others in found.items() if others} == {}


def test_the_table_has_every_room_once():
    rooms = floors()
    assert sorted(rooms) == sorted({name.split(".")[0] for name, _ in modules()} - {"__init__", ""})


def test_an_import_upwards_would_be_seen():
    assert upwards(floors(), "recorded.graphs", ["strategies.ftml", "buffer"]) == ["strategies.ftml"]
    assert upwards(floors(), "buffer.storage", ["adaptation"]) == ["adaptation"]


def test_engines_and_recordings_name_no_learner():
    for room in ("adaptation", "recorded", "buffer"):
        for path in (ROOT / "ftml_bench" / room).glob("*.py"):
            assert not re.search(r"\bimport FTML\b|strategies\.", path.read_text(encoding="utf-8")), path


NAMED = sorted({name for name in re.findall(r"`([\w/]+\.(?:py|yaml|json))`", PAGE) if "NAME" not in name})


@pytest.mark.parametrize("name", NAMED)
def test_files_that_the_page_names_are_there(name):
    places = [ROOT, *(path for path in (ROOT, ROOT / "ftml_bench") for path in path.iterdir() if path.is_dir())]
    assert any((place / name).is_file() for place in places)
