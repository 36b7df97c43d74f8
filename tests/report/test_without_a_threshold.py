"""Reports of benchmarks without γ."""

from dataclasses import replace

import pytest
import yaml

from ftml_bench import report
from ftml_bench.errors import UsageError
from ftml_bench.report import benchmark, figures
from ftml_bench.results.looks import looks
from ftml_bench.results.statistics import results
from ftml_bench.runs import definition as definitions
from tests.report.made import CONTENT, FROM_SCRATCH, FTML, line, read, write_run


@pytest.fixture
def unjudged(tmp_path):
    """The same runs on a benchmark without γ."""
    folder = tmp_path / "unjudged"
    folder.mkdir()
    (folder / "leaderboard.yaml").write_text(yaml.safe_dump(CONTENT, sort_keys=False))
    for row, seeds in {"FTML": FTML, "FromScratch": FROM_SCRATCH}.items():
        for seed, rounds in enumerate(seeds):
            write_run(folder / f"digits/{row}/seed-{seed}", rounds, judged=False)
    return folder


def test_without_a_threshold_the_tables_hold_the_checkpoints_alone(unjudged):
    text = report.write(unjudged)
    markdown = (unjudged / "leaderboard.md").read_text()
    assert line(markdown, "FTML", "digits: RainbowDigits") == [
        "FTML \\*",
        "**0.300 ± 0.050**",
        "**0.250 ± 0.100**",
        "**0.225 ± 0.125**",
    ]
    assert line(markdown, "strategy", "digits: RainbowDigits")[1:] == ["error area", "error at 10", "error at 20"]
    cells = line(markdown, "FromScratch", "digits: FTML minus the others")[1:]
    assert [cell.split(" ")[0] for cell in cells] == ["-0.075", "-0.175", "-0.050"]
    assert "over the second half of the rounds (rounds 1–2 → 3–4)" in markdown
    page = (unjudged / "report.html").read_text().split("<details")[0]  # definitions stand below
    for written in (text, markdown, (unjudged / "leaderboard.csv").read_text(), page):
        assert "γ" not in written
        assert "fall" not in written
        assert "threshold" not in written
        assert "censored" not in written


def test_without_a_threshold_figure_and_differences_show_every_checkpoint(unjudged):
    result = results(*read(unjudged))[0]
    assert result.threshold is None
    # One between the first and the last, as the paper's Figure 4 has.
    for row in result.rows:
        for cell in row.cells.values():
            cell.errors[15] = [0.25] * 4
    result = replace(result, checkpoints=[10, 15, 20])
    figure = figures._figure(result, looks(definitions.load(str(unjudged / "leaderboard.yaml")).benchmarks))
    assert [panel.get_title() for panel in figure.axes] == [
        *(f"Error rate after {n} datapoints" for n in (10, 15, 20)),
        "Error rate, mean over the logarithm of datapoints",
    ]
    assert figure.axes[0].lines[0].get_ydata().tolist() == pytest.approx([0.35, 0.5, 0.35, 0.15])
    assert figure.axes[1].lines[0].get_ydata().tolist() == [0.25] * 4
    columns = ["strategy", "error area", "error at 10", "error at 15", "error at 20"]
    assert benchmark.tables(result)[1].columns == columns


def test_runs_with_and_without_a_threshold_are_not_mixed(unjudged):
    write_run(unjudged / "digits/FTML/seed-0", FTML[0])
    with pytest.raises(UsageError, match="its 'threshold' differs"):
        report.write(unjudged)
