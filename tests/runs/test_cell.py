"""A cell from its definition to its files."""

import json
import random
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import nn

from ftml_bench.benchmarks import RainbowDigits, Sinusoids
from ftml_bench.errors import UsageError
from ftml_bench.runs import cell as cells
from ftml_bench.runs import record
from ftml_bench.runs.definition import Cell, from_dict


def definition(**changes):
    """Two rounds of sinusoids, FTML and FromScratch; `changes` replace parts of the benchmark's entry."""
    entry = {
        "benchmark": "Sinusoids",
        "settings": {"rounds": 2, "images_per_round": 12, "held_out_per_round": 20},
        "arrivals": 4,
        "checkpoints": [4, 12],
        "steps": 2,
        "optimizer": {"name": "Adam", "lr": 0.001},
        "strategies": {"FTML": {"meta_batch_size": 2}, "FromScratch": {"train_mb_size": 40}},
    }
    return from_dict({"name": "tiny", "seeds": [3], "benchmarks": {"waves": {**entry, **changes}}}, "tiny")


class Unjudged(Sinusoids):
    """A stream without a level of proficiency."""

    def __init__(self, **settings):
        super().__init__(**settings)
        self.threshold = None


class UnjudgedDigits(RainbowDigits):
    """The same with classes."""

    def __init__(self, **settings):
        super().__init__(**settings)
        self.threshold = None


class Unequal(Sinusoids):
    """Rounds of 10 and of 6 points."""

    def __init__(self, *, seed=0):
        super().__init__(seed=seed, rounds=2, images_per_round=10)
        second = self.train_stream[1]
        second._dataset = second.dataset.subset(range(6))


class WithoutModel(Sinusoids):
    """As `TaskStream`, which has none."""

    def model(self):
        raise NotImplementedError("has no model of its own")


class Noisy(Sinusoids):
    """Its points are moved by draws from the global generators."""

    def __init__(self, **settings):
        super().__init__(**settings)
        for experience in self.train_stream:
            experience.stacked.x += torch.rand(1).item() + random.random() + np.random.rand()


class Drawing(nn.Module):
    """Initialised by NumPy; drops units as Python's `random` says."""

    def __init__(self):
        super().__init__()
        self.weights = nn.Parameter(torch.from_numpy(np.random.normal(size=(1, 20))).float())
        self.last = nn.Linear(20, 1)

    def forward(self, x):
        kept = random.random() if self.training else 1.0
        return self.last(torch.tanh(x @ self.weights) * kept)


def run(folder, row="FTML", **changes):
    told = []
    status = cells.run_cell(
        definition(**changes), Cell("waves", row, 3), folder, None, lambda done, total: told.append((done, total))
    )
    return status, told


def test_a_cell_leaves_its_files(tmp_path):
    status, told = run(tmp_path)
    assert status == "finished"
    assert told == [(i, 6) for i in range(7)]  # the first says where it begins
    result = record.read(tmp_path)
    assert [(row.round, row.datapoints) for row in result.curve] == [(t, n) for t in (0, 1) for n in (4, 8, 12)]
    assert [row.steps for row in result.curve] == [2, 4, 6, 8, 10, 12]
    assert result.record["cost"] == {
        "steps": 12,
        "images": 12 * 2 * 20,
        "gradient_evaluations": 12 * 2 * (2 * 50 + 10) + 20 * 2 * (4 + 8 + 12),
        "points_kept": 2 * 12,
    }
    assert result.record["engine"] in ("native", "batched")
    protocol = result.record["protocol"]
    assert protocol["threshold"] == ["loss", 1.0]
    assert protocol["settings"]["inner_lr"] == 0.01  # the benchmark's own default
    assert protocol["settings"]["update_steps"] == 20
    assert protocol["settings"]["support_size"] == 10
    assert protocol["batch_norm"] is None  # the network has no norm layers
    assert list(tmp_path.glob("events.out.tfevents.*"))


def test_a_record_has_settings_that_are_mappings(tmp_path):
    rule = {"name": "LastRounds", "rounds": 1}
    run(tmp_path, strategies={"FTML": {"meta_batch_size": 2, "buffer": rule}})
    assert record.read(tmp_path).record["protocol"]["settings"]["buffer"] == rule


