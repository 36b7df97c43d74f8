"""The examples run as they stand, on less data, and are shown as they are."""

import csv
import re
import runpy
import statistics
import sys
from functools import partial
from pathlib import Path

import avalanche.benchmarks
import matplotlib as mpl
import pytest
import torch
from avalanche.benchmarks import nc_benchmark
from avalanche.benchmarks.utils import as_classification_dataset
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.data import TensorDataset

import ftml_bench.benchmarks
from ftml_bench import registry
from ftml_bench.benchmarks.stream import TaskStream

ROOT = Path(__file__).parent.parent
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def short_sinusoids(monkeypatch):
    """Three rounds of twelve points, whatever is asked for."""
    make = ftml_bench.benchmarks.Sinusoids
    monkeypatch.setattr(ftml_bench.benchmarks, "Sinusoids", lambda **_: make(rounds=3, images_per_round=12))


def run(name: str, run_name: str = "__main__") -> dict:
    return runpy.run_path(str(ROOT / "examples" / name), run_name=run_name)


def test_sinusoids(short_sinusoids, tmp_path, capsys):
    run("sinusoids.py")
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3
    assert lines[0].startswith("round  1: ")
    assert list(tmp_path.glob("runs/example-sinusoids/events*"))


def small_split(n_experiences, return_task_id, seed, dataset_root):
    """Random pictures of ten classes in the place of MNIST."""
    targets = torch.arange(40) % 10
    pictures = TensorDataset(torch.rand(40, 1, 28, 28, generator=torch.Generator().manual_seed(0)), targets)
    pictures.targets = targets.tolist()
    data = as_classification_dataset(pictures)
    return nc_benchmark(data, data, n_experiences=n_experiences, task_labels=return_task_id, seed=seed)


@pytest.mark.parametrize("strategy", ["ftml_bench.strategies import FTML", "avalanche.training import Naive"])
def test_split_mnist_differs_from_naive_in_one_line(monkeypatch, capsys, strategy):
    monkeypatch.setattr(avalanche.benchmarks, "SplitMNIST", small_split)
    text = (ROOT / "examples/split_mnist.py").read_text(encoding="utf-8")
    line = "from ftml_bench.strategies import FTML as Strategy\n"
    assert text.count(line) == 1
    names: dict = {}
    exec(text.replace(line, f"from {strategy} as Strategy\n"), names)
    assert 0 <= names["results"]["Top1_Acc_Stream/eval_phase/test_stream/Task004"] <= 1
    assert "StreamForgetting" in capsys.readouterr().out
    for page in ("examples.md", "getting-started.md"):
        assert f"-from avalanche.training import Naive as Strategy\n+{line}" in (ROOT / "docs" / page).read_text()


def test_rainbow_mnist_draws_figure_3(monkeypatch, tmp_path):
    make = partial(ftml_bench.benchmarks.RainbowDigits, rounds=2, images_per_round=40, held_out_per_round=30)
    monkeypatch.setattr(ftml_bench.benchmarks, "RainbowDigits", make)
    monkeypatch.setattr(sys, "argv", ["rainbow_mnist.py"])
    with mpl.rc_context({"backend": "agg"}):
        panels = run("rainbow_mnist.py")["panels"]
    labels = ["FTML", "FollowTheLeader", "TrainOnEverything", "FromScratch"]
    for panel in panels:
        assert [line.get_label() for line in panel.get_lines()] == labels
        assert all(line.get_xdata().tolist() == [1, 2] for line in panel.get_lines())
    assert (tmp_path / "figure3.png").stat().st_size > 10_000


def test_own_stream():
    stream = run("own_stream.py", "own_stream")["TurnedBlobs"]
    first, same, other = stream(seed=1, rounds=2), stream(seed=1, rounds=3), stream(seed=2, rounds=2)
    data = [benchmark.train_stream[1].stacked.x for benchmark in (first, same, other)]
    assert torch.equal(data[0], data[1])
    assert not torch.equal(data[0], data[2])
    assert first.model()(data[0]).shape == (50, 5)


