"""The picture of a leaderboard's tasks: drawn once, of the stream that is run, and shown by the page."""

from __future__ import annotations

import numpy as np
from PIL import Image

from ftml_bench import report
from ftml_bench.report.standing import faults
from ftml_bench.runs import pictures
from ftml_bench.runs.definition import from_dict
from tests.report.made import made_in


def board(benchmark, **settings):
    entry = {"benchmark": benchmark, "settings": settings, "steps": 1, "optimizer": {"name": "Adam"}}
    content = {"name": "some", "seeds": [3], "benchmarks": {"first": {**entry, "strategies": {"FromScratch": {}}}}}
    return from_dict(content, "some")


def test_it_is_drawn_once(tmp_path):
    definition = board("RainbowDigits", rounds=2, images_per_round=20)
    pictures.draw_tasks(definition, tmp_path, None)
    file = tmp_path / "figures/first-tasks.png"
    drawn = file.read_bytes()
    assert len(drawn) < 60_000
    shown = np.asarray(Image.open(file).convert("RGB"))
    assert len(np.unique(shown.reshape(-1, 3), axis=0)) > 20
    file.write_bytes(b"kept")
    pictures.draw_tasks(definition, tmp_path, None)
    assert file.read_bytes() == b"kept"
    file.unlink()
    pictures.draw_tasks(definition, tmp_path, None)
    assert file.read_bytes() == drawn


def test_a_stream_that_cannot_be_drawn_is_no_reason_to_have_no_report(tmp_path, capsys, monkeypatch):
    def broken(*_):
        raise RuntimeError("no hand for drawing")

    monkeypatch.setattr(pictures, "contact_sheet", broken)
    pictures.draw_tasks(board("RainbowDigits", rounds=2, images_per_round=20), tmp_path, None)
    assert "first: no picture of its tasks: no hand for drawing" in capsys.readouterr().err
    assert not (tmp_path / "figures").exists()


def test_the_page_shows_it_and_verify_compares_it(tmp_path):
    root = made_in(tmp_path)
    report.write(root)
    assert "its tasks" not in (root / "report.html").read_text()
    file = root / "figures/digits-tasks.png"
    Image.new("RGB", (4, 4), "red").save(file)
    assert [fault.what for fault in faults(root)] == ["its picture of tasks is not figures/digits-tasks.png"]
    report.write(root)
    assert "digits: its tasks" in (root / "report.html").read_text()
    assert faults(root) == []
