"""The figure of all rows: what its markers stand at, by hand."""

import itertools
from itertools import combinations

import pytest
import yaml
from matplotlib.figure import Figure
from matplotlib.text import Text

from ftml_bench.errors import UsageError
from ftml_bench.report import contents, figures, labels, overview
from ftml_bench.results.looks import looks
from ftml_bench.runs import definition as definitions
from tests.report.made import CONTENT, FROM_SCRATCH, FTML, made_in, write_run


def drawn(root):
    found = contents.compute(root)
    return overview._figure(found.results, looks(found.definition.benchmarks))


def markers(panel):
    """(x, y, fill) of every marker."""
    return {
        (round(float(line.get_xdata()[0]), 4), round(float(line.get_ydata()[0]), 4), line.get_fillstyle())
        for line in panel.lines
        if line.get_marker() not in ("", "None", "|")
    }


def test_halves_of_the_rounds_stand_on_a_rows_line(tmp_path):
    efficiency, area, spent = drawn(made_in(tmp_path)).axes
    assert markers(efficiency) == {
        (17.5, 0, "none"),  # FTML's two seeds: 20, 20 and 10, 20
        (12.5, 0, "full"),  # 10, 10 and 20, 10
        (20.0, 2, "none"),  # FromScratch
        (18.3333, 2, "full"),  # 20, 20; 20, 10; 20, 20
    }
    names = [label.get_text() for label in efficiency.get_yticklabels()]
    assert names == ["FTML  1", "Scratch x10  2", "FromScratch  3"]
    assert efficiency.get_ylim()[0] > efficiency.get_ylim()[1]  # the first on top
    assert {fill for _, _, fill in markers(area)} == {"full"}
    # 40 steps of 31,000 evaluations; how much is kept no run says
    assert {(x, y) for x, y, _ in markers(spent)} == {(1_240_000, 12.5), (1_240_000, 18.3333)}
    assert [text.get_text() for text in spent.texts] == ["1", "3"]


def test_what_is_kept_has_a_panel_where_a_row_says_so(tmp_path):
    root = tmp_path / "runs"
    root.mkdir()
    (root / "leaderboard.yaml").write_text(yaml.safe_dump(CONTENT, sort_keys=False))
    for row, rounds, kept in (("FTML", FTML[0], 80), ("FromScratch", FROM_SCRATCH[0], None)):
        write_run(root / f"digits/{row}/seed-0", rounds, cost={"points_kept": kept})
    *_, kept = drawn(root).axes
    assert kept.get_title(loc="left") == "over points kept"
    assert {(x, y) for x, y, _ in markers(kept)} == {(80, 10)}


def test_no_benchmark_takes_the_place_of_its_file():
    taken = {**CONTENT, "benchmarks": {"overview": CONTENT["benchmarks"]["digits"]}}
    with pytest.raises(UsageError, match="overview"):
        definitions.from_dict(taken, "small")


def test_numbers_of_points_at_one_place_are_not_over_each_other():
    figure = Figure(figsize=(2, 2))
    axes = figure.subplots()
    points = {"1": (10.0, 5.0), "2": (10.0, 5.0), "3": (10.0, 5.1), "4": (10.5, 5.0), "5": (2.0, 5.0)}
    for x, y in points.values():
        axes.plot(x, y)
    axes.set(xlim=(1, 20), ylim=(4, 6))
    labels.beside(axes, points)
    figure.draw_without_rendering()
    boxes = {text.get_text(): Text.get_window_extent(text) for text in axes.texts}
    assert boxes.keys() == points.keys()
    assert not any(a.overlaps(b) for a, b in combinations(boxes.values(), 2))
    assert [text.get_text() for text in axes.texts if text.arrow_patch is None] == ["5"]
    assert all(boxes[name].x0 > axes.transData.transform(points[name])[0] for name in points)


@pytest.mark.parametrize("span", [1.0, 3, 9.9, 11, 25, 35, 90, 150, 400, 2e3, 3e4, 1e6])
@pytest.mark.parametrize("least", [7.0, 4.3e4, 9e5])
def test_numbers_below_a_short_panel_do_not_run_into_each_other(least, span):
    with figures.styled():
        figure = Figure(figsize=(1.8, 1.5))
        axes = figure.subplots()
        axes.plot([least, least * span], [1, 2], "o")
        axes.margins(0.2)
        overview._logarithmic(axes, "x", few=True)
        figure.draw_without_rendering()
        left, right = axes.get_window_extent().x0, axes.get_window_extent().x1
        boxes = [label.get_window_extent() for label in axes.get_xticklabels() if label.get_text()]
    boxes = [box for box in boxes if left <= (box.x0 + box.x1) / 2 <= right]
    assert all(a.x1 + 3 < b.x0 for a, b in itertools.pairwise(sorted(boxes, key=lambda box: box.x0)))


def test_every_panel_says_what_it_shows_and_which_way_is_better(tmp_path):
    root = made_in(tmp_path)
    efficiency, area, spent = drawn(root).axes
    assert [axes.xaxis.get_label().get_text() for axes in (efficiency, area, spent)] == ["← better", "← better", ""]
    assert (efficiency.xaxis.get_label().get_position()[0], spent.get_ylabel()) == (0, "datapoints to γ")
    assert overview.caption(contents.compute(root).results) == (
        "Every row, with its number in the panels to the right. Hollow: mean over the first half of the rounds. Full: "
        "second half of the rounds; an area is over all rounds; a running sum or mean is its last value; bars: ± one "
        "standard error over seeds. Right: the first panel's number against what it cost in one run."
    )


@pytest.mark.parametrize(("metric", "said"), [("Online_Performance", "better →"), ("Regret_Over_Shots", "← better")])
def test_accuracies_are_better_high_and_sums_of_losses_low(metric, said, tmp_path):
    found = contents.compute(made_in(tmp_path))
    for row in found.results[0].rows:
        for cell in row.cells.values():
            cell.measures[metric] = dict.fromkeys(cell.rounds, 0.5)
    second = overview._figure(found.results, looks(found.definition.benchmarks)).axes[1]
    assert second.xaxis.get_label().get_text() == said


@pytest.mark.filterwarnings("error")
def test_names_of_two_hundred_letters_leave_room_for_the_panels(tmp_path):
    name = "FromScratch whose name says each of its settings" + " and more" * 16
    content = {
        **CONTENT,
        "benchmarks": {
            "d" * 190: CONTENT["benchmarks"]["digits"] | {"strategies": {"FTML": {}, name: {"strategy": "FromScratch"}}}
        },
    }
    definition = definitions.from_dict(content, "long")
    (tmp_path / "leaderboard.yaml").write_text(yaml.safe_dump(content))
    for cell in definition.cells():
        rounds = FTML[0] if cell.row == "FTML" else FROM_SCRATCH[0]
        write_run(tmp_path / cell.folder, rounds, definition=definition.hash)
    first = drawn(tmp_path).axes[0]
    assert first.get_position().width > 0.2
    assert [len(label.get_text()) for label in first.get_yticklabels()] == [len("FTML  1"), 40 + len("  2")]