def test_own_stream_is_learned(monkeypatch, capsys):
    make = TaskStream.__init__

    def two_rounds(self, *, train, held_out, **rest):
        make(self, train=train[:2], held_out=held_out[:2], **rest)

    monkeypatch.setattr(TaskStream, "__init__", two_rounds)
    run("own_stream.py")
    assert capsys.readouterr().out.count("after 10 datapoints") == 2


def test_own_strategy(short_sinusoids, capsys):
    run("own_strategy.py")
    assert re.findall(r"^(\w+): loss \d", capsys.readouterr().out, re.MULTILINE) == ["FineTune", "FTML"]


@pytest.mark.parametrize(
    ("kind", "name"), [("benchmark", "own_stream:TurnedBlobs"), ("strategy", "own_strategy:FineTune")]
)
def test_own_things_are_found_by_name(monkeypatch, kind, name):
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    assert registry.load(kind, name).__name__ == name.split(":")[1]


def test_tensorboard_comparison(short_sinusoids, tmp_path):
    run("tensorboard_comparison.py")
    tags = []
    for folder in sorted((tmp_path / "runs/comparison").iterdir()):
        events = EventAccumulator(str(folder))
        events.Reload()
        tags.append({tag for tag in events.Tags()["scalars"] if "Datapoints" in tag})
    assert len(tags) == 3
    assert tags[0]
    assert tags[0] == tags[1] == tags[2]


def test_the_readme_shows_the_first_example_as_it_is():
    shown = (ROOT / "examples/sinusoids.py").read_text(encoding="utf-8").split("\n\n", 1)[1]  # without the docstring
    assert shown in (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.name)
def test_the_site_shows_every_example(example):
    pages = [page.read_text(encoding="utf-8") for page in (ROOT / "docs").glob("*.md")]
    assert any(f"{{literalinclude}} ../examples/{example.name}\n:language: python\n```" in page for page in pages)


def test_the_readmes_files_exist():
    for target in re.findall(r"\]\(([^)#]+)\)", (ROOT / "README.md").read_text(encoding="utf-8")):
        assert target.startswith("http") or (ROOT / target).exists(), target


@pytest.mark.parametrize(
    "arguments", [[], ["DIR", "a.png"], ["DIR", "100", "a.png", "900"], ["DIR", "100", "all", "a.png"]]
)
def test_the_papers_figures_say_what_they_take(arguments, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["paper_figures.py", *arguments])
    with pytest.raises(SystemExit, match=r"^expected a leaderboard's folder, numbers of datapoints [^\n]*$"):
        run("paper_figures.py")


def test_the_papers_figures_are_of_the_committed_results(monkeypatch, tmp_path):
    folder = ROOT / "leaderboards/results/pose_cpu"
    monkeypatch.setattr(sys, "argv", ["paper_figures.py", str(folder), "60", "400", "figure.png"])
    with mpl.rc_context({"backend": "agg"}):
        axes = run("paper_figures.py")["axes"]
    assert [panel.get_title() for panel in axes] == [
        "datapoints to γ (loss below 0.05)", "loss after 60 datapoints", "loss after 400 datapoints"
    ]  # fmt: skip
    files = folder.glob("pose/FTML/seed-*/curve.csv")
    lines = [line for file in files for line in csv.DictReader(file.open())]
    last = [line for line in lines if int(line["round_from_0"]) in (87, 88, 89) and line["datapoints"] == "400"]
    shown = {line.get_label(): line for line in axes[2].get_lines()}["FTML"]
    expected = statistics.fmean(float(line["loss"]) for line in last)  # of the three rounds that there are at the end
    assert shown.get_ydata()[-1] == pytest.approx(expected)
    shown_on_the_page = Image.open(ROOT / "docs/images/figure-5.png").info["Source"]
    assert Image.open(tmp_path / "figure.png").info["Source"] == shown_on_the_page


