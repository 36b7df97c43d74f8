"""tox's environments that run the suite's own commands, and what calls them."""

import configparser
import re
from pathlib import Path

import pytest

from ftml_bench import cli
from ftml_bench.runs import definition as definitions

ROOT = Path(__file__).parent.parent
CALLERS = [".ci/run", "README.md", "CONTRIBUTING.md", *(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))]


def command(environment, given=""):
    """What tox runs, with what stands behind "--"."""
    parser = configparser.ConfigParser(interpolation=None)
    parser.read(ROOT / "tox.ini", encoding="utf-8")
    text = parser[f"testenv:{environment}"]["commands"]
    return re.sub(r"\{posargs(?::(.*?))?\}", lambda match: given or match[1] or "", text).split()


def test_a_leaderboard_that_is_named_is_run_and_quick_if_none_is():
    assert command("leaderboard") == ["ftml-bench", "leaderboard", "quick"]
    assert command("leaderboard", "regret --seeds 0") == ["ftml-bench", "leaderboard", "regret", "--seeds", "0"]


@pytest.mark.parametrize("name", ["report", "verify"])
def test_a_folder_that_is_named_is_reported_and_verified(name):
    assert command(name, "runs/quick") == ["ftml-bench", name, "runs/quick"]
    assert cli.main([*command(name)[1:]]) == 2  # one line that says that DIR is missing


@pytest.mark.parametrize("file", CALLERS)
def test_what_is_given_to_the_leaderboards_environment_begins_with_a_name(file):
    for name in re.findall(r"tox -e leaderboard -- (\S+)", (ROOT / file).read_text(encoding="utf-8")):
        assert name == "NAME" or name in definitions.available()


def test_ci_verifies_every_committed_result():
    [line] = [one for one in (ROOT / ".ci/run").read_text().splitlines() if "ftml-bench verify" in one]
    boards = {one for pattern in line.split() if "*" in pattern for one in ROOT.glob(pattern.rstrip(")"))}
    assert boards == set((ROOT / "leaderboards/results").rglob("leaderboard.yaml"))
