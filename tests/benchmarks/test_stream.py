"""Stacked data, the stream made from them under stock Avalanche strategies, and contact sheets."""

from __future__ import annotations

import errno
import math

import matplotlib.image
import pytest
import torch
from avalanche.benchmarks import benchmark_from_datasets
from avalanche.evaluation.metrics import loss_metrics
from avalanche.models import MTSimpleMLP
from avalanche.training.plugins import EvaluationPlugin
from avalanche.training.supervised import EWC, Cumulative, LwF, Naive, Replay
from matplotlib.backends.backend_agg import FigureCanvasAgg
from torch import nn

from ftml_bench.benchmarks import LinearRegression, RainbowDigits, Sinusoids, arrivals
from ftml_bench.benchmarks.sheets import contact_sheet
from ftml_bench.benchmarks.stacked import StackedDataset, as_input
from ftml_bench.benchmarks.stream import TaskStream, reachable
from ftml_bench.errors import UsageError

torch.set_num_threads(1)


@pytest.fixture
def base():
    return torch.arange(12, dtype=torch.uint8).view(6, 2)


@pytest.fixture
def stacked(base):
    return StackedDataset(base, torch.tensor([7, 8, 9]), torch.tensor([4, 0, 2]))


def tiny_stream(train, held_out):
    return TaskStream(
        title="Tiny",
        train=train,
        held_out=held_out,
        threshold=("accuracy", 0.5),
        checkpoints=[1],
        arrivals=1,
        criterion=nn.CrossEntropyLoss(),
        inner_lr=0.1,
        update_steps=1,
    )


def quiet():
    return EvaluationPlugin(loss_metrics(experience=True), loggers=[])


class TestStacked:
    def test_points(self, stacked):
        assert len(stacked) == 3
        x, y = stacked[1]
        assert x.tolist() == [0, 1]
        assert y == 8
        assert type(y) is int
        assert stacked.targets.tolist() == [7, 8, 9]

    def test_take_stacks_bytes(self, stacked):
        x, y = stacked.take(torch.tensor([2, 0, 2]))
        assert x.dtype == torch.uint8
        assert x.tolist() == [[4, 5], [8, 9], [4, 5]]
        assert y.tolist() == [9, 7, 9]

    def test_subset_shares_the_base(self, stacked, base):
        part = stacked.subset(torch.tensor([2, 1]))
        assert part.x is base
        assert part.rows.tolist() == [2, 0]
        assert part.y.tolist() == [9, 8]
        assert part.subset(torch.tensor([1])).rows.tolist() == [0]

    def test_regression_has_no_classes(self):
        data = StackedDataset(torch.zeros(3, 1), torch.tensor([[0.5, 1.0], [2.0, 3.0]]), torch.tensor([2, 1]))
        assert data[1][1].tolist() == [2.0, 3.0]
        assert not hasattr(data, "targets")

    @pytest.mark.parametrize("rows", [[0, 6], [-1, 0], [0]])
    def test_rows_must_fit(self, base, rows):
        with pytest.raises(ValueError, match="rows"):
            StackedDataset(base, torch.tensor([0, 1]), torch.tensor(rows))

    def test_as_input(self):
        x = as_input(torch.tensor([0, 51, 255], dtype=torch.uint8))
        assert x.dtype == torch.float32
        assert x.tolist() == [0, pytest.approx(0.2), 1]
        unchanged = torch.tensor([3.0])
        assert as_input(unchanged) is unchanged


