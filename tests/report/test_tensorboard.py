"""What TensorBoard shows of a leaderboard, read back, against counts by hand."""

import csv
import json
import shutil

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar.layout_pb2 import Layout
from tensorboard.plugins.hparams import metadata
from torch.utils.tensorboard import SummaryWriter

from ftml_bench import report
from ftml_bench.metrics.curves import Threshold
from ftml_bench.metrics.rounds import DatapointsToThreshold, FinalPerformance, LearningCurve, PerformanceAtCheckpoint
from ftml_bench.report import hparams, tensorboard
from ftml_bench.report.contents import compute
from ftml_bench.runs.definition import Cell
from ftml_bench.runs.record import Run

pytestmark = pytest.mark.usefixtures("undrawn")

SETTINGS = {"inner_lr": 0.1, "engine": "auto", "second_order": True, "task_sampler": None, "adapted": ["head", "norm"]}


def write_events(folder, **curves):
    """Those of a cell, as Avalanche's logger writes them: tag -> x -> value."""
    with SummaryWriter(folder) as writer:
        for tag, curve in curves.items():
            for x, value in curve.items():
                writer.add_scalar(tag, value, x)


@pytest.fixture
def board(root):
    """The made-up board, FTML's seeds with curves and settings."""
    for seed in range(3):
        folder = root / f"digits/FTML/seed-{seed}"
        rounds = range(1, 4) if seed == 1 else range(1, 5)
        write_events(folder, Final_Accuracy=dict.fromkeys(rounds, 0.25 * seed), Only_Here={1: 7.0} if seed == 0 else {})
        file = folder / "record.json"
        record = json.loads(file.read_text())
        optimizer = {"name": "Adam", "lr": 0.003}
        record["protocol"] |= {"strategy": "FTML", "steps": 5, "optimizer": optimizer, "settings": SETTINGS}
        file.write_text(json.dumps(record))
    return root


def opened(folder):
    found = EventAccumulator(str(folder), size_guidance={"scalars": 0, "images": 0, "tensors": 0})
    found.Reload()
    return found


def scalars(folder):
    """tag -> x -> value; a value that stands there twice fails."""
    found = opened(folder)
    curves = {tag: [(event.step, event.value) for event in found.Scalars(tag)] for tag in found.Tags()["scalars"]}
    assert all(len(dict(curve)) == len(curve) for curve in curves.values())
    return {tag: dict(curve) for tag, curve in curves.items()}


def settings(folder):
    content = opened(folder).SummaryMetadata(metadata.SESSION_START_INFO_TAG).plugin_data.content
    return metadata.parse_session_start_info_plugin_data(content)


def write(board):
    """What a report does for TensorBoard, and nothing else of it."""
    tensorboard.write(compute(board), board)


def test_every_cell_has_its_results(board):
    report.write(board)
    found = {tag: curve for tag, curve in scalars(board / "digits/FTML/seed-1").items() if tag.startswith("results/")}
    assert found == {
        "results/datapoints_to_threshold_second_half": {4: 15.0},  # 20, which is censored, and 10
        "results/datapoints_to_stay_second_half": {4: 20.0},  # the last round falls below 80 % again
        "results/area_all_rounds": {4: pytest.approx(0.35)},  # of 0.2, 0.5, 0.4, 0.3
        "results/error_at_10_second_half": {4: pytest.approx(0.35)},
        "results/error_at_20_second_half": {4: pytest.approx(0.35)},
    }
    with (board / "seeds.csv").open() as file:
        lines = [row for row in csv.DictReader(file) if (row["row"], row["seed"]) == ("FTML", "1")]
    of_table = {f"results/{row['quantity']}": float(row["value"]) for row in lines}
    assert {tag: curve[4] for tag, curve in found.items()} == pytest.approx({tag: of_table[tag] for tag in found})


def test_every_cell_has_its_settings(board):
    write(board)
    found = settings(board / "digits/FTML/seed-1")
    assert {name: value.number_value for name, value in found.hparams.items() if value.HasField("number_value")} == {
        "inner_lr": 0.1,
        "optimizer.lr": 0.003,
        "seed": 1,
        "steps": 5,
    }
    assert {name: value.string_value for name, value in found.hparams.items() if value.HasField("string_value")} == {
        "adapted": '["head", "norm"]',
        "benchmark": "digits",
        "engine": "auto",
        "optimizer.name": "Adam",
        "row": "FTML",
        "strategy": "FTML",
    }
    assert found.hparams["second_order"].bool_value
    assert "task_sampler" not in found.hparams
    record = json.loads((board / "digits/FTML/seed-1/record.json").read_text())
    assert found.group_name == f"digits/FTML/seed-1 (small, {record['started']})"


