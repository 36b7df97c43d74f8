"""The tables of small made-up runs against counts by hand."""

import csv
import io
import json
import math
import shutil

import pytest
import yaml

from ftml_bench import report
from ftml_bench.errors import UsageError
from ftml_bench.metrics.curves import Threshold
from ftml_bench.report import figures, tables
from ftml_bench.results.cells import HALVES, mean
from ftml_bench.results.looks import looks
from ftml_bench.results.statistics import Estimate, estimate, results
from ftml_bench.runs import definition as definitions
from ftml_bench.runs import record
from tests.report.made import (
    CONTENT,
    FTML,
    HASH,
    line,
    read,
    write_run,
)

pytestmark = pytest.mark.usefixtures("undrawn")


def test_the_table_of_results(root):
    report.write(root)
    text = (root / "leaderboard.md").read_text()
    assert line(text, "FTML", "digits: RainbowDigits") == [
        "FTML \\*",
        "17.5 ± 2.5 → **12.5 ± 2.5**",  # seeds: 20 -> 10 and 15 -> 15
        "**15.0 ± 5.0**",  # 10, 10 and 20, 20: the last round falls below 80 % again
        "25 %",  # none and one of two
        # Two evaluations: the mean of both errors. Seed 0: 0.4, 0.35, 0.15, 0.1; seed 1: 0.2, 0.5, 0.4, 0.3.
        "**0.300 ± 0.050**",
        "**0.250 ± 0.100**",  # 0.15 and 0.35
        "**0.225 ± 0.125**",  # 0.1 and 0.35
    ]
    assert line(text, "FTML", "digits: what it took") == ["FTML", "40", "1.2M", "20.0", "2 of 3", "support"]
    assert line(text, "FromScratch", "digits: RainbowDigits")[:4] == [
        "FromScratch",
        "20.0 ± 0.0 → 18.3 ± 1.7",
        "18.3 ± 1.7",
        "83 %",
    ]
    assert "FTML: 1 of 3 seeds diverged (seed 2, round 3)" in text
    assert "γ = 80 % accuracy" in text
    assert "(rounds 1–2 → 3–4)" in text
    assert "count as 20 (restricted mean)" in text


def test_the_tables_of_thirds(root):
    """Of four rounds the thirds are rounds 1, 2 and 3 to 4."""
    report.write(root)
    text = (root / "leaderboard.md").read_text()
    heading = "digits: datapoints to γ by thirds"
    assert line(text, "FTML", heading) == [
        "FTML",
        "15.0 → 20.0 → 12.5",  # 20 and 10; 20 and 20; 10, 10, 20 and 10
        "15.0 → 20.0 → 15.0",
        "10",  # of 10, 10, 20 (censored), 10
        "75 %",
        "75 %",
        "+5.0 ± 5.0",  # 20 - 10 and 15 - 15
        "+2.5 ± 7.5",  # FromScratch: 0, 5, 0; paired 10 - 0 and 0 - 5
    ]
    # One of six rounds reaches γ: the median is beyond N.
    assert line(text, "FromScratch", heading)[3:] == ["> 20", "17 %", "17 %", "+1.7 ± 1.7", "–"]
    assert "(rounds 1–1 → 2–2 → 3–4)" in text
    assert line(text, "FTML", "digits: error by thirds") == [
        "FTML",
        "0.300 → 0.425 → **0.237**",  # 0.15, 0.1, 0.4, 0.3
        "0.350 → 0.500 → **0.250**",
        "0.250 → 0.350 → **0.225**",
    ]


def test_rows_without_a_run_are_shown_as_such(root):
    text = report.write(root)
    markdown = (root / "leaderboard.md").read_text()
    assert set(line(markdown, "Scratch x10", "digits: RainbowDigits")[1:]) == {"–"}
    assert line(markdown, "Scratch x10", "digits: what it took")[-2] == "0 of 3"
    assert "Scratch x10: 3 of 3 seeds not run (seed 0; seed 1; seed 2)" in markdown
    assert "digits/Scratch x10/seed-1: not run" in text


def test_a_cell_that_failed_is_named_with_its_reason(root):
    record.mark_failed(root / "digits/FromScratch/seed-0", HASH, "ValueError: no", "Traceback\n")
    text = report.write(root)
    assert "FromScratch: 1 of 3 seeds failed (seed 0, ValueError: no)" in text
    assert "digits/FromScratch/seed-0: ValueError: no" in text
    assert "<li>digits/FromScratch/seed-0: ValueError: no</li>" in (root / "report.html").read_text()


