"""From cold start to the report: what is counted for what."""

from __future__ import annotations

import json

import pytest

from ftml_bench.runs import cell, schedule
from ftml_bench.speed import cold, start

TINY = """\
name: tiny
seeds: [0, 1]
benchmarks:
  sinusoids:
    benchmark: Sinusoids
    settings: {rounds: 2, images_per_round: 10}
    arrivals: 5
    threshold: [loss, 1.0]
    checkpoints: [5, 10]
    steps: 1
    optimizer: {name: Adam, lr: 0.003}
    strategies:
      FromScratch: {train_mb_size: 5}
"""


def test_the_parts_of_a_run_add_up(tmp_path, monkeypatch):
    monkeypatch.setattr(schedule, "RUN_CELL", schedule.RUN_CELL)
    (tmp_path / "tiny.yaml").write_text(TINY, encoding="utf-8")
    build = cell.build_benchmark
    began = cold.time.time()
    seconds = cold.run(str(tmp_path / "tiny.yaml"), 1, tmp_path / "run", began)
    assert cell.build_benchmark is build
    parts = list(seconds)[:4]
    assert parts == ["imports", "building every stream and row once, to check them", "cells", parts[3]]
    assert sum(seconds[part] for part in parts) == pytest.approx(seconds["all"], abs=0.2)
    of_cells = [value for part, value in seconds.items() if part.startswith("of cells")]
    assert sum(of_cells) == pytest.approx(seconds["cells"])
    assert min(of_cells) >= 0
    assert len(list((tmp_path / "run").rglob(cold.OF_CELL))) == 2
    assert (tmp_path / "run" / "report.html").is_file()


def test_modules_are_counted_for_their_package():
    text = """\
import time: self [us] | cumulative | imported package
import time:    100000 |     100000 |   torch._C
import time:    250000 |     350000 | torch
import time:     50000 |      50000 |     wandb.sdk
a warning between
"""
    assert start.by_package(text) == pytest.approx({"torch": 0.35, "wandb": 0.05})


def test_the_report_has_a_column_for_each_number_of_processes(monkeypatch):
    def said(*arguments):
        if arguments[0] == "imports":
            return json.dumps({"PyTorch": 1.25, "Avalanche": 2.0})
        assert arguments[1] == "quick"
        return json.dumps({"imports": 4.0, "all": 100.0 / int(arguments[2])})

    monkeypatch.setattr(start, "_cold", said)
    monkeypatch.setattr(start, "by_package", lambda text: {"torch": 2.25, "scipy": 0.75})
    monkeypatch.setattr(start, "_python", lambda *arguments: type("Ended", (), {"stderr": ""}))
    lines = list(start.report(repeats=2))
    assert "| all | 3.25 (3.25 to 3.25) |" in lines
    assert "torch 75%, scipy 25%." in lines
    assert "| all | 100.0 | 50.0 |" in lines


def test_imports_are_timed_one_after_the_other():
    assert list(cold.imports()) == [
        "PyTorch",
        "its first optimiser (torch._dynamo)",
        "Avalanche, with what it imports",
        "the suite itself",
    ]