def test_the_same_cell_twice_gives_the_same_bytes(tmp_path):
    run(tmp_path / "a")
    torch.rand(5)  # whatever happened in the process before
    run(tmp_path / "b")
    assert (tmp_path / "a/curve.csv").read_bytes() == (tmp_path / "b/curve.csv").read_bytes()


def test_what_draws_from_global_generators_is_decided_by_the_seed(tmp_path):
    changes = {
        "benchmark": f"{__name__}:Noisy",
        "model": {"name": f"{__name__}:Drawing"},
        "strategies": {"FollowTheLeader": {"train_mb_size": 4}},
    }
    for attempt in ("a", "b"):
        random.seed(attempt)
        np.random.seed(ord(attempt))
        torch.manual_seed(ord(attempt))
        run(tmp_path / attempt, row="FollowTheLeader", **changes)
    assert (tmp_path / "a/curve.csv").read_bytes() == (tmp_path / "b/curve.csv").read_bytes()


def test_the_rows_of_a_cell_see_the_same_stream_arrivals_and_first_parameters():
    d = definition()
    spec = d.benchmarks[0]
    built = []
    for row in spec.rows:
        benchmark = cells.build_benchmark(spec, 3, None)
        strategy = cells.build_strategy(spec, row, benchmark, 3)
        data = torch.cat([e.stacked.x[e.stacked.rows] for e in benchmark.train_stream])
        built.append((data, torch.cat([p.flatten() for p in strategy.model.parameters()])))
    for (data_a, parameters_a), (data_b, parameters_b) in pairwise(built):
        assert torch.equal(data_a, data_b)
        assert torch.equal(parameters_a, parameters_b)


def test_a_loss_that_becomes_nan_is_recorded_as_diverged_with_its_round(tmp_path):
    rows = {"FTML": {"meta_batch_size": 2, "inner_lr": 1e9}}
    status, told = run(tmp_path, strategies=rows)
    assert status == "diverged"
    assert told[-1][0] < told[-1][1]
    content = json.loads((tmp_path / "record.json").read_text())
    assert (content["status"], content["diverged_round"]) == ("diverged", 0)


def test_an_earlier_attempts_events_do_not_stay(tmp_path):
    (tmp_path / "tb").mkdir()
    old = [tmp_path / name for name in ("events.out.tfevents.1", "results.tfevents", "tb/events.out.tfevents.1")]
    for file in old:
        file.write_text("events of an attempt that was cut off")
    run(tmp_path)
    assert not any(file.exists() for file in old)


@pytest.mark.parametrize(
    ("arrivals", "expected"), [(4, [4, 8, 12]), (6, [12]), ([1, 7], [8, 12]), (5, [12]), (99, [12])]
)
def test_rounds_may_be_cut_otherwise_than_the_benchmark_proposes(arrivals, expected, tmp_path):
    """Of its own checkpoints, 4, 8 and 12 here, those count at which an arrival ends."""
    assert run(tmp_path, arrivals=arrivals, checkpoints=None)[0] == "finished"
    assert record.read(tmp_path).record["protocol"]["checkpoints"] == expected


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"checkpoints": [5, 12]}, "no arrival ends at checkpoint 5: the nearest ends at 4"),
        ({"settings": {"round": 2}}, "unknown setting of waves: Sinusoids 'round': did you mean 'rounds'"),
        ({"strategies": {"FTML": {"inner_lrr": 1}}}, "unknown setting of waves: FTML 'inner_lrr'.*'inner_lr'"),
        ({"strategies": {"FTML": {"batch_norm": "group"}}}, "waves: FTML: batch_norm: expected 'support' or"),
        ({"strategies": {"FTML": {"engine": "higer"}}}, "did you mean 'higher'"),
        ({"optimizer": {"name": "Adm"}}, "did you mean 'Adam'"),
        (
            {"optimizer": {"name": "Adam", "learning_rate": 1}},
            "of waves: FTML: Adam 'learning_rate': did you mean 'lr'",
        ),
        (
            {"strategies": {"FTML": {"optimiser": {"lr": 1}}}},
            "unknown setting of waves: FTML 'optimiser': did you mean 'optimizer'",
        ),
        ({"model": {"name": "RainbowNet", "filter": 3}}, "did you mean 'filters'"),
        (
            {"strategies": {"FTML": {"model": {"name": "SinusoidMLP", "hiden": 3}}}},
            "unknown setting of waves: FTML: SinusoidMLP 'hiden': did you mean 'hidden'",
        ),
        ({"threshold": ["accuracy", 0.9]}, "accuracy of a regression stream"),
        (
            {"benchmark": f"{__name__}:Unequal", "settings": {}},
            "waves: rounds of 6 to 10 datapoints: a leaderboard expects rounds of one size",
        ),
        (
            {"benchmark": f"{__name__}:WithoutModel"},
            "waves: WithoutModel has no model of its own: expected `model` in the definition",
        ),
    ],
)
def test_settings_that_cannot_be_run_are_refused_before_anything_runs(changes, message):
    with pytest.raises(UsageError, match=message) as error:
        cells.check(definition(**changes), None)
    assert "\n" not in str(error.value)


