"""Cells that run together have the files of cells that run alone, whoever ends, fails or is interrupted."""

from __future__ import annotations

import pytest

from ftml_bench.errors import UsageError
from ftml_bench.recorded.device_draws import DeviceDraws
from ftml_bench.recorded.together import Together
from ftml_bench.recorded.training_step import RecordedStep
from ftml_bench.runs import cell as cells
from ftml_bench.runs import pool, record, resuming, schedule
from ftml_bench.runs.definition import Cell, from_dict
from ftml_bench.runs.tasks import Task
from ftml_bench.strategies import FTML

pytestmark = pytest.mark.usefixtures("double_precision")


def definition(seeds=(0, 1, 2), **settings):
    entry = {
        "benchmark": "RainbowDigits",
        "settings": {"rounds": 2, "images_per_round": 40, "held_out_per_round": 30},
        "model": {"name": "RainbowNet", "filters": 4, "layers": 3, "image_size": 14},
        "arrivals": 20,
        "checkpoints": [20, 40],
        "steps": 3,
        "optimizer": {"name": "Adam", "lr": 0.01},
        "strategies": {"FTML": {"meta_batch_size": 2, **settings}, "FromScratch": {"train_mb_size": 10}},
    }
    return from_dict({"name": "tiny", "seeds": list(seeds), "benchmarks": {"digits": entry}}, "tiny")


@pytest.fixture
def _as_on_a_gpu(monkeypatch):
    """Cells whose learners draw from tables, on the CPU."""
    build = cells.build_strategy

    def on_device(*arguments, **settings):
        strategy = build(*arguments, **settings)
        if isinstance(strategy, FTML):
            strategy.execution.draws = DeviceDraws(strategy.buffer, strategy.seed)
        return strategy

    monkeypatch.setattr(cells, "build_strategy", on_device)
    monkeypatch.setattr(RecordedStep, "_record", lambda self: False)
    monkeypatch.setattr(pool, "one_thread", lambda: None)


def curve(folder):
    return record.read(folder).curve


def together_in(root, board, *, stop=None):
    """The outcomes of all seeds of FTML; `stop`: interrupt them at that evaluation of seed 1."""
    told, begun = [], set()

    def on_evaluation(cell, done, total):
        if cell not in begun:  # the first says where it begins
            begun.add(cell)
            return
        told.append((cell.seed, done, total))
        if stop is not None and (cell.seed, done) == (1, stop):
            raise KeyboardInterrupt

    seeds = {cell: root / cell.folder for cell in board.cells() if cell.row == "FTML"}
    return cells.run_together(board, seeds, None, on_evaluation, "cpu"), told


@pytest.mark.usefixtures("_as_on_a_gpu")
def test_cells_that_run_together_have_the_files_of_cells_that_run_alone(tmp_path):
    board = definition()
    outcomes, told = together_in(tmp_path / "together", board)
    assert {cell.seed: status for cell, status in outcomes.items()} == dict.fromkeys(range(3), "finished")
    assert told[:4] == [(0, 1, 4), (1, 1, 4), (2, 1, 4), (0, 2, 4)]
    for cell in outcomes:
        cells.run_cell(board, cell, tmp_path / "alone" / cell.folder, None, lambda done, total: None)
        one, other = (record.read(tmp_path / kind / cell.folder) for kind in ("alone", "together"))
        assert [row.loss for row in other.curve] == pytest.approx([row.loss for row in one.curve], rel=1e-8)
        assert [row.gradient_evaluations for row in other.curve] == [row.gradient_evaluations for row in one.curve]
        assert other.record["cost"] == one.record["cost"]
        assert other.record["engine_note"] == "steps taken together by 3 seeds"
        assert "engine_note" not in one.record


@pytest.mark.usefixtures("_as_on_a_gpu")
def test_cells_that_were_interrupted_together_go_on_with_whoever_is_left(tmp_path, monkeypatch):
    monkeypatch.setattr(resuming, "SAVE_EVERY", 0.0)
    board = definition()
    together_in(tmp_path / "whole", board)
    with pytest.raises(KeyboardInterrupt):
        together_in(tmp_path / "again", board, stop=3)
    assert sorted(
        len((tmp_path / "again" / c.folder / "curve.csv").read_text().splitlines()) for c in board.cells()[:3]
    ) == [3, 4, 4]
    outcomes, told = together_in(tmp_path / "again", board)
    assert set(outcomes.values()) == {"finished"}
    assert (1, 3, 4) in told
    assert (0, 3, 4) not in told
    for cell in outcomes:
        found, expected = ([row.loss for row in curve(tmp_path / kind / cell.folder)] for kind in ("again", "whole"))
        assert found == pytest.approx(expected, rel=1e-8)


@pytest.mark.usefixtures("_as_on_a_gpu")
def test_a_cell_that_fails_leaves_the_others_running(tmp_path, monkeypatch):
    build = cells.build_benchmark

    def but_for_one(spec, seed, data):
        if seed == 1:
            raise UsageError("no data for seed 1")
        return build(spec, seed, data)

    monkeypatch.setattr(cells, "build_benchmark", but_for_one)
    monkeypatch.setattr(schedule, "_groups", lambda definition, todo, device: [todo])
    board = definition()
    todo = [cell for cell in board.cells() if cell.row == "FTML"]
    (tmp_path / "leaderboard.yaml").touch()
    task = Task(board, tuple(todo), tmp_path, None, "cpu", (schedule.RUN_CELL, schedule.RUN_TOGETHER), "")
    outcomes = task.run(lambda *told: None)
    assert outcomes == [
        (Cell("digits", "FTML", 0), "finished", ""),
        (Cell("digits", "FTML", 1), "failed", "no data for seed 1"),
        (Cell("digits", "FTML", 2), "finished", ""),
    ]
    assert record.read(tmp_path / "digits/FTML/seed-1").record["reason"] == "no data for seed 1"


@pytest.mark.usefixtures("_as_on_a_gpu")
def test_an_error_of_the_steps_is_one_of_all_that_take_them(tmp_path, monkeypatch):
    def too_much(self):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(Together, "take_steps", too_much)
    board = definition(seeds=(0, 1))
    outcomes, _ = together_in(tmp_path, board)
    assert [str(error) for error in outcomes.values()] == ["out of memory"] * 2


def test_on_a_gpu_seeds_of_ftml_are_a_group_of_at_most_four(tmp_path):
    board = definition(seeds=range(6))

    def seeds_by_row(device):
        groups = schedule._groups(board, board.cells(), device)
        return [(group[0].row, [cell.seed for cell in group]) for group in groups]

    alone = [("FromScratch", [seed]) for seed in range(6)]
    assert seeds_by_row("cpu") == [("FTML", [seed]) for seed in range(6)] + alone
    assert seeds_by_row("cuda") == [("FTML", [0, 1, 2, 3]), ("FTML", [4, 5]), *alone]
    hindsight = definition(comparator=True)
    assert [len(group) for group in schedule._groups(hindsight, hindsight.cells(), "cuda")] == [1] * 6
