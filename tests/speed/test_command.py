"""`ftml-bench speed`: which table, and where it goes."""

from __future__ import annotations

import pytest

from ftml_bench.cli import main
from ftml_bench.speed import baselines, engines, growth, start


@pytest.mark.parametrize("name", ["growth", "baselines", "start", "engines"])
def test_a_table_is_printed_and_written(name, monkeypatch, tmp_path, capsys):
    module = {"growth": growth, "baselines": baselines, "start": start, "engines": engines}[name]
    monkeypatch.setattr(module, "report", lambda *_, **__: iter(["# A table", ""]))
    chosen = [] if name == "engines" else [f"--{name}"]
    assert main(["speed", *chosen, "--out", str(tmp_path / "out")]) == 0
    assert capsys.readouterr().out == "# A table\n\n"
    assert (tmp_path / "out" / f"{name}.md").read_text(encoding="utf-8") == "# A table\n\n"


@pytest.mark.parametrize("name", ["growth", "baselines", "start"])
def test_a_table_of_one_thread_takes_no_number_of_threads(name, capsys):
    assert main(["speed", f"--{name}", "--threads", "2"]) == 2
    assert f"--{name}: is measured on a CPU with a thread a process" in capsys.readouterr().err


def test_one_table_at_a_time(capsys):
    assert main(["speed", "--growth", "--start"]) == 2
    assert "not allowed with" in capsys.readouterr().err


@pytest.mark.parametrize("what", [["--run"], ["--buffer", "."]])
def test_what_is_only_printed_takes_no_folder(what, capsys, tmp_path):
    assert main(["speed", *what, "--out", str(tmp_path / "out")]) == 2
    assert f"{what[0]} prints its table: expected no --out" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