def test_differences_are_paired_by_seed(root):
    report.write(root)
    text = (root / "leaderboard.md").read_text()
    cells = line(text, "FromScratch", "digits: FTML minus the others")
    # Seed 0: 10 - 20, 10 - 20, 0.25 - 0.4 (all rounds), 0.15 - 0.5, 0.1 - 0.3.
    # Seed 1: 15 - 15, 20 - 15, 0.35 - 0.35, 0.35 - 0.35, 0.35 - 0.25. Seed 2 diverged.
    assert [cell.split(" ")[0] for cell in cells[1:]] == ["-5.0", "-2.5", "-0.075", "-0.175", "-0.050"]
    # Rounds: 10 and 20, 10 and 20, 20 and 20, 10 and 10.
    assert line(text, "FromScratch", "digits: what can be said of datapoints to γ") == [
        "FromScratch",
        *("1 of 2", "2 / 2 / 0", "75 %", "1.000", "1.000", "cannot be told apart with 2 seeds"),
    ]
    assert "2 seeds cannot go below p = 0.5; for 0.05 after the correction for 2 rows it takes 7" in text


def test_the_csv_holds_the_numbers_unrounded(root):
    report.write(root)
    rows = list(csv.DictReader(io.StringIO((root / "leaderboard.csv").read_text())))
    found = {(row["row"], row["minus"], row["quantity"]): row for row in rows}
    fall = found["FromScratch", "", "fall"]
    assert (float(fall["mean"]), fall["seeds"]) == (pytest.approx(5 / 3), "3")
    difference = found["FTML", "FromScratch", "datapoints_to_threshold_second_half"]
    assert (difference["mean"], difference["standard_error"], difference["smaller"]) == ("-5.0", "5.0", "1")
    assert found["Scratch x10", "", "steps"]["mean"] == ""
    assert float(found["FTML", "", "error_at_20_second_half"]["mean"]) == pytest.approx(0.225)
    seeds = list(csv.DictReader(io.StringIO((root / "seeds.csv").read_text())))
    values = {(row["row"], row["seed"], row["quantity"]): float(row["value"]) for row in seeds}
    assert [values["FromScratch", str(seed), "fall"] for seed in range(3)] == [0, 5, 0]
    assert values["FTML", "1", "datapoints_to_stay_last_third"] == 20
    assert not [key for key in values if key[:2] == ("FTML", "2")]  # it diverged


def test_one_seed_has_no_standard_error(root):
    one = CONTENT | {"seeds": [1]}
    (root / "leaderboard.yaml").write_text(yaml.safe_dump(one, sort_keys=False))
    for file in root.glob("digits/*/seed-1/record.json"):
        file.write_text(file.read_text().replace(HASH, definitions.from_dict(one, "small").hash))
    report.write(root)
    text = (root / "leaderboard.md").read_text()
    assert line(text, "FTML", "digits: RainbowDigits")[1:4] == ["15.0 → **15.0**", "20.0", "50 %"]
    assert line(text, "FromScratch", "digits: FTML minus the others")[1] == "0.0"
    assert line(text, "FromScratch", "digits: what can be said of datapoints to γ")[1] == "0 / 2 / 0"  # 20 and 10, both


def test_of_one_seed_nothing_has_an_error(root):
    for folder in root.glob("*/*/seed-[12]"):
        shutil.rmtree(folder)
    text = report.write(root)
    assert "±" not in text
    assert "Of one seed, without an error" in text
    markdown = (root / "leaderboard.md").read_text(encoding="utf-8")
    assert "±" not in markdown
    assert "p (Holm)" not in markdown
    assert "interval" not in markdown
    assert "told" not in markdown
    assert markdown.count("One seed decides nothing: how far others would lie from it is not known.") == 1
    heading = "digits: what can be said of datapoints to γ"
    assert line(markdown, "FromScratch", heading) == ["FromScratch", "2 / 0 / 0", "100 %"]  # 10, 10 and 20, 20


def test_of_an_odd_number_of_rounds_the_middle_one_belongs_to_the_second_half(root):
    for path in root.glob("digits/*/seed-*"):
        shutil.rmtree(path)
    write_run(root / "digits/FTML/seed-0", FTML[0][:3])
    file = root / "digits/FTML/seed-0/record.json"
    file.write_text(file.read_text().replace('"rounds": 4', '"rounds": 3'))
    found = results(*read(root))[0].rows[0].cells[0]
    assert [mean(found.to_threshold, half) for half in HALVES] == [20, 15]


def test_a_regression_shows_its_loss(root):
    for seed in range(3):
        write_run(root / f"digits/FTML/seed-{seed}", [(0.9, 0.7)] * 4, metric="loss")
        write_run(root / f"digits/FromScratch/seed-{seed}", [(0.9, 0.8)] * 4, metric="loss")  # 0.8 is not below 0.8
    text = report.write(root)
    assert "loss at 10" in text
    assert "γ = loss below 0.8" in text
    cells = line((root / "leaderboard.md").read_text(), "FTML", "digits: RainbowDigits")
    assert cells[1:4] == ["20.0 ± 0.0 → **20.0 ± 0.0**", "**20.0 ± 0.0**", "0 %"]
    assert cells[5:] == ["**0.900 ± 0.000**", "**0.700 ± 0.000**"]
    assert line((root / "leaderboard.md").read_text(), "FromScratch", "digits: RainbowDigits")[3] == "100 %"


