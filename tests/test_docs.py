"""The site's pages are true: their code runs, their commands parse, their definitions load, nothing public is missing.

`tox -e docs` builds the site and fails on a broken link; these tests need no Sphinx.
"""

from __future__ import annotations

import importlib
import inspect
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml

from ftml_bench import cli
from ftml_bench.models import MultiHeadNet
from ftml_bench.runs import definition

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = sorted(path for path in DOCS.rglob("*.md"))
FENCE = re.compile(r"^( *)```(\S*)\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)

sys.path.append(str(DOCS))
import docstrings  # noqa: E402
import letters  # noqa: E402
import public_names  # noqa: E402


def blocks(page: Path, language: str) -> list[str]:
    return [text for _, name, text in FENCE.findall(page.read_text(encoding="utf-8")) if name == language]


def name_of(page: Path) -> str:
    return page.relative_to(DOCS).as_posix()


# test_pipelines runs it with pictures in the place of MNIST
ELSEWHERE = {"avalanche.md"}


@pytest.mark.parametrize(
    "page", [page for page in PAGES if blocks(page, "python") and name_of(page) not in ELSEWHERE], ids=name_of
)
def test_the_code_of_a_page_runs(page, monkeypatch, tmp_path):
    """All blocks of a page in one namespace, in order, as a reader would paste them."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "leaderboards").symlink_to(ROOT / "leaderboards")
    monkeypatch.setenv("FTML_BENCH_CACHE", str(tmp_path / "cache"))
    torch.manual_seed(0)
    names: dict[str, object] = {"__name__": "page"}
    for text in blocks(page, "python"):
        exec(compile(text, name_of(page), "exec"), names)


@pytest.mark.parametrize("page", [ROOT / "README.md", *PAGES], ids=lambda page: page.name)
def test_the_commands_of_a_page_parse(page):
    for line in "\n".join(blocks(page, "")).splitlines():
        if line.startswith("ftml-bench ") and "COMMAND" not in line:
            words = re.split(r"\s{2,}|\s+#", line)[0].split()[1:]  # what is said of it stands to the right
            cli._parse([str(tmp) for tmp in words])


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_the_definitions_of_a_page_load(page):
    for text in blocks(page, "yaml"):
        if text.startswith("name:"):  # whole ones
            assert definition.from_dict(yaml.safe_load(text), "page").benchmarks


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_the_links_of_a_page_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text(encoding="utf-8")):
        assert target.startswith("http") or (page.parent / target).exists(), target


def test_everything_public_has_a_docstring():
    for name in public_names.modules():
        assert public_names.undocumented(importlib.import_module(name)) == []


def test_what_has_no_docstring_is_found():
    class Bare:
        def method(self):
            pass

    module = SimpleNamespace(__all__=["Bare", "LIMIT"], Bare=Bare, LIMIT=3)
    assert public_names.undocumented(module) == ["Bare", "Bare.method"]


def test_every_package_that_users_import_from_is_on_an_api_page():
    packages = [path.parent.name for path in ROOT.glob("ftml_bench/*/__init__.py") if "__all__" in path.read_text()]
    assert packages
    for name in [*packages, "strategies", "benchmarks", "protocol"]:
        assert f"ftml_bench.{name}" in public_names.modules()


def test_the_parameters_of_a_class_are_said_once():
    """Not those of the constructor of Avalanche's that it overrides, too."""
    own = inspect.getdoc(MultiHeadNet)
    foreign = inspect.getdoc(MultiHeadNet.__init__)
    assert "auto_adapt" in foreign
    lines = [*own.splitlines(), "", *foreign.splitlines(), ""]
    docstrings._escape(None, "class", "MultiHeadNet", MultiHeadNet, None, lines)
    assert "\n".join(lines).strip() == own


def test_no_public_class_says_its_parameters_in_two_places():
    for name in public_names.modules():
        module = importlib.import_module(name)
        for cls in filter(inspect.isclass, (getattr(module, public) for public in public_names.names(module))):
            init = vars(cls).get("__init__")
            assert ":param" not in (cls.__doc__ or "") or ":param" not in (getattr(init, "__doc__", "") or ""), cls


def test_letters_of_formulas_need_no_mathematics_font():
    found = letters.plain("<msub><mi>S</mi><mi>γ</mi></msub><mi>min</mi>")
    letter = '<mi mathvariant="normal" class="letter">{}</mi>'
    assert found == f"<msub>{letter.format('S')}{letter.format('γ')}</msub><mi>min</mi>"
    assert ".letter { font-style: italic; }" in (DOCS / "static/site.css").read_text(encoding="utf-8")
