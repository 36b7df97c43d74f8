"""The packages of docs/extending-*.md, taken from the pages, installed, and run."""

import importlib
import importlib.util
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from ftml_bench import registry
from ftml_bench.check import check
from ftml_bench.cli import main
from ftml_bench.runs import cell as cells
from ftml_bench.runs import record
from ftml_bench.runs.definition import Cell, from_dict

DOCS = Path(__file__).parent.parent / "docs"
PAGES = {"strategy": "ShrinkAndPerturb", "benchmark": "TurningMoons", "model": "SkipNet"}


def files_of(page):
    """{name: text} of the files that a page shows: a line with the name, then the block."""
    text = (DOCS / f"extending-{page}.md").read_text(encoding="utf-8")
    return dict(re.findall(r"^`([\w.]+)`\n\n```\w+\n(.*?)^```$", text, flags=re.M | re.S))


@pytest.mark.parametrize("page", PAGES)
def test_an_example_has_fewer_than_60_lines(page):
    files = files_of(page)
    assert len(files) == 2
    assert sum(text.count("\n") for text in files.values()) < 60


def install(folders, target):
    """As `pip install` does it; by hand where there is no pip (an environment that uv made)."""
    if all(map(importlib.util.find_spec, ("pip", "setuptools"))):
        options = ["--quiet", "--no-build-isolation", "--no-deps", "--no-index", "--target", target]
        command = [sys.executable, "-m", "pip", "install", *options, *folders]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return
    target.mkdir()
    for folder in folders:
        text = (folder / "pyproject.toml").read_text(encoding="utf-8")
        name = re.search(r'^name = "(.*)"', text, flags=re.M)[1]
        group, point, of = re.search(r'^\[project.entry-points."(.*)"\]\n(\w+) = "(.*)"', text, flags=re.M).groups()
        (module,) = folder.glob("*.py")
        shutil.copy(module, target)
        info = target / f"{name.replace('-', '_')}-0.1.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 0.1\n")
        (info / "entry_points.txt").write_text(f"[{group}]\n{point} = {of}\n")


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """All three packages in a folder that is on the path."""
    root = tmp_path_factory.mktemp("packages")
    for page in PAGES:
        (root / page).mkdir()
        for name, text in files_of(page).items():
            (root / page / name).write_text(text, encoding="utf-8")
    target = root / "installed"
    install([root / page for page in PAGES], target)
    sys.path.append(str(target))
    importlib.invalidate_caches()
    yield target
    sys.path.remove(str(target))


def test_an_installed_package_is_known_by_name(installed, capsys):
    assert main(["list"]) == 0
    out = capsys.readouterr().out
    for page, name in PAGES.items():
        assert re.search(rf"^  {name} +from ", out, flags=re.M)
        assert registry.load(page, name).__name__ == name


@pytest.mark.parametrize(
    ("name", "settings", "more"),
    [
        ("ShrinkAndPerturb", {"shrink": 0.7}, {}),
        ("TurningMoons", {}, {}),
        ("SkipNet", {}, {}),
        ("SkipNet", {"inputs": 1, "outputs": 1}, {"benchmark": "Sinusoids"}),
    ],
)
def test_an_example_holds_its_contracts(installed, name, settings, more):
    outcomes = list(check(name, settings, **more))
    assert not [str(outcome) for outcome in outcomes if outcome.verdict == "broken"]


def test_a_leaderboard_of_nothing_but_third_parties(installed, tmp_path):
    entry = {
        "benchmark": "TurningMoons",
        "settings": {"rounds": 2, "images_per_round": 16, "held_out_per_round": 20},
        "model": {"name": "SkipNet", "inputs": 2, "width": 8, "outputs": 2},
        "steps": 2,
        "optimizer": {"name": "Adam", "lr": 0.01},
        "strategies": {
            "theirs": {"strategy": "ShrinkAndPerturb", "noise": 0.1, "train_mb_size": 8},
            "ours": {"strategy": "FTML", "meta_batch_size": 2},
        },
    }
    definition = from_dict({"name": "theirs", "seeds": [0], "benchmarks": {"moons": entry}}, "theirs")
    cells.check(definition, None)
    for row in ("theirs", "ours"):
        assert cells.run_cell(definition, Cell("moons", row, 0), tmp_path / row, None, lambda *_: None) == "finished"
        assert [r.steps for r in record.read(tmp_path / row).curve] == [2, 4, 6, 8]
    assert record.read(tmp_path / "theirs").record["protocol"]["settings"]["noise"] == 0.1


def test_a_module_in_the_folder_is_found(tmp_path, monkeypatch, capsys):
    """By the command, whose own folder is another one; nothing is installed."""
    text = files_of("model")["skip_net.py"].replace("SkipNet", "LocalNet")
    (tmp_path / "local_net.py").write_text(text, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry not in ("", str(tmp_path))])
    assert main(["check", "local_net:LocalNet"]) == 0
    assert "broken" not in capsys.readouterr().out
