"""The page of keys and columns has all that there are, the files have no others; figures on dark pages."""

import csv
import json
import re
import sys
from pathlib import Path

import pytest

from ftml_bench import cli
from ftml_bench.results.looks import COLORS, ON_DARK

ROOT = Path(__file__).parent.parent
sys.path.append(str(ROOT / "docs"))
import dark_colors  # noqa: E402
import reference_rows  # noqa: E402

PAGE = (ROOT / "docs/reference.md").read_text(encoding="utf-8")
TABLES = re.findall(
    r"^### (\S+).*?```\{reference\} (\S+)\n(:renamed: (\S+)\n)?(.*?)```", PAGE, re.DOTALL | re.MULTILINE
)


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """The folder of a small leaderboard."""
    root = tmp_path_factory.mktemp("ran")
    settings = ["--benchmark-set", "rounds=2", "images_per_round=8", "held_out_per_round=8", "--arrivals", "4"]
    command = ["run", "LinearRegression", "FTML", *settings, "--steps", "1", "--jobs", "1", "--quiet"]
    assert cli.main([*command, "--out", str(root / "run")]) == 0
    return root / "run"


def test_of_everything_in_the_code_something_is_said():
    assert len(TABLES) == 10
    for _, source, _, renamed, content in TABLES:
        assert reference_rows.rows(source, content, renamed or None)


def test_a_name_without_words_is_found_and_words_without_a_name():
    with pytest.raises(ValueError, match="nothing is said of value"):
        reference_rows.rows("ftml_bench.runs.record:MEASURE_COLUMNS", "round: one\nmeasure: two")
    with pytest.raises(ValueError, match="has no measures"):
        reference_rows.rows("ftml_bench.runs.record:MEASURE_COLUMNS", "round: one\nmeasures: two")


@pytest.mark.parametrize("name", ["leaderboard.csv", "seeds.csv", "curve.csv", "timing.csv", "measures.csv"])
def test_the_columns_of_a_file_are_those_of_its_table(name, ran):
    [file] = ran.rglob(name)
    [(_, source, _, renamed, content)] = [table for table in TABLES if table[0] == name]
    names = [name for name, _ in reference_rows.rows(source, content, renamed or None)]
    with file.open(encoding="utf-8") as lines:
        assert next(csv.reader(lines)) == names


def test_the_keys_of_a_record_are_named(ran):
    record = json.loads(next(ran.rglob("record.json")).read_text(encoding="utf-8"))
    named = [set(re.findall(r"`(\w+)`", "".join(re.findall(r"^\| (`.*?) \|", part, re.MULTILINE))))
             for part in PAGE.partition("### record.json")[2].split("`protocol`:")]  # fmt: skip
    seldom = {"resumed", "reason", "diverged_round", "engine_note"}
    assert named[0] - seldom == set(record) - seldom
    assert named[1] == set(record["protocol"])


def test_figures_on_dark_pages_have_the_colours_of_the_reports_page():
    svg = (ROOT / "leaderboards/results/quick/figures/digits.svg").read_text(encoding="utf-8")
    dark = dark_colors.darkened(svg)
    found = {color.lower() for color in re.findall(r"#[0-9a-fA-F]{6}\b", dark)}
    assert found <= {color.lower() for color in dark_colors.DARK.values()}
    lines = {color.lower() for color in re.findall(r"stroke: (#\w+)", svg)} & {color.lower() for color in COLORS}
    expected = {on_dark.lower() for color, on_dark in zip(COLORS, ON_DARK, strict=True) if color.lower() in lines}
    assert expected <= found
    assert '<svg fill="#FFFFFF"' in dark
