"""Numbers in README and on the site's pages follow from the committed results."""

from __future__ import annotations

import re

import pytest

from tests.results.marks import PAGES, ROOT, unmarked, written

# Pages of which every number follows from results.
SMALL = [
    f"docs/results-{name}.md"
    for name in ("quick", "rainbow-mnist-small", "cifar100-small", "pose-small", "colored", "regret", "avalanche")
]
# Numbers of results that no committed curve makes: runs on the tuning seed.
ELSEWHERE = ("a learning rate of 0.003, FTML", "(with 0.01 it")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_marked_numbers_are_what_the_curves_make(page):
    text = page.read_text(encoding="utf-8")
    assert written(text).splitlines() == text.splitlines()


def test_a_number_that_was_changed_is_seen():
    text = 'needs <!-- = mean(digits, "FTML", "first", "half 2", 0) -->40<!-- / --> datapoints'
    assert "-->36<!--" in written(text)
    table = (
        '<!-- table: late(digits, "at 100", 3) -->\n\n| | error |\n|---|--:|\n| FTML | ? |\n| FromScratch, x | ? |\n'
    )
    assert written(table).endswith(
        "| FTML | **0.098\u00a0±\u00a00.002** |\n| FromScratch, x | 0.138\u00a0±\u00a00.003 |\n"
    )


def test_of_halves_the_second_counts_and_is_bold():
    """FollowTheLeader needs more in the first half, and may need less than others in the second."""
    rows = "".join(f"| {name} | ? |\n" for name in ("FTML", "FromScratch"))
    table = written(f'<!-- table: halves(digits, "first", 1) -->\n\n| | datapoints |\n|---|--:|\n{rows}')
    assert re.search(
        r"^\| FTML \| \d[\d.]+\u00a0±\u00a0[\d.]+ → \*\*[\d.]+\u00a0±\u00a0[\d.]+\*\* \|$", table, re.MULTILINE
    )
    assert table.count("**") == 2


def test_of_ties_all_are_bold():
    """Of coloured digits two of these rows sit on the floor in the second half."""
    rows = "".join(f"| {name} | ? |\n" for name in ("FTML", "FollowTheLeader", "TrainOnEverything", "FromScratch"))
    table = written(f'<!-- table: late(colored, "first", 1) -->\n\n| | datapoints |\n|---|--:|\n{rows}')
    assert re.findall(r"^\| (\w+) \| \*\*10\.0", table, re.MULTILINE) == ["FTML", "FollowTheLeader"]


def results_of(page):
    """What a page says of results, without the tables that a leaderboard made."""
    text = page.read_text(encoding="utf-8")
    if page.name == "README.md":
        return text.split("## Results\n")[1].split("## Speed\n")[0].replace("Means ± standard errors", "")
    return text.split("```{include}")[0]


@pytest.mark.parametrize("name", ["README.md", *SMALL])
def test_every_number_of_results_is_marked(name):
    results = unmarked(results_of(ROOT / name))
    if "rainbow-mnist-small" in name:
        for said in ELSEWHERE:
            assert said in results, said
            results = results.replace(said, "")
    assert re.findall(r".{30}(?:\d\.\d|±).{10}", results) == []