class TestTaskStream:
    def test_what_avalanche_finds(self):
        benchmark = RainbowDigits(rounds=3, images_per_round=12, held_out_per_round=10)
        assert set(benchmark.streams) == {"train", "test"}
        for name, stream in benchmark.streams.items():
            assert (stream.name, len(stream), stream.benchmark) == (name, 3, benchmark)
            for t, experience in enumerate(stream):
                assert experience.current_experience == t
                assert experience.origin_stream is stream
                assert (experience.task_label, experience.task_labels) == (t, [t])
                assert experience.dataset.targets_task_labels.uniques == {t}
                assert experience.classes_in_this_experience == sorted(set(experience.stacked.y.tolist()))
                for group in (experience.dataset.train(), experience.dataset.eval()):
                    assert torch.equal(group[0][0], experience.stacked[0][0].float() / 255)
        assert [e.current_experience for e in benchmark.train_stream[1:]] == [1, 2]

    def test_held_out_data_must_not_be_training_data(self, base, stacked):
        other = StackedDataset(base, torch.tensor([7, 8]), torch.tensor([1, 2]))
        with pytest.raises(UsageError, match=r"^round 2: 1 of the held-out datapoints are training data$"):
            tiny_stream([stacked, stacked], [other.subset(torch.tensor([0])), other])
        assert len(tiny_stream([stacked], [other.subset(torch.tensor([0]))]).train_stream) == 1

    def test_empty_rounds_are_refused(self, stacked):
        empty = stacked.subset(torch.tensor([], dtype=torch.int64))
        with pytest.raises(UsageError, match=r"^round 1 has 0 datapoints and 3 held-out ones"):
            tiny_stream([empty], [stacked])
        with pytest.raises(UsageError, match=r"^round 1 has 3 datapoints and 0 held-out ones"):
            tiny_stream([stacked], [empty])

    def test_rounds_whose_targets_all_stand_for_no_class_are_refused(self, base, stacked):
        none = StackedDataset(base, torch.tensor([-100, -100]), torch.tensor([1, 2]))
        with pytest.raises(UsageError, match=r"^round 1: every held-out target is -100, which stands for no class"):
            tiny_stream([stacked.subset(torch.tensor([0]))], [none])
        with pytest.raises(UsageError, match=r"^round 1: every target is -100, which stands for no class"):
            tiny_stream([none], [stacked.subset(torch.tensor([0]))])

    def test_both_streams_have_the_same_rounds(self, stacked):
        with pytest.raises(UsageError, match="1 rounds of data, 0 of held-out data"):
            tiny_stream([stacked], [])
        with pytest.raises(UsageError, match="0 rounds"):
            tiny_stream([], [])

    def test_reachable_checkpoints(self):
        assert reachable([100, 900], 900) == [100, 900]
        assert reachable([100, 900], 500) == [100, 500]
        assert reachable([100, 900], 100) == [100]
        assert reachable([100, 900], 7) == [7]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize(
    ("strategy", "arguments"),
    [
        (Naive, {}),
        (Cumulative, {}),
        (Replay, {"mem_size": 10}),
        (EWC, {"ewc_lambda": 1.0, "mode": "online", "decay_factor": 0.9}),
        (LwF, {"alpha": 1.0, "temperature": 2.0}),
    ],
)
def test_stock_strategies_run_on_it(strategy, arguments):
    benchmark = RainbowDigits(rounds=2, images_per_round=8, held_out_per_round=6)
    # A multi-head model: it grows by the experiences' classes and is told their task labels.
    model = MTSimpleMLP(input_size=3 * 14 * 14, hidden_size=4)
    learner = strategy(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.01),
        criterion=benchmark.criterion,
        train_mb_size=4,
        eval_mb_size=6,
        evaluator=quiet(),
        **arguments,
    )
    for round_ in benchmark.train_stream:
        for arrival in arrivals(round_, 4):
            learner.train(arrival)
        metrics = learner.eval(benchmark.test_stream[: round_.current_experience + 1])
    assert len(metrics) == 2
    assert all(math.isfinite(value) for value in metrics.values())
    assert all(p.isfinite().all() for p in model.parameters())


