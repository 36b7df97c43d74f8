"""From the definition to the report: measures, and the comparator row that stands for the best in hindsight."""

from __future__ import annotations

import csv
import io
from dataclasses import replace

import pytest
import torch
import yaml
from avalanche.training.supervised import Naive

from ftml_bench import metrics, report
from ftml_bench.benchmarks import LinearRegression, Sinusoids
from ftml_bench.errors import UsageError
from ftml_bench.metrics.measures import CURVES, MEASURES
from ftml_bench.protocol import in_hindsight
from ftml_bench.report import making
from ftml_bench.report import measures as shown
from ftml_bench.report.benchmark import tables as result_tables
from ftml_bench.results.looks import looks
from ftml_bench.results.quantities import comparisons, sums
from ftml_bench.results.statistics import results
from ftml_bench.runs import cell as cells
from ftml_bench.runs import record, schedule
from ftml_bench.runs.definition import Cell, available, from_dict, load
from ftml_bench.runs.reading import read_runs
from ftml_bench.runs.record import RunWriter
from ftml_bench.strategies import FTML, FollowTheLeader

FTML_ROW = {"meta_batch_size": 2, "support_size": 4, "query_size": 4, "inner_steps": 1}


def content(**changes):
    entry = {
        "benchmark": "Sinusoids",
        "settings": {"rounds": 4, "images_per_round": 12, "held_out_per_round": 10},
        "arrivals": 6,
        "checkpoints": [6, 12],
        "measures": ["regret"],
        "steps": 2,
        "optimizer": {"name": "Adam"},
        "strategies": {
            "FTML": FTML_ROW,
            "FromScratch": {"train_mb_size": 8},
            "hindsight": {"strategy": "FTML", "comparator": True, **FTML_ROW},
        },
    }
    return {"name": "tiny", "seeds": [0, 1], "benchmarks": {"waves": {**entry, **changes}}}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """The tiny leaderboard, run."""
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    outcomes = schedule.run_cells(from_dict(content(), "tiny"), folder, jobs=1, data=None, quiet=True)
    assert [status for _, status, _ in outcomes] == ["finished"] * 6
    return folder


def test_every_curve_has_a_metric_that_emits_it_and_every_measure_metrics(recorder):
    of_regret, of_terms = {"Regret", "Loss_Of_Round"}, {"Current_Task_Metric", "Long_Term_Metric"}
    assert set(CURVES) == {*of_regret, *of_terms, "Called_The_Only_Class", "Regret_Over_Shots", "Online_Performance"}
    for name, curves in MEASURES.items():
        (metric,) = metrics.measure_metrics([name], LinearRegression(rounds=2))
        assert str(metric) in curves


@pytest.mark.parametrize("measure", MEASURES)
def test_every_measure_is_of_the_rounds_that_there_are(measure, tmp_path):
    changes = {"measures": [measure], "strategies": {"FTML": FTML_ROW}}
    if measure == "only_class":
        model = {"name": "RainbowNet", "layers": 3, "filters": 4, "image_size": 14}
        settings = {"rounds": 4, "images_per_round": 20, "held_out_per_round": 50}
        changes |= {"benchmark": "ColoredDigits", "settings": settings, "model": model}
        changes |= {"arrivals": [2, 18], "checkpoints": [2, 20]}  # the first of one digit
    cells.run_cell(from_dict(content(**changes), "tiny"), Cell("waves", "FTML", 0), tmp_path, None, lambda *_: None)
    run = record.read(tmp_path)
    assert run.measures
    for name, values in run.measures.items():
        assert list(values) == ([0, 1, 3] if name == "Long_Term_Metric" else [0, 1, 2, 3])


