"""Loggers: everything that a run emits arrives, whatever its type."""

import csv
import io
import json

import numpy as np
import pytest
import torch
from avalanche.evaluation.metric_results import AlternativeValues
from avalanche.evaluation.metrics import (
    WeightCheckpoint,
    accuracy_metrics,
    bwt_metrics,
    confusion_matrix_metrics,
    forgetting_metrics,
    loss_metrics,
)
from avalanche.logging import InteractiveLogger, TensorboardLogger, TextLogger
from avalanche.training.plugins import EvaluationPlugin
from matplotlib.figure import Figure
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from ftml_bench.benchmarks import arrivals
from ftml_bench.errors import UsageError
from ftml_bench.loggers import CSVLogger, WandBLogger
from ftml_bench.metrics import checkpoint_metrics, efficiency_metrics, final_performance_metrics
from ftml_bench.models import RainbowNet, SinusoidMLP
from ftml_bench.protocol import held_out, run
from ftml_bench.saving import load, save
from ftml_bench.strategies import FTML, TrainOnEverything


def rows(path):
    with path.open(newline="") as file:
        return list(csv.reader(file))


@pytest.fixture
def wandb_offline(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    return {"dir": str(tmp_path), "params": {"mode": "offline"}}


def test_every_logger_has_every_number_of_a_run(tiny_digits, tmp_path, recorder, wandb_offline, capsys):
    torch.manual_seed(0)
    model = RainbowNet(filters=4, layers=3, image_size=14)
    text = io.StringIO()
    loggers = [
        recorder,
        InteractiveLogger(),
        TextLogger(text),
        TensorboardLogger(tmp_path / "tb"),
        CSVLogger(tmp_path / "new" / "metrics.csv"),
        WandBLogger(**wandb_offline),
    ]
    evaluator = EvaluationPlugin(
        efficiency_metrics(threshold=("accuracy", 0.1)),
        checkpoint_metrics(checkpoints=[15], metric="accuracy"),
        final_performance_metrics(metric="accuracy"),
        accuracy_metrics(epoch=True, experience=True, stream=True),
        loss_metrics(minibatch=True, experience=True),
        forgetting_metrics(experience=True, stream=True),
        bwt_metrics(stream=True),
        confusion_matrix_metrics(num_classes=10, stream=True, wandb=False, save_image=False),
        WeightCheckpoint(),
        loggers=loggers,
    )
    strategy = FTML(
        model=model,
        optimizer=torch.optim.Adam(model.parameters()),
        evaluator=evaluator,
        steps=2,
        meta_batch_size=2,
        support_size=3,
        query_size=3,
        eval_mb_size=50,
    )
    run(strategy, tiny_digits, arrivals=[15], progress=False)
    emitted = recorder.emitted
    numbers = {
        name: [(x, v) for n, v, x in emitted if n == name] for name, value, _ in emitted if type(value) in (int, float)
    }
    assert len({name.split("/")[0] for name in numbers}) > 8
    others = {name for name, _, _ in emitted} - set(numbers)
    assert {name.split("/")[0] for name in others} == {"ConfusionMatrix_Stream", "WeightCheckpoint"}

    written = rows(tmp_path / "new" / "metrics.csv")
    assert written[0] == ["metric", "x", "value"]
    assert [row[0] for row in written[1:]] == [name for name, _, _ in emitted]
    for name, curve in numbers.items():
        assert [(int(x), float(v)) for n, x, v in written[1:] if n == name] == curve
    weights = [v for n, _, v in written[1:] if n.startswith("WeightCheckpoint")]
    assert all(v.startswith("<") and v.endswith(" bytes>") for v in weights)

    loggers[3].writer.close()
    events = EventAccumulator(str(tmp_path / "tb"))
    events.Reload()
    assert sorted(events.Tags()["scalars"]) == sorted(numbers)
    for name, curve in numbers.items():
        assert [s.value for s in events.Scalars(name)] == pytest.approx([v for _, v in curve], rel=1e-5)

    import wandb

    summary = dict(wandb.run.summary)
    wandb.finish()
    for name, curve in numbers.items():
        assert (summary[f"{name}/x"], summary[name]) == (curve[-1][0], pytest.approx(curve[-1][1]))
    assert any(name.startswith("ConfusionMatrix") for name in summary)

    printed = capsys.readouterr().out
    for name in numbers:
        assert name in text.getvalue()
        assert name in printed


def test_values_of_every_type_are_written(tmp_path):
    logger = CSVLogger(tmp_path / "metrics.csv")
    for name, value in {
        "float": 0.1,
        "int": 3,
        "nan": float("nan"),
        "numpy": np.float64(0.25),
        "numpy whole": np.int64(4),
        "tensor": torch.tensor(0.5),
        "one": torch.tensor([0.75]),
        "vector": torch.tensor([1.0, 2.0]),
        "matrix": np.eye(2),
        "list": [1, 2],
        "text": "a, b",
        "none": None,
        "dict": {"a": 1, "b": np.float32(2)},
        "figure": Figure(),
        "either": AlternativeValues(Figure(), 0.125),
        "bytes": b"abc",
    }.items():
        logger.log_single_metric(name, value, 7)
    logger.close()
    written = {name: value for name, x, value in rows(tmp_path / "metrics.csv")[1:]}
    assert {n: float(written[n]) for n in ("float", "int", "numpy", "numpy whole", "tensor", "one", "either")} == {
        "float": 0.1,
        "int": 3,
        "numpy": 0.25,
        "numpy whole": 4,
        "tensor": 0.5,
        "one": 0.75,
        "either": 0.125,
    }
    assert written["nan"] == "nan"
    assert json.loads(written["vector"]) == [1, 2]
    assert json.loads(written["matrix"]) == [[1, 0], [0, 1]]
    assert json.loads(written["list"]) == [1, 2]
    assert (written["text"], written["none"]) == ("a, b", "null")
    assert (written["dict/a"], float(written["dict/b"])) == ("1", 2.0)
    assert (written["figure"], written["bytes"]) == ("<Figure>", "<3 bytes>")


def script(benchmark, folder, until, saves=True):
    """What somebody runs, and runs again after it was killed; it saves after each arrival but the last."""
    torch.manual_seed(0)
    model = SinusoidMLP(hidden=8)
    logger = CSVLogger(folder / "metrics.csv")
    strategy = TrainOnEverything(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.01),
        criterion=benchmark.criterion,
        evaluator=EvaluationPlugin(loss_metrics(minibatch=True, experience=True), loggers=[logger]),
        steps=2,
        train_mb_size=5,
    )
    stream = [arrival for round in benchmark.train_stream for arrival in arrivals(round, 5)]
    state = folder / "state.pt"
    done = load(strategy, state, stream) if state.exists() else 0
    for number, arrival in enumerate(stream[done:until], done + 1):
        strategy.train(arrival)
        strategy.eval([held_out(benchmark, arrival)])
        if saves and number < until:
            save(strategy, state)
    logger.close()
    return (folder / "metrics.csv").read_bytes().splitlines(keepends=True)


