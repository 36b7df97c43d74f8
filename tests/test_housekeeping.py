"""What stands in several files says the same: the version, tools of CI, what CONTRIBUTING.md names; files are short."""

import configparser
import datetime
import importlib.metadata
import re
import runpy
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

import ftml_bench
from ftml_bench import cli
from ftml_bench.runs import record

ROOT = Path(__file__).parent.parent
CITATION = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
CHANGELOG = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")


def environments():
    """The environments of tox.ini, by their names; the tests' own is called by none."""
    parser = configparser.ConfigParser(interpolation=None)
    parser.read(ROOT / "tox.ini", encoding="utf-8")
    return {section.removeprefix("testenv:") for section in parser.sections() if section.startswith("testenv:")}


def named(text):
    """The environments of tox that a text runs."""
    return {name for names in re.findall(r"\btox (?:exec )?(?:-q )?-e ([\w,-]+)", text) for name in names.split(",")}


# -- the version


def test_setup_reads_the_version(monkeypatch):
    given = {}
    stand_in = SimpleNamespace(setup=given.update, Extension=lambda name, **_: name, build_ext=object, newer_group=None)
    for name in ("setuptools", "setuptools.command.build_ext", "setuptools.modified"):  # which need not be there
        monkeypatch.setitem(sys.modules, name, stand_in)
    monkeypatch.setitem(sys.modules, "setuptools.command", SimpleNamespace())
    runpy.run_path(str(ROOT / "setup.py"))
    assert given["version"] == ftml_bench.__version__


def test_the_version_is_written_once():
    for name in ("setup.py", "pyproject.toml", "docs/conf.py", "tox.ini"):
        assert ftml_bench.__version__ not in re.findall(r"\b\d+\.\d+\.\d+\b", (ROOT / name).read_text(encoding="utf-8"))


def test_command_line_and_records_say_the_version(capsys):
    with pytest.raises(SystemExit):
        cli.main(["--version"])
    assert capsys.readouterr().out == f"ftml-bench {ftml_bench.__version__}\n"
    assert record.provenance()["versions"]["ftml-bench"] == ftml_bench.__version__


def test_what_is_installed_is_of_this_version():
    assert importlib.metadata.version("ftml-bench") == ftml_bench.__version__, "install it anew: pip install -e ."


def test_the_newest_release_of_the_changelog_is_this_version():
    headings = re.findall(r"^## (.*)$", CHANGELOG, re.MULTILINE)
    released = [re.fullmatch(r"(\d+\.\d+\.\d+), (\d{4}-\d\d-\d\d)", h) for h in headings if h != "Unreleased"]
    assert all(released), headings
    assert "Unreleased" not in headings[1:]
    versions = [tuple(map(int, release[1].split("."))) for release in released]
    dates = [datetime.date.fromisoformat(release[2]) for release in released]
    assert versions == sorted(set(versions), reverse=True)
    assert dates == sorted(dates, reverse=True)
    assert released[0][1] == ftml_bench.__version__ == str(CITATION["version"])
    assert dates[0] == CITATION["date-released"]


def test_the_readme_cites_the_paper_as_the_citation_file_does():
    fields = dict(re.findall(r"^  (\w+) += \{(.*)\},?$", (ROOT / "README.md").read_text(encoding="utf-8"), re.M))
    paper = CITATION["preferred-citation"]
    assert (fields["title"], int(fields["year"]), fields["volume"]) == (paper["title"], paper["year"], paper["volume"])
    assert fields["author"] == " and ".join(f"{a['family-names']}, {a['given-names']}" for a in paper["authors"])
    assert fields["booktitle"] == paper["collection-title"]
    assert fields["pages"] == f"{paper['start']}--{paper['end']}"
    assert fields["url"] == paper["url"]


# -- the tools


def test_the_hooks_run_what_ci_runs():
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))["repos"][0]["hooks"]
    run = set().union(*(named(hook["entry"]) for hook in hooks))
    assert run == named((ROOT / ".ci/run").read_text(encoding="utf-8")) - {"leaderboard", "verify", "audit"}
    assert run <= environments()


@pytest.mark.parametrize("file", ["CONTRIBUTING.md", ".github/PULL_REQUEST_TEMPLATE.md", "README.md", ".ci/run"])
def test_the_environments_that_a_text_names_exist(file):
    assert named((ROOT / file).read_text(encoding="utf-8")) <= environments()


# -- CONTRIBUTING.md


def test_what_contributing_names_is_there():
    blocks = re.findall(r"```\n(.*?)```", CONTRIBUTING, re.DOTALL)
    paths = re.findall(r"`([\w./]+(?:/|\.py|\.md))`", CONTRIBUTING) + re.findall(r"tests/[\w./]+", "".join(blocks))
    links = re.findall(r"\]\(([^)#]+)(?:#([\w-]+))?\)", CONTRIBUTING)
    assert len(paths) > 5
    for path in [*paths, *(path for path, _ in links)]:
        assert (ROOT / path).exists(), path
    for path, anchor in links:
        headings = re.findall(r"^#+ (.*)$", (ROOT / path).read_text(encoding="utf-8"), re.MULTILINE)
        assert not anchor or anchor in {heading.lower().replace(" ", "-") for heading in headings}, (path, anchor)


@pytest.mark.parametrize("file", sorted((ROOT / ".github/ISSUE_TEMPLATE").iterdir()), ids=lambda file: file.name)
def test_an_issue_template_has_a_name_and_says_what_for(file):
    _, front, body = file.read_text(encoding="utf-8").split("---\n", 2)
    assert set(yaml.safe_load(front)) == {"name", "about"}
    assert body.strip()


# -- sizes

LIMITS = {"ftml_bench": 400, "benchmarks": 400, "strategies": 400, "leaderboards": 400, "examples": 400, "tests": 500}


def too_long(root, limits):
    """{path: lines} of the modules in these folders that have more lines than their folder's limit."""
    lines = {
        file.relative_to(root).as_posix(): (len(file.read_text(encoding="utf-8").splitlines()), limit)
        for folder, limit in limits.items()
        for file in (root / folder).rglob("*.py")
    }
    return {path: found for path, (found, limit) in lines.items() if found > limit}


def test_no_module_is_longer_than_a_reader_can_hold():
    """Where this fails: a module has two jobs, and each could have a file of its own."""
    found = too_long(ROOT, LIMITS)
    assert found == {}


def test_lines_are_counted_in_every_folder(tmp_path):
    for path, lines in {"a/short.py": 3, "a/b/long.py": 4, "c/long.py": 6, "c/other.txt": 9, "d.py": 9}.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text("x\n" * lines, encoding="utf-8")
    assert too_long(tmp_path, {"a": 3, "c": 5}) == {"a/b/long.py": 4, "c/long.py": 6}


def test_every_folder_of_tests_is_a_package_and_names_a_part_of_the_suite():
    """Or two files of the same name would stand in each other's way."""
    for folder in {file.parent for file in (ROOT / "tests").rglob("*.py")}:
        assert (folder / "__init__.py").is_file(), folder
        part = folder.relative_to(ROOT / "tests")
        # what tests of the engines are fed with; numbers and counts of the whole
        if part.parts[:2] != ("adaptation", "zoo") and part.parts[:1] != ("audit",):
            assert (ROOT / part).is_dir() or (ROOT / "ftml_bench" / part).is_dir(), folder