class TestDefinition:
    def test_measures_and_comparators_survive_the_round_trip(self):
        definition = from_dict(content(), "tiny")
        assert definition.benchmarks[0].measures == ("regret",)
        assert [row.comparator for row in definition.benchmarks[0].rows] == [False, False, True]
        assert from_dict(definition.to_dict(), "tiny") == definition

    def test_definitions_without_them_have_the_hash_that_they_had(self):
        plain = content(measures=None, strategies={"FTML": FTML_ROW})
        text = from_dict(plain, "tiny").to_dict()["benchmarks"]["waves"]
        assert "measures" not in text
        assert "comparator" not in text["strategies"]["FTML"]

    def test_they_change_the_hash(self):
        rows = content()["benchmarks"]["waves"]["strategies"]
        plain = {**rows, "hindsight": {**rows["hindsight"], "comparator": False}}
        hashes = {from_dict(c, "tiny").hash for c in (content(), content(measures=None), content(strategies=plain))}
        assert len(hashes) == 3

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"measures": ["regrets"]}, "tiny: waves: measures: unknown measure 'regrets': did you mean 'regret'"),
            ({"measures": []}, "tiny: waves: measures: expected a list with at least one entry"),
            ({"strategies": {"FTML": {"comparator": "yes"}}}, "comparator: expected true or false, got 'yes'"),
            (
                {"strategies": {"FTML": {"comparator": True}}},
                "FTML is a comparator: expected a row beside it that is",
            ),
        ],
    )
    def test_bad_input(self, changes, message):
        with pytest.raises(UsageError, match=message):
            from_dict(content(**changes), "tiny")

    def test_the_definition_of_a_comparator_has_a_row_to_compare_it_with(self):
        definition = from_dict(content(), "tiny")
        for row, rows in (("hindsight", ["FTML", "hindsight"]), ("FromScratch", ["FromScratch"])):
            made = from_dict(yaml.safe_load(making.alone(definition, "waves", row)), "made")
            assert [one.name for one in made.benchmarks[0].rows] == rows

    def test_a_comparator_must_train_on_all_rounds(self, tmp_path):
        rows = {"FTML": {}, "x": {"strategy": "FollowTheLeader", "train_mb_size": 8, "comparator": True}}
        with pytest.raises(UsageError, match="FollowTheLeader does not train on all rounds: it cannot be a comparator"):
            cells.run_cell(
                from_dict(content(strategies=rows), "t"), Cell("waves", "x", 0), tmp_path, None, lambda *_: None
            )

    def test_the_only_class_needs_classes(self):
        with pytest.raises(UsageError, match="waves: only_class of a regression stream"):
            cells.check(from_dict(content(measures=["only_class"]), "t"), None)

    @pytest.mark.parametrize("name", ["regret", "colored"])
    def test_the_packaged_leaderboards_can_be_run(self, name):
        assert name in available()
        cells.check(load(name), None)


class TestRecord:
    def test_measures_are_read_as_they_were_written(self, tmp_path):
        writer = RunWriter.start(tmp_path, {"definition": "abc", "protocol": {}})
        writer.append_measure(0, "Regret", 0.1)
        writer.append_measure(1, "Regret", 1 / 3)
        writer.append_measure(1, "Regret", 2 / 3)  # evaluated again
        writer.finish("finished")
        assert record.read(tmp_path).measures == {"Regret": {0: 0.1, 1: 2 / 3}}

    def test_without_measures_there_is_no_file_and_an_earlier_ones_goes(self, tmp_path):
        (tmp_path / "measures.csv").write_text("an earlier attempt's")
        RunWriter.start(tmp_path, {"definition": "abc", "protocol": {}}).finish("finished")
        assert not (tmp_path / "measures.csv").exists()
        assert record.read(tmp_path).measures == {}

    def test_a_damaged_file_is_named(self, tmp_path):
        RunWriter.start(tmp_path, {"definition": "abc", "protocol": {}}).finish("finished")
        (tmp_path / "measures.csv").write_text("round,measure,value\n0,Regret,x\n")
        with pytest.raises(UsageError, match=r"measures.csv: damaged: line 2: value is 'x', expected a number"):
            record.read(tmp_path)


