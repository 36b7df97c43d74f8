"""Values that a logarithmic axis, or a mean over all seeds, cannot show: they are shown nevertheless."""

import shutil

import numpy as np
import pytest

from ftml_bench.report import charts, contents, figures, measures, overview
from ftml_bench.results.looks import looks
from ftml_bench.runs.definition import from_dict
from tests.runs import made


def board(tmp_path, losses, of_measures=(), **protocol):
    """FTML and FromScratch with two seeds each: `losses` of an evaluation and (round, name, value) of each cell."""
    root = made.write_all(tmp_path / "board")
    shutil.rmtree(root / "waves")
    for cell in made.DEFINITION.cells():
        made.write_run(root, cell, [losses[cell.row]] * 8, measures=dict(of_measures).get((cell.row, cell.seed), ()))
    return contents.compute(root)


def test_names_do_nothing_in_markdown(tmp_path):
    content = made.DEFINITION.to_dict()
    (waves,) = content["benchmarks"].values()
    definition = from_dict(content | {"name": "a _b_", "benchmarks": {"2. (w _x_": waves}}, "small")
    text = contents.compute(made.write_all(tmp_path / "board", definition=definition)).markdown()
    assert text.startswith("# a \\_b\\_\n")
    assert "\n## 2. (w \\_x\\_\n" in text
    assert "\n### 2. (w \\_x\\_: Sinusoids\n" in text
    assert "](figures/2.%20%28w%20_x_.png)\n" in text


def overview_of(found):
    return overview._figure(found.results, looks(found.definition.benchmarks))


@pytest.mark.parametrize("losses", [{"FTML": -0.5, "FromScratch": 0.5}, {"FTML": 0.0, "FromScratch": 0.0}])
def test_losses_that_are_not_above_zero_are_in_every_picture(tmp_path, losses):
    """As of a Gaussian likelihood, or where a problem is solved exactly."""
    found = board(tmp_path, losses)
    (result,), look = found.results, looks(found.definition.benchmarks)
    *_, last = figures._figure(result, look).axes
    assert last.get_yscale() == "linear"
    assert {line.get_ydata()[0] for line in last.get_lines()} == set(losses.values())
    _, area, *_ = overview_of(found).axes
    assert area.get_xscale() == "linear"
    drawn = charts.of_benchmark(result, found.runs, look)
    of_loss = [chart for chart in drawn["rounds"] if "loss" in chart["title"]]
    assert of_loss
    assert not any(chart["logY"] for chart in of_loss if min(losses.values()) < 0)


def test_losses_above_zero_stay_on_a_logarithmic_axis(tmp_path):
    found = board(tmp_path, {"FTML": 0.01, "FromScratch": 10.0})
    (result,), look = found.results, looks(found.definition.benchmarks)
    assert figures._figure(result, look).axes[-1].get_yscale() == "log"
    assert overview_of(found).axes[1].get_xscale() == "log"
    assert all(chart["logY"] for chart in charts.of_benchmark(result, found.runs, look)["rounds"])


def test_a_regret_below_zero_is_in_the_overview(tmp_path):
    """Against a comparator that is not the best."""
    of_cells = {
        (row, seed): [(t, "Regret", slope * (t + 1)) for t in range(4)]
        for row, slope in (("FTML", -0.1), ("FromScratch", 0.2))
        for seed in (0, 1)
    }
    _, regret, *_ = overview_of(board(tmp_path, {"FTML": 0.5, "FromScratch": 0.9}, of_cells)).axes
    assert regret.get_title(loc="left") == "regret, all rounds"
    assert regret.get_xscale() == "linear"
    places = {float(line.get_xdata()[0]) for line in regret.get_lines() if len(line.get_xdata()) == 1}
    assert {-0.4, 0.8} <= {round(place, 6) for place in places}


def test_a_measure_that_seeds_have_in_different_rounds_is_reported(tmp_path):
    """A first arrival that holds several classes says nothing of the only one: which rounds have a value is chance."""
    name = "Called_The_Only_Class"
    of_cells = {(row, seed): [(seed, name, 0.25)] for row in ("FTML", "FromScratch") for seed in (0, 1)}
    found = board(tmp_path, {"FTML": 0.5, "FromScratch": 0.9}, of_cells)
    (result,), look = found.results, looks(found.definition.benchmarks)
    assert "0.250" in measures.table(result).rows[0][1]
    (file,) = measures.draw(result, look, tmp_path, ["svg"])
    assert file.is_file()
    (chart,) = [
        one
        for one in charts.of_benchmark(result, found.runs, look)["rounds"]
        if one["title"] == "called the only class"
    ]
    assert chart["lines"] == {}


def test_a_running_mean_of_no_rounds_has_none():
    assert figures.running_mean(np.zeros((3, 0))).shape == (3, 0)


@pytest.mark.parametrize(("accuracy", "said"), [(0.9, "better →"), (None, "← better")])
def test_what_is_better_of_a_measure_hangs_on_what_it_is_of(tmp_path, accuracy, said):
    """Of classes it is an accuracy, also where γ is a loss."""
    root = made.write_all(tmp_path / "board")
    for cell in made.DEFINITION.cells():
        shutil.rmtree(root / cell.folder)
        of_rounds = [(t, "Online_Performance", 0.4) for t in range(4)]
        made.write_run(root, cell, [0.5] * 8, measures=of_rounds, accuracy=accuracy)
    panel = overview_of(contents.compute(root)).axes[1]
    assert panel.get_xlabel() == said