def test_where_nothing_has_finished_there_is_a_report_of_what_is_open(root):
    for path in root.glob("digits/*/seed-*"):
        shutil.rmtree(path)
    text = report.write(root)
    assert text.count("not run") == 9
    assert "digits/FTML/seed-0: not run" in (root / "report.html").read_text()


def test_where_all_have_diverged_there_is_a_table_of_nothing(root):
    for path in root.glob("digits/*/seed-*"):
        shutil.rmtree(path)
    write_run(root / "digits/FTML/seed-0", FTML[0][:1], status="diverged", diverged_round=0)
    text = report.write(root)
    assert "seeds diverged (seed 0, round 1)" in text


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda lines: lines[:-4], r"FTML/seed-0/curve.csv: damaged: 3 rounds were evaluated, expected 4"),
        (lambda lines: lines[:1] + lines[2:], r"curve.csv: damaged: round 1 has no evaluation at 10 datapoints"),
        (lambda lines: [line.replace(",0.7,", ",,") for line in lines], r"round 1 has no accuracy at 20 datapoints"),
    ],
)
def test_a_curve_that_is_not_what_the_protocol_says_is_refused(root, damage, message):
    file = root / "digits/FTML/seed-0/curve.csv"
    file.write_text("\n".join(damage(file.read_text().splitlines())) + "\n")
    _without_hashes(file.parent)
    with pytest.raises(UsageError, match=message):
        report.write(root)


def test_runs_of_different_protocols_are_not_averaged(root):
    write_run(root / "digits/FTML/seed-1", [(0.9, 0.7)] * 4, metric="loss")
    with pytest.raises(UsageError, match=r"seed-1/record.json: its 'threshold' differs from the other runs'"):
        report.write(root)


def test_a_wide_table_goes_on_below():
    table = tables.Table("Heading", ["name", "one", "two"], [["first", "1", "2"], ["second", "10", "20"]], ["a note"])
    assert table.text() == "Heading\n\nname    one  two\nfirst     1    2\nsecond   10   20\n\n* a note\n"
    blocks = "Heading\n\nname    one\nfirst     1\nsecond   10\n\nname    two\nfirst     2\nsecond   20\n\n* a note\n"
    assert table.text(width=12) == blocks
    assert table.text(width=3) == blocks  # never narrower than a column


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (950, "950"), (999.6, "1.0k"), (12_345, "12.3k"), (999_960, "1.0M"), (1.24e6, "1.2M"), (5e13, "50.0T")],
)
def test_counts_for_people(value, text):
    assert tables.human(value) == text


def test_estimates():
    assert estimate([]) == Estimate(None, None, 0)
    assert estimate([4]) == Estimate(4.0, None, 1)
    assert estimate([1, 2, 3, 4]).standard_error == pytest.approx(math.sqrt(5 / 3) / 2)


def test_the_running_mean_uses_the_rounds_that_exist():
    import numpy as np

    smooth = figures.running_mean(np.array([[0.0, 5.0, 10.0, 0.0, 0.0, 0.0]]))
    assert smooth.tolist() == [[5.0, 3.75, 3.0, 3.0, 2.5, 0.0]]


def test_the_figure_has_the_papers_three_panels_and_survival(root):
    result = results(*read(root))[0]
    figure = figures._figure(result, looks(definitions.load(str(root / "leaderboard.yaml")).benchmarks))
    assert [panel.get_title() for panel in figure.axes] == [
        "Datapoints to γ (80 % accuracy)",
        "Rounds short of γ (80 % accuracy), last third",
        "Error rate after 10 datapoints",
        "Error rate after 20 datapoints",
    ]
    ftml_mean = figure.axes[0].lines[0].get_ydata().tolist()
    assert ftml_mean == [15.0, 20.0, 15.0, 10.0]  # 20, 20, 10, 10 and 10, 20, 20, 10
    # Of the rounds 3 and 4 of FTML's two seeds three are learned with 10, and one (20, censored) never is.
    assert figure.axes[1].lines[0].get_xydata().tolist() == [[7, 1], [10, 0.25], [20, 0.25], [20, 0.25]]
    assert result.threshold == Threshold("accuracy", 0.8)


def _without_hashes(folder):
    """As records were before they held hashes of their tables."""
    file = folder / "record.json"
    file.write_text(json.dumps({key: value for key, value in json.loads(file.read_text()).items() if key != "tables"}))