class TestCell:
    def test_a_run_leaves_its_measures(self, root):
        run = record.read(root / "waves/FTML/seed-0")
        assert set(run.measures) == {"Loss_Of_Round"}  # the best meta-learner is not known here
        assert list(run.measures["Loss_Of_Round"]) == [0, 1, 2, 3]

    def test_a_comparator_leaves_an_evaluation_a_round_and_takes_as_many_steps_as_the_others(self, root):
        run = record.read(root / "waves/hindsight/seed-0")
        assert [(row.round, row.datapoints, row.steps) for row in run.curve] == [(t, 12, 16) for t in range(4)]
        assert run.measures == {}
        assert record.read(root / "waves/FTML/seed-0").curve[-1].steps == 16

    def test_a_benchmark_may_propose_measures(self, tmp_path):
        entry = {"benchmark": "LinearRegression", "settings": {"rounds": 3}, "measures": None, "arrivals": None}
        rows = {"joint": {"strategy": "TrainOnEverything", "draw": "all"}}
        definition = from_dict(content(**entry, checkpoints=None, strategies=rows), "t")
        cells.run_cell(definition, Cell("waves", "joint", 0), tmp_path, None, lambda *_: None)
        assert set(record.read(tmp_path).measures) == {"Loss_Of_Round", "Regret"}


def test_in_hindsight_ends_at_w_maml():
    benchmark = LinearRegression(rounds=5, dimensions=3, images_per_round=8, held_out_per_round=6)
    model = benchmark.model()
    strategy = FTML(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=3.0),
        criterion=benchmark.criterion,
        inner_lr=benchmark.inner_lr,
        inner_steps=1,
        meta_batch_size=None,
        support_size=None,
        query_size=None,
        steps=2,
        eval_mb_size=6,
    )
    losses = [e.loss for e in in_hindsight(strategy, benchmark, steps=150)]
    assert torch.allclose(model.weight.flatten(), benchmark.w_maml(), atol=1e-6)
    assert sum(losses) == pytest.approx(float(benchmark.least_losses()[-1]), abs=1e-9)
    assert strategy.steps == 2


def test_who_does_not_train_on_all_rounds_is_refused():
    benchmark = Sinusoids(rounds=2, images_per_round=8)
    model = benchmark.model()
    optimizer = torch.optim.Adam(model.parameters())
    leader = FollowTheLeader(model=model, optimizer=optimizer, criterion=benchmark.criterion, train_mb_size=8, steps=1)
    with pytest.raises(UsageError, match="FollowTheLeader does not train on all rounds"):
        next(in_hindsight(leader, benchmark, steps=1))
    stock = Naive(model=model, optimizer=optimizer, criterion=benchmark.criterion)
    with pytest.raises(UsageError, match="Naive has no buffer: it cannot be a comparator"):
        next(in_hindsight(stock, benchmark, steps=1))


