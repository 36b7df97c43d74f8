"""Every engine on other people's kinds of modules: exact, taken by another engine, or refused in one line."""

from pathlib import Path

import pytest

from ftml_bench.adaptation.native import library
from tests.adaptation.zoo import KINDS, Case, line

DOCS = (Path(__file__).parents[2] / "docs" / "engines.md").read_text(encoding="utf-8")


@pytest.mark.skipif(library.built("baseline") is None, reason="the engine native has not been built")
@pytest.mark.parametrize("name", KINDS)
def test_no_engine_is_wrong_and_the_documentation_says_which_are_exact(name):
    assert line(name, Case(KINDS[name]).words()) in DOCS.splitlines()


def test_the_documentation_names_no_other_kinds():
    assert len(KINDS) >= 40
    rows = DOCS.split("| kind of module |")[1].split("\n\n")[0].splitlines()[2:]
    assert [row.split(" | ")[0].removeprefix("| ") for row in rows] == list(KINDS)