@pytest.mark.parametrize(
    ("name", "picture"),
    [
        ("rainbow_mnist_cpu", "figure-3"),
        ("cifar100_cpu", "figure-4"),
        ("cifar100_cpu_fifth", "figure-4-fifth"),
        ("pose_cpu", "figure-5"),
    ],
)
def test_the_papers_figures_on_the_pages_are_of_all_seeds_that_there_are(name, picture):
    rows = [row for row in (ROOT / "leaderboards/results" / name).glob("*/*") if row.is_dir()]
    seeds = {tuple(sorted(int(cell.name.removeprefix("seed-")) for cell in row.iterdir())) for row in rows}
    assert len(seeds) == 1, "a row lacks a seed"
    (expected,) = seeds
    source = Image.open(ROOT / f"docs/images/{picture}.png").info["Source"]
    assert source == f"{name}, seeds {', '.join(map(str, expected))}"


def test_the_papers_figure_4_has_no_threshold(monkeypatch):
    folder = ROOT / "leaderboards/results/cifar100_cpu"
    monkeypatch.setattr(sys, "argv", ["paper_figures.py", str(folder), "50", "250", "600", "figure.png"])
    with mpl.rc_context({"backend": "agg"}):
        axes = run("paper_figures.py")["axes"]
    titles = [panel.get_title() for panel in axes]
    assert titles == [f"error after {datapoints} datapoints" for datapoints in (50, 250, 600)]
    files = folder.glob("cifar100/FromScratch/seed-*/curve.csv")
    lines = [line for file in files for line in csv.DictReader(file.open()) if line["datapoints"] == "250"]
    first = [1 - float(line["accuracy"]) for line in lines if int(line["round_from_0"]) < 3]
    shown = {line.get_label(): line for line in axes[1].get_lines()}["FromScratch"]
    assert shown.get_ydata()[0] == pytest.approx(statistics.fmean(first))


def test_the_papers_figures_are_of_one_benchmark(monkeypatch):
    folder = str(ROOT / "leaderboards/results/quick")
    monkeypatch.setattr(sys, "argv", ["paper_figures.py", folder, "50", "100", "figure.png"])
    with pytest.raises(SystemExit) as refused:
        run("paper_figures.py")
    assert str(refused.value) == f"expected a leaderboard of one benchmark; {folder} has digits, sinusoids"


def test_the_papers_figures_refuse_a_checkpoint_that_was_never_evaluated(monkeypatch):
    folder = str(ROOT / "leaderboards/results/pose_cpu")
    monkeypatch.setattr(sys, "argv", ["paper_figures.py", folder, "60", "401", "figure.png"])
    with pytest.raises(SystemExit, match=r"^no evaluation after 401 datapoints; there are 10, 20, .*1000$"):
        run("paper_figures.py")


@pytest.mark.parametrize("arguments", [[], ["leaderboards/results/batch_norm"], ["a", "b", "c"]])
def test_the_study_of_batch_norm_says_what_it_takes(arguments, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["batch_norm_study.py", *arguments])
    with pytest.raises(SystemExit, match=r"^expected a leaderboard's folder and a picture to write: [^\n]*$"):
        run("batch_norm_study.py")


def test_the_study_of_batch_norm_is_of_the_committed_results(monkeypatch, tmp_path, capsys):
    folder = str(ROOT / "leaderboards/results/batch_norm")
    monkeypatch.setattr(sys, "argv", ["batch_norm_study.py", folder, "study.png"])
    with mpl.rc_context({"backend": "agg"}):
        frame = run("batch_norm_study.py")["frame"]
    assert len(frame) == 3 * 2 * 4
    assert (frame.low <= frame.lead).all()
    assert (frame.lead <= frame.high).all()
    assert "FTML by support, the other running" in capsys.readouterr().out
    assert (tmp_path / "study.png").is_file()