def test_a_stock_strategy_learns_regression_on_it():
    benchmark = Sinusoids(rounds=2, images_per_round=20, held_out_per_round=30)
    model = nn.Linear(1, 1)
    learner = Naive(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.01),
        criterion=benchmark.criterion,
        train_mb_size=5,
        evaluator=quiet(),
    )
    for round_ in benchmark.train_stream:
        for arrival in arrivals(round_, [5, 10]):
            learner.train(arrival)
    metrics = learner.eval(benchmark.test_stream)
    for t, experience in enumerate(benchmark.test_stream):
        x, y = experience.stacked.x, experience.stacked.y
        expected = (model(x) - y).square().mean().item()
        assert metrics[f"Loss_Exp/eval_phase/test_stream/Task{t:03}/Exp{t:03}"] == pytest.approx(expected, rel=1e-4)


class TestContactSheet:
    def test_images(self, tmp_path):
        file = tmp_path / "sheet.png"
        benchmark = RainbowDigits(rounds=2, images_per_round=3)
        contact_sheet(benchmark, file, rounds=5, images=4)
        pixels = (matplotlib.image.imread(file)[..., :3] * 255).round().astype(int).reshape(-1, 3).tolist()
        for experience in benchmark.train_stream:
            image, _ = experience.stacked[0]
            assert pixels.count(image[:, 0, 0].tolist()) > 50  # its background

    def test_curves(self, tmp_path):
        file = tmp_path / "sheet.png"
        contact_sheet(Sinusoids(rounds=5), file, rounds=5, images=4)
        pixels = (matplotlib.image.imread(file)[..., :3] * 255).round().astype(int).reshape(-1, 3).tolist()
        assert pixels.count([214, 39, 40]) > 50  # the datapoints
        assert pixels.count([127, 127, 127]) > 50  # the curves

    def test_quadratics(self, tmp_path):
        file = tmp_path / "sheet.png"
        contact_sheet(LinearRegression(rounds=3), file, rounds=8)
        pixels = (matplotlib.image.imread(file)[..., :3] * 255).round().astype(int).reshape(-1, 3).tolist()
        for color in ([214, 39, 40], [31, 119, 180], [127, 127, 127]):  # w*_joint, w*_MAML, the level sets
            assert pixels.count(color) > 5

    def test_a_sheet_that_cannot_be_written_leaves_what_was_there(self, tmp_path, monkeypatch):
        def print_png(canvas, file):
            file.write(b"a part")
            raise OSError(errno.ENOSPC, "No space left on device")

        (tmp_path / "sheet.png").write_text("old")
        monkeypatch.setattr(FigureCanvasAgg, "print_png", print_png)
        with pytest.raises(OSError, match="No space left"):
            contact_sheet(Sinusoids(rounds=1), str(tmp_path / "sheet.png"))
        assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("sheet.png", "old")]

    def test_other_streams_are_refused(self, tmp_path, stacked):
        with pytest.raises(UsageError, match=r"no sheet for inputs of shape \(2,\)"):
            contact_sheet(tiny_stream([stacked], [StackedDataset(stacked.x.clone(), stacked.y, stacked.rows)]), "x.png")
        pairs = StackedDataset(torch.rand(6, 2, 8, 8), torch.arange(3), torch.arange(3))
        tests = StackedDataset(pairs.x, pairs.y, torch.arange(3, 6))
        with pytest.raises(UsageError, match=r"no sheet for inputs of shape \(2, 8, 8\): expected images \(1, 3 or 4"):
            contact_sheet(tiny_stream([pairs], [tests]), tmp_path / "x.png")
        with pytest.raises(UsageError, match="no sheet for a CLScenario: expected a TaskStream"):
            contact_sheet(benchmark_from_datasets(train=[], test=[]), tmp_path / "x.png")
        with pytest.raises(UsageError, match="rounds 0: expected 1 or more"):
            contact_sheet(Sinusoids(rounds=1), tmp_path / "x.png", rounds=0)
        assert not list(tmp_path.iterdir())
