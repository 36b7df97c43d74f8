"""What `ftml-bench list` says of leaderboards against what lies there."""

import csv
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
def test_the_core_hours_are_the_seconds_of_the_definitions_own_seeds(name):
    """A tenth of an hour is the least that is said; fewer seeds than the definition's are said, too."""
    seeds = definitions.load(name).seeds
    files = [file for seed in seeds for file in (RESULTS / name).rglob(f"seed-{seed}/timing.csv")]
    seconds = sum(float(list(csv.DictReader(file.open()))[-1]["seconds"]) for file in files)
    about = LEADERBOARDS[name]
    assert about.hours == f"{max(0.1, seconds / 3600):.1f}"
    there = len({file.parent.name for file in files})
    assert there == len(seeds) or (there == 1 and about.question.endswith("(hours: one seed)"))
