"""What the tables of growth are made of: sizes that are varied one by one, and a figure of them."""

from __future__ import annotations

from functools import partial

import pytest

from ftml_bench.speed import growth
from ftml_bench.speed.processes import gradient_of


@pytest.fixture
def tiny(monkeypatch):
    asked = []

    def peaks(prepared, sizes):
        asked.append(sizes)
        return [100.0 * (i + 1) for i, _ in enumerate(sizes)]

    monkeypatch.setattr(growth, "peaks", peaks)
    usual = {"tasks": 2, "inner_steps": 1, "support": 3, "query": 2, "side": 8}
    monkeypatch.setattr(growth, "USUAL", usual)
    monkeypatch.setattr(growth, "VALUES", {name: (value, 2 * value) for name, value in usual.items()})
    monkeypatch.setattr(growth, "ROUNDS", (1, 2))
    monkeypatch.setattr(growth, "MEASURED_STEPS", 1)
    monkeypatch.setattr(growth, "MadeUp", partial(growth.MadeUp, images_per_round=60, held_out_per_round=10))
    return asked


@pytest.mark.filterwarnings("ignore:Accuracy_At_.*_Datapoints says nothing")  # rounds here have 60 points
def test_one_quantity_is_varied_at_a_time_and_all_come_to_the_figure(tiny, tmp_path):
    lines = list(growth.report(tmp_path, repeats=1))
    heads = [line for line in lines if line.startswith("| ") and "ms" not in line and "MiB" not in line]
    assert [head for head in heads if "---" not in head] == [
        "| tasks (T) | 2 | 4 |",
        "| inner steps (K) | 1 | 2 |",
        "| support points (S) | 3 | 6 |",
        "| query points (Q) | 2 | 4 |",
        "| image side | 8 | 16 |",
        "| rounds | 1 | 2 |",
    ]
    assert lines.count("| MiB | 100 | 200 |") == 6
    for name, sizes in zip(growth.VALUES, tiny, strict=False):
        first, second = sizes
        assert first == growth.USUAL
        assert {key for key in first if first[key] != second[key]} == {name}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["growth.pdf", "growth.png", "growth.svg"]


def test_a_meta_gradient_has_the_sizes_that_are_asked_for():
    small = gradient_of("batched", tasks=1, inner_steps=1, support=2, query=2, side=8)()
    assert [tuple(g.shape) for g in small][-2:] == [(10, 128), (10,)]
