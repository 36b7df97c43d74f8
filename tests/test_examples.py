"""The examples run as they stand, on less data, and the README shows them as they are."""

import re
import runpy
from functools import partial
from pathlib import Path

import pytest

import ftml_bench.benchmarks

ROOT = Path(__file__).parent.parent


def test_the_first_example_runs(monkeypatch, tmp_path, capsys):
    small = partial(ftml_bench.benchmarks.Sinusoids, images_per_round=12)
    monkeypatch.setattr(ftml_bench.benchmarks, "Sinusoids", lambda seed, rounds: small(seed=seed, rounds=3))
    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(ROOT / "examples/sinusoids.py"))
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3
    assert lines[0].startswith("round  0: ")
    assert list(tmp_path.glob("runs/example-sinusoids/events*"))


@pytest.mark.parametrize("name", ["sinusoids.py"])
def test_the_readme_shows_the_example_as_it_is(name):
    text = (ROOT / "examples" / name).read_text(encoding="utf-8")
    shown = text.split("\n\n", 1)[1]  # without the file's docstring
    assert shown in (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_readmes_files_exist():
    for target in re.findall(r"\]\(([^)#]+)\)", (ROOT / "README.md").read_text(encoding="utf-8")):
        assert target.startswith("http") or (ROOT / target).exists(), target