def test_the_columns_are_settings_that_differ_first_and_what_rows_are_compared_by(board):
    write(board)
    content = opened(board / "digits").SummaryMetadata(metadata.EXPERIMENT_TAG).plugin_data.content
    found = metadata.parse_experiment_plugin_data(content)
    infos = {info.name: info for info in found.hparam_infos}
    assert {name for name, info in infos.items() if info.differs} == {"row", "seed"}
    assert (infos["seed"].domain_interval.min_value, infos["seed"].domain_interval.max_value) == (0, 2)
    assert list(infos["row"].domain_discrete) == ["FTML", "FromScratch"]
    assert {info.name.tag: info.display_name for info in found.metric_infos} == {
        "results/datapoints_to_threshold_second_half": "datapoints to γ, second half",
        "results/datapoints_to_stay_second_half": "reaches and stays, second half",
        "results/area_all_rounds": "error area, all rounds",
        "results/error_at_10_second_half": "error at 10, second half",
        "results/error_at_20_second_half": "error at 20, second half",
    }


def test_a_setting_is_of_one_kind_in_all_rows():
    """TensorBoard has columns of numbers, of texts and of what is true or not, and no other."""
    given = {"all": "all", "some": 5, "none": None, "true": True}
    protocols = {row: {"settings": {"size": value}} for row, value in given.items()}
    runs = {Cell("a", row, 0): Run({"protocol": protocol}, [], 1.0) for row, protocol in protocols.items()}
    found = hparams.settings(runs)
    assert [one.get("size") for one in found.values()] == ["all", "5", None, "true"]
    assert [one["seed"] for one in found.values()] == [0] * 4


def test_a_cell_that_diverged_has_settings_and_no_results(board):
    write(board)
    assert settings(board / "digits/FTML/seed-2").hparams["seed"].number_value == 2
    assert list(scalars(board / "digits/FTML/seed-2")) == ["Final_Accuracy"]


def test_a_row_has_the_mean_of_its_finished_seeds(board):
    """Of what both have, at what is x of both; nothing of a row whose cells have written nothing."""
    write(board)
    assert scalars(board / "digits/FTML/mean") == {"Final_Accuracy": dict.fromkeys((1, 2, 3), 0.125)}
    assert not (board / "digits/FromScratch/mean").exists()


def test_a_mean_of_before_does_not_stay(board):
    write(board)
    shutil.rmtree(board / "digits/FTML/seed-1")
    write(board)
    assert list((board / "digits/FTML/mean").iterdir()) == []


def test_written_again_it_takes_the_place_of_what_was_there(board):
    def files():
        return sorted(path.relative_to(board) for path in board.rglob("*tfevents*"))

    write(board)
    before = files(), scalars(board / "digits/FTML/seed-0"), scalars(board / "digits/FTML/mean")
    write(board)
    assert (files(), scalars(board / "digits/FTML/seed-0"), scalars(board / "digits/FTML/mean")) == before


def test_events_of_before_are_read_where_they_lay(board):
    write(board)
    before = scalars(board / "digits/FTML/mean")
    for seed in range(2):
        folder = board / f"digits/FTML/seed-{seed}"
        (folder / "tb").mkdir()
        for file in folder.glob("events.*"):
            file.rename(folder / "tb" / file.name)
    write(board)
    assert scalars(board / "digits/FTML/mean") == before


def test_a_board_whose_cells_have_no_events_gets_none(root):
    report.write(root)
    assert list(root.rglob("*tfevents*")) == []


def charts(folder):
    """Titles and expressions of tags of the layout."""
    (event,) = opened(folder).Tensors("custom_scalars__config__")
    (category,) = Layout.FromString(event.tensor_proto.string_val[0]).category
    assert category.title == "The paper's panels"
    return {chart.title: list(chart.multiline.tag) for chart in category.chart}


def test_the_panels_are_of_tags_that_cells_write(board):
    write(board)
    metrics = {
        "Datapoints to γ, by round": DatapointsToThreshold(Threshold("accuracy", 0.8)),
        "Accuracy after 10 datapoints, by round": PerformanceAtCheckpoint(10, "accuracy"),
        "Accuracy with all datapoints, by round": FinalPerformance("accuracy"),
        "Accuracy over datapoints": LearningCurve("accuracy"),
    }
    assert charts(board / "digits") == {title: [f"^{metric}(/|$)"] for title, metric in metrics.items()}


def test_pictures(board):
    from PIL import Image

    (board / "figures").mkdir()
    Image.new("RGB", (30, 20), "red").save(board / "figures/digits-tasks.png")
    write(board)
    found = opened(board / "digits")
    assert found.Tags()["images"] == ["Tasks", "Rounds_Short_Of_Threshold"]
    (tasks,), (survival,) = (found.Images(tag) for tag in found.Tags()["images"])
    assert (tasks.width, tasks.height) == (30, 20)
    assert tasks.encoded_image_string == (board / "figures/digits-tasks.png").read_bytes()
    assert survival.width > 2 * survival.height / 2 > 500
