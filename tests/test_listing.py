"""What `ftml-bench list` says of leaderboards against what lies there."""

import csv
import re
from collections import Counter
from decimal import Decimal
from pathlib import Path

import pytest

from ftml_bench import cli
from ftml_bench.commands.about import LEADERBOARDS
from ftml_bench.runs import definition as definitions

RESULTS = Path(__file__).parent.parent / "leaderboards/results"


def test_every_leaderboard_is_spoken_of(capsys):
    assert set(LEADERBOARDS) == set(definitions.available())
    assert cli.main(["list"]) == 0
    out = capsys.readouterr().out
    for about in LEADERBOARDS.values():
        assert f"core-hours: {about.hours}; needs: {about.data}; asks: {about.question}\n" in out


MEASURED = sorted(name for name in LEADERBOARDS if (RESULTS / name / "leaderboard.yaml").is_file())


@pytest.mark.parametrize("name", MEASURED)
def test_the_core_hours_are_no_more_than_the_committed_results_took(name):
    """A cell has one thread, so its seconds are at least a core's; on a machine that does other work they are more.
    A tenth of an hour is the least that is said."""
    files = (RESULTS / name).rglob("timing.csv")
    seconds = sum(float(list(csv.DictReader(file.open()))[-1]["seconds"]) for file in files)
    assert seconds / 3600 / 4 < float(LEADERBOARDS[name].hours) <= max(0.1, round(seconds / 3600, 1))


def test_the_readme_says_the_same_core_hours():
    """Of the ablations their sum."""
    readme = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
    sentence = readme.partition("Core-hours of a leaderboard")[2].partition("\n")[0]
    said = dict(re.findall(r"`(\w+)`(?: together)? (\d+\.\d)(?=[,.])", sentence))
    hours = Counter()
    for name in MEASURED:
        hours[name.partition("/")[0]] += Decimal(LEADERBOARDS[name].hours)
    assert said == {name: str(sum_) for name, sum_ in hours.items()}
