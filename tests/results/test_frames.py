"""`ftml_bench.results.load`: frames of small made-up runs against counts by hand, and of committed ones."""

from __future__ import annotations

import csv
import json
import math
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from ftml_bench.errors import UsageError
from ftml_bench.report.contents import compute
from ftml_bench.results import load
from ftml_bench.runs.definition import Cell
from ftml_bench.runs.packed import pack
from tests.runs import made

RESULTS = Path(__file__).parents[2] / "leaderboards/results"


@pytest.fixture
def board(tmp_path):
    """Losses of 0.9 + 0.01 a cell and 0.5 at 10 and 20 (= N) datapoints of four rounds; γ: below 0.8."""
    return made.write_all(tmp_path / "board")


def test_curves_hold_every_evaluation_with_rounds_from_one(board):
    frame = load(board).curves()
    assert list(frame)[:7] == ["leaderboard", "benchmark", "row", "seed", "round", "evaluated_round", "datapoints"]
    assert len(frame) == 4 * 8
    assert frame["round"].unique().tolist() == [1, 2, 3, 4]
    first = frame[(frame.row == "FromScratch") & (frame.seed == 1)].iloc[0]
    assert (first.leaderboard, first.benchmark, first.datapoints, first.steps) == ("small", "waves", 10, 5)
    assert first.loss == pytest.approx(0.93)
    assert frame.accuracy.isna().all()


def test_efficiency_by_hand(board):
    frame = load(board).efficiency()
    assert len(frame) == 4 * 4
    assert frame.datapoints.eq(20).all()
    assert frame.reached.all()
    assert frame.stays.all()
    one = frame[(frame.row == "FTML") & (frame.seed == 0)]
    assert one.half.tolist() == [1, 1, 2, 2]
    assert one.third.tolist() == [1, 2, 3, 3]
    assert one.area.tolist() == pytest.approx([0.7] * 4)  # of two evaluations their mean
    assert one.first_arrival.unique().tolist() == [10]


def test_who_never_reaches_the_threshold_is_not_level(tmp_path, monkeypatch):
    """Both count as a round's size, which says nothing of how far apart they are."""
    monkeypatch.setitem(made.PROTOCOL, "threshold", ["loss", 0.1])
    pairs = load(made.write_all(tmp_path / "board")).paired(to="FTML").set_index("quantity")
    for quantity in ("datapoints_to_threshold_second_half", "datapoints_to_stay_second_half"):
        one = pairs.loc[quantity]
        assert (one.ties, one["mean"], one.verdict) == (4, 0.0, "cannot be told apart with 2 seeds")
        assert math.isnan(one.low)


def test_pairs_survival_and_costs_by_hand(board):
    found = load(board)
    pairs = found.paired(to="FTML").set_index("quantity")
    assert pairs.loc["datapoints_to_threshold_second_half", ["mean", "ties", "verdict"]].tolist() == [0, 4, "level"]
    assert pairs.loc["loss_at_10_second_half", "mean"] == pytest.approx(-0.02)
    assert pairs.loc["loss_at_10_second_half", ["wins", "leads", "p"]].tolist() == [4, 2, 0.5]
    curve = found.survival().query("row == 'FTML' and part == 'all_rounds'")
    assert list(zip(curve.datapoints, curve.open, strict=True)) == [(0, 1.0), (20, 0.0)]
    costs = found.costs()
    assert costs.steps.unique().tolist() == [40]
    assert costs.seconds.unique().tolist() == [3.5]


def test_a_row_that_is_not_there_is_named_with_the_nearest(board):
    with pytest.raises(UsageError, match="unknown row 'FTLM': did you mean 'FTML'"):
        load(board).paired(to="FTLM")
    with pytest.raises(UsageError, match="nothing to load"):
        load()
    with pytest.raises(UsageError, match="no leaderboard's folder"):
        load(board / "waves")