def test_missing_data_is_said_before_anything_runs(tmp_path):
    settings = {"rounds": 2, "images_per_round": 12, "held_out_per_round": 5}
    with pytest.raises(UsageError, match="MNIST"):
        cells.check(definition(benchmark="RainbowMNIST", settings=settings), str(tmp_path))


@pytest.mark.parametrize(("benchmark", "metric"), [("Unjudged", "loss"), ("UnjudgedDigits", "accuracy")])
def test_a_benchmark_without_a_threshold_is_measured_at_its_checkpoints(tmp_path, benchmark, metric):
    rows = {"FromScratch": {"train_mb_size": 10}}
    changes = {"benchmark": f"{__name__}:{benchmark}", "strategies": rows}
    cells.check(definition(**changes), None)
    spec = definition(**changes).benchmarks[0]
    strategy = cells.build_strategy(spec, spec.rows[0], cells.build_benchmark(spec, 3, None), 3)
    names = {str(m) for m in strategy.evaluator.metrics}
    assert names == {
        f"{metric.capitalize()}_{what}" for what in ("At_4_Datapoints", "At_12_Datapoints", "Over_Datapoints")
    } | {f"Final_{metric.capitalize()}"}
    assert run(tmp_path, "FromScratch", **changes)[0] == "finished"
    protocol = record.read(tmp_path).record["protocol"]
    assert (protocol["threshold"], protocol["metric"]) == (None, metric)
    # A definition may set one all the same.
    judged = definition(**changes, threshold=[metric, 0.5])
    assert cells.metric_of(judged.benchmarks[0], cells.build_benchmark(judged.benchmarks[0], 3, None)) == metric


def test_a_row_may_have_a_model_and_an_optimiser_of_its_own(tmp_path):
    rows = {
        "FromScratch": {"train_mb_size": 10},
        "wide": {
            "strategy": "FromScratch",
            "train_mb_size": 10,
            "model": {"name": "SinusoidMLP", "hidden": 7},
            "optimizer": {"name": "Adam", "lr": 0.5},
        },
    }
    changes = {
        "strategies": rows,
        "optimizer": {"name": "SGD", "lr": 0.01, "momentum": 0.9, "then": {"after_steps": 3, "lr": 0.001}},
    }
    for row in rows:
        run(tmp_path / row, row, **changes)
    plain, wide = (record.read(tmp_path / row).record["protocol"] for row in rows)
    assert plain["parameters"] == 1761
    assert wide["parameters"] == 7 + 7 + 49 + 7 + 7 + 1
    assert plain["optimizer"] == changes["optimizer"]
    assert wide["optimizer"] == {"name": "Adam", "lr": 0.5}  # nothing of the other optimiser


def test_the_learning_rate_of_a_definition_changes_in_the_cell(tmp_path):
    then = {"after_steps": 3, "lr": 0.001}
    curves = []
    for i, optimizer in enumerate([{"name": "SGD", "lr": 0.1}, {"name": "SGD", "lr": 0.1, "then": then}]):
        run(tmp_path / str(i), optimizer=optimizer)
        curves.append([row.loss for row in record.read(tmp_path / str(i)).curve])
    assert curves[0][:1] == curves[1][:1]  # two steps an arrival
    assert curves[0][1] != curves[1][1]


def test_the_optimisers_clip_of_a_definition_cuts_the_gradients_of_the_cell(tmp_path):
    curves = []
    for i, clip in enumerate([{}, {"clip": 1e6}, {"clip": 1e-3}]):
        run(tmp_path / str(i), optimizer={"name": "SGD", "lr": 0.1, **clip})
        curves.append([row.loss for row in record.read(tmp_path / str(i)).curve])
    assert curves[0] == curves[1]
    assert curves[0] != curves[2]
