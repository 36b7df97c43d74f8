"""What the command line says of the pose stream's data."""

from __future__ import annotations

import pytest

from ftml_bench.cli import main
from ftml_bench.rendering import report


def test_the_state_names_what_is_missing(tmp_path, monkeypatch):
    monkeypatch.setenv("FTML_BENCH_CACHE", str(tmp_path))
    lines = list(report.state(tmp_path / "pascal3d"))
    assert lines[0] == "solids: 50 made-up objects, built in"
    assert "the CAD models of PASCAL3D+ are not in" in lines[1]
    assert lines[2].startswith("renderer zbuffer: zbuffer, numpy")
    assert lines[-1] == f"rendered: 0 tasks, 0.0 MB, in {tmp_path / 'pose'}"
    assert all("\n" not in line for line in lines)


def test_times_and_scores_have_a_line_an_object(tmp_path, monkeypatch):
    monkeypatch.setattr(report, "SOLIDS", ("car/01", "sofa/03"))
    monkeypatch.setattr(report, "RENDERERS", {"zbuffer": ""})
    monkeypatch.setattr(report, "_IMAGES", 3)
    lines = list(report.speed(tmp_path))
    assert "pascal3d" in lines[1]
    assert lines[-1].startswith("zbuffer  solids")
    lines = list(report.scores(tmp_path))
    assert {line.split()[1] for line in lines if line.startswith("solids")} == {"car/01", "sofa/03"}


def test_the_command_line_says_what_there_is(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("FTML_BENCH_CACHE", str(tmp_path))
    assert main(["data", "pose", "--data", str(tmp_path)]) == 0
    assert capsys.readouterr().out.startswith("solids: 50 made-up objects, built in\npascal3d: ")
    assert main(["data", "ObjectPose", "--sheet", str(tmp_path / "sheet.png")]) == 0
    assert (tmp_path / "sheet.png").is_file()


@pytest.mark.parametrize("arguments", [["mnist", "--time"], ["--scores"], ["pose", "--download"], ["poses"]])
def test_what_the_data_command_does_not_have_is_one_line(arguments, capsys):
    assert main(["data", *arguments]) == 2
    assert capsys.readouterr().err.count("\n") == 1