def test_several_folders_and_archives(board, tmp_path):
    pack(board, tmp_path / "small.zip")
    assert load(tmp_path / "small.zip").curves().equals(load(board).curves())
    both = load(board, tmp_path / "small.zip")
    assert len(both.seeds()) == 2 * len(load(board).seeds())
    assert both.costs().leaderboard.unique().tolist() == [str(board), str(tmp_path / "small.zip")]  # one name
    with pytest.raises(UsageError, match="is given twice"):
        load(board, board)


def test_seeds_and_summary_are_the_files_that_the_report_writes():
    root = RESULTS / "quick"
    found = load(root)
    written = pd.read_csv(root / "seeds.csv", keep_default_na=False)
    frame = found.seeds()
    assert frame[["benchmark", "row", "seed", "quantity"]].equals(written[["benchmark", "row", "seed", "quantity"]])
    assert frame.value.tolist() == pytest.approx(written.value.tolist(), rel=1e-11)
    rows = [row for row in csv.DictReader((root / "leaderboard.csv").open()) if not row["minus"]]
    assert found.summary()["mean"].tolist() == pytest.approx([float(row["mean"]) for row in rows], rel=1e-11)
    assert compute(root).seeds_csv() == (root / "seeds.csv").read_text()


def test_the_figure_has_two_panels_a_benchmark():
    figure = load(RESULTS / "quick", RESULTS / "rainbow_mnist_small").plot()
    left, right = figure.axes[:2]
    assert len(figure.axes) == 6
    assert all(panel.get_xlim()[0] > 0 for panel in figure.axes)  # logarithmic
    assert [line.get_label() for line in right.get_lines()][:2] == ["FTML", "FollowTheLeader"]
    open_rounds = left.get_lines()[0].get_ydata()
    assert open_rounds[0] == 1
    assert sorted(open_rounds, reverse=True) == list(open_rounds)


def test_the_figure_is_of_the_seeds_that_have_finished(board):
    """The same losses in both seeds but for 0.01; the one that diverged would make the mean 500.46."""
    cell = Cell("waves", "FTML", 1)
    shutil.rmtree(board / cell.folder)
    made.write_run(board, cell, [0.9, 1000.0] * 4, "diverged", diverged_round=3)
    line = load(board).plot().axes[1].get_lines()[0]
    assert line.get_label() == "FTML"
    assert list(line.get_ydata()) == pytest.approx([0.9, 0.5])


def test_without_a_threshold_there_is_no_efficiency_and_an_area():
    found = load(RESULTS / "cifar100_small")
    frame = found.efficiency()
    assert frame.datapoints.isna().all()
    assert frame.reached.isna().all()
    assert 0.4 < frame.area.mean() < 0.6
    assert found.survival().empty
    assert not found.plot().axes[0].axison


def test_neither_pytorch_nor_avalanche_is_imported_and_pandas_only_for_a_frame():
    code = (
        "import sys, ftml_bench.report, ftml_bench.results as r; found = r.load(sys.argv[1]); "
        "print([name for name in ('torch', 'avalanche', 'pandas') if name in sys.modules]); found.costs(); "
        "print([name for name in ('torch', 'avalanche', 'pandas') if name in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code, RESULTS / "quick"], capture_output=True, text=True, check=True)
    assert run.stdout.splitlines() == ["[]", "['pandas']"]


def test_help_and_list_import_neither_pandas_nor_scipy():
    code = (
        "import sys, ftml_bench.cli as c; c.main(['list']); "
        "print([name for name in ('pandas', 'scipy', 'matplotlib', 'numpy') if name in sys.modules], file=sys.stderr)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stderr.strip() == "[]"


def test_of_nothing_there_is_an_empty_figure(tmp_path):
    (tmp_path / "leaderboard.yaml").write_text(json.dumps(made.CONTENT))
    load(tmp_path).plot().savefig(tmp_path / "figure.png")