class TestReport:
    def test_the_regret_is_that_against_the_comparator_of_the_same_seed(self, root):
        definition, runs, _ = read_runs(root)
        (result,) = results(definition, runs, root)
        assert [row.row.name for row in result.rows] == ["FTML", "FromScratch"]
        assert result.comparator == "hindsight"
        for row in result.rows:
            for seed, cell in row.cells.items():
                losses = record.read(root / f"waves/{row.row.name}/seed-{seed}").measures["Loss_Of_Round"]
                best = [r.loss for r in record.read(root / f"waves/hindsight/seed-{seed}").curve]
                expected = [sum(losses[i] - best[i] for i in range(t + 1)) for t in range(4)]
                assert list(cell.measures["Regret"].values()) == pytest.approx(expected)

    def test_table_figure_and_csv(self, root):
        text = report.write(root)
        assert "The regret is an approximation" in text
        assert "hindsight, meta-trained on all 4 rounds" in text
        markdown = (root / "leaderboard.md").read_text()
        assert "### waves: round by round" in markdown
        assert "![waves-measures](figures/waves-measures.png)" in markdown
        assert (root / "figures/waves-measures.svg").is_file()
        assert (root / "report.html").read_text().count("<img") == 3  # of all rows, of the rounds, of what was measured
        rows = list(csv.DictReader(io.StringIO((root / "leaderboard.csv").read_text())))
        found = {(row["row"], row["quantity"]): float(row["mean"]) for row in rows if not row["minus"]}
        definition, runs, _ = read_runs(root)
        cells_ = results(definition, runs, root)[0].rows[0].cells.values()
        regret = [list(cell.measures["Regret"].values()) for cell in cells_]
        losses = [list(cell.measures["Loss_Of_Round"].values()) for cell in cells_]
        assert found["FTML", "average_regret_all_rounds"] == pytest.approx(sum(r[3] for r in regret) / 2 / 4)
        assert found["FTML", "regret_first_half"] == pytest.approx(sum(r[1] for r in regret) / 2)
        assert found["FTML", "regret_second_half"] == pytest.approx(sum(r[3] for r in regret) / 2)
        assert found["FTML", "loss_of_round_second_half"] == pytest.approx(sum(v[2] + v[3] for v in losses) / 4)

    def test_rows_are_compared_by_their_regret(self, root):
        """The last value over the rounds, less the other's; rounds in which one adds less to it, by hand."""
        definition, runs, _ = read_runs(root)
        (result,) = results(definition, runs, root)
        regret = [[list(cell.measures["Regret"].values()) for cell in row.cells.values()] for row in result.rows]
        (found,) = comparisons(result, result.rows[0], sums(result)[0])
        mine, other = ([curve[-1] / 4 for curve in curves] for curves in regret)
        assert found.quantity.title == "average regret"
        assert found.pair.mean == pytest.approx(sum(mine) / 2 - sum(other) / 2)
        added = [[[b - a for a, b in zip([0, *c], c, strict=False)] for c in curves] for curves in regret]
        less = sum(a < b for x, y in zip(*added, strict=True) for a, b in zip(x, y, strict=True))
        assert found.pair.wins == less
        columns, *_ = result_tables(result)
        assert "average regret" in columns.columns
        place = columns.columns.index("average regret")
        assert columns.rows[0][place].startswith(f"{sum(mine) / 2:.3f} ± ")
        assert "Average regret: that over all rounds, divided by their number." in columns.notes[-1]

    def test_a_sum_that_a_cell_lacks_for_a_round_is_not_compared(self, root):
        definition, runs, _ = read_runs(root)
        (result,) = results(definition, runs, root)
        assert [one.name for one in sums(result)] == ["average_regret"]
        del result.rows[1].cells[0].measures["Regret"][2]
        assert sums(result) == []

    def test_rounds_without_a_value_are_left_out(self, root, tmp_path):
        definition, runs, _ = read_runs(root)
        (result,) = results(definition, runs, root)
        curve = CURVES["Called_The_Only_Class"]
        cell = next(iter(result.rows[0].cells.values()))
        cell.measures["Called_The_Only_Class"] = {0: 0.5, 2: 0.25, 3: 0.75}
        numbers = shown.halves("Called_The_Only_Class", curve)
        assert [value(cell) for value in numbers.values()] == [0.5, 0.5]
        assert shown.table(result).rows[0][-1] == "0.500 → 0.500"  # one seed of two has it
        assert shown.table(result).rows[1][-1] == "– → –"
        assert shown.draw(result, looks(definition.benchmarks), tmp_path)

    def test_both_halves_of_one_round_are_that_round(self, root):
        definition, runs, _ = read_runs(root)
        (result,) = results(definition, runs, root)
        cell = replace(result.rows[0].cells[0], rounds=[0], measures={"Called_The_Only_Class": {0: 0.5}})
        numbers = shown.halves("Called_The_Only_Class", CURVES["Called_The_Only_Class"])
        assert [value(cell) for value in numbers.values()] == [0.5, 0.5]
        one = replace(result, rows=[replace(result.rows[0], cells={0: cell})])
        assert "mean over rounds 1–1 → 1–1" in shown.table(one).notes[-1]

    def test_an_exact_regret_is_kept(self, root):
        definition, runs, _ = read_runs(root)
        for cell, run in runs:
            if cell.row != "hindsight":
                run.measures["Regret"] = dict.fromkeys(range(4), 7.0)
        (result,) = results(definition, runs, root)
        assert result.comparator is None
        assert result.rows[0].cells[0].measures["Regret"][3] == 7.0
        assert "approximation" not in "".join(shown.table(result).notes)

    def test_without_measures_nothing_is_added(self, root):
        definition, runs, _ = read_runs(root)
        for _, run in runs:
            run.measures.clear()
        (result,) = results(definition, runs, root)
        assert shown.table(result) is None
        assert shown.draw(result, {}, root) == []