def test_a_csv_file_goes_on_where_a_state_was_saved_and_is_replaced_without_one(tiny_sinusoids, tmp_path):
    for name in ("whole", "again"):
        (tmp_path / name).mkdir()
    whole = script(tiny_sinusoids, tmp_path / "whole", 6, saves=False)
    cut = script(tiny_sinusoids, tmp_path / "again", 3)  # of the third arrival it has rows, but no state
    (tmp_path / "again/metrics.csv").write_bytes(b"".join(cut)[:-4])
    assert whole[: len(cut)] == cut
    assert len(whole) > len(cut)
    assert script(tiny_sinusoids, tmp_path / "again", 6) == whole
    assert script(tiny_sinusoids, tmp_path / "whole", 3, saves=False) == cut


def test_a_csv_file_that_a_state_does_not_belong_to_stays_as_it_is(tiny_sinusoids, tmp_path):
    rows = script(tiny_sinusoids, tmp_path, 3)
    whole = b"".join(rows)
    for content in (whole.replace(b"Loss", b"Cost"), whole[: len(whole) // 3]):
        (tmp_path / "metrics.csv").write_bytes(content)
        with pytest.raises(UsageError, match=r"metrics\.csv does not begin with what had been logged when"):
            script(tiny_sinusoids, tmp_path, 4)
        assert (tmp_path / "metrics.csv").read_bytes() == content
    (tmp_path / "metrics.csv").unlink()  # moved away
    assert script(tiny_sinusoids, tmp_path, 3) == [rows[0], *rows[-(len(rows) // 3) :]]


def test_a_file_of_something_else_is_not_written_to(tmp_path):
    (tmp_path / "mine.csv").write_text("a,b\n1,2\n")
    with pytest.raises(UsageError, match=r"mine\.csv is there and no table of a CSVLogger: expected another name"):
        CSVLogger(tmp_path / "mine.csv")
    assert (tmp_path / "mine.csv").read_text() == "a,b\n1,2\n"


def test_wandb_keeps_values_whose_x_goes_back(wandb_offline):
    import wandb

    logger = WandBLogger(**wandb_offline)
    logger.log_single_metric("iterations", np.float64(0.25), 1000)
    logger.log_single_metric("datapoints", torch.tensor(0.5), 10)
    logger.log_single_metric("figure", Figure(), 5)
    logger.log_single_metric("text", ["a"], 4)
    summary = dict(wandb.run.summary)
    wandb.finish()
    assert (summary["iterations"], summary["iterations/x"]) == (0.25, 1000)
    assert (summary["datapoints"], summary["datapoints/x"]) == (0.5, 10)
    assert summary["text"] == '["a"]'
    assert "figure" in summary
