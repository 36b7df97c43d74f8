"""The command line: exit codes, one-line errors, and that it starts without torch."""

import json
import os
import subprocess
import sys
from functools import partial

import pytest
import torch
import yaml

import ftml_bench.runs.cell
from ftml_bench import cli
from ftml_bench.cores import usable_cores
from ftml_bench.errors import UsageError
from ftml_bench.runs import pool, schedule
from ftml_bench.runs.record import RunWriter


def fake_cell(definition, cell, folder, data, on_evaluation, device="cpu"):
    """Stands for a cell that trains: two rounds of two arrivals; `ends` in the row's settings says how it ends."""
    row = definition.benchmark(cell.benchmark).row(cell.row)
    protocol = {
        "threshold": ["loss", 1.0],
        "metric": "loss",
        "checkpoints": [4],
        "rounds": 2,
        "datapoints_per_round": 8,
        "data": data,
        "device": device,
        "definition": definition.to_dict(),
    }
    writer = RunWriter.start(folder, {"definition": definition.hash, "protocol": protocol})
    for done, (number, datapoints) in enumerate([(0, 4), (0, 8), (1, 4), (1, 8)], 1):
        row_written = {"round": number, "evaluated_round": number, "datapoints": datapoints, "loss": 0.5 + cell.seed}
        writer.append(row_written | {"accuracy": None, "steps": done, "gradient_evaluations": done}, done)
        on_evaluation(done, 4)
    if row.settings.get("ends") == "failed":
        raise ValueError("no")
    if row.settings.get("ends") == "interrupted":
        raise KeyboardInterrupt
    writer.finish("finished")
    return "finished"


def fake_cells(definition, folders, data, on_evaluation, device):
    """Stands for several seeds that train together."""
    return {
        cell: fake_cell(definition, cell, folder, data, partial(on_evaluation, cell), device)
        for cell, folder in folders.items()
    }


@pytest.fixture(autouse=True)
def _fake(monkeypatch, tmp_path):
    monkeypatch.setattr(schedule, "RUN_CELL", f"{__name__}:fake_cell")
    monkeypatch.setattr(schedule, "RUN_TOGETHER", f"{__name__}:fake_cells")
    monkeypatch.setattr(pool, "one_thread", lambda: None)
    monkeypatch.setattr(ftml_bench.runs.cell, "check", lambda definition, data: None)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.chdir(tmp_path)


def write_definition(**rows):
    content = {
        "name": "mine",
        "seeds": [0, 1],
        "benchmarks": {
            "sines": {
                "benchmark": "Sinusoids",
                "steps": 1,
                "optimizer": {"name": "Adam"},
                "strategies": {name: {"strategy": "FTML", "ends": ends} for name, ends in rows.items()},
            }
        },
    }
    with open("mine.yaml", "w") as file:
        yaml.safe_dump(content, file)
    return "mine.yaml"


@pytest.mark.parametrize("command", ["--help", "list"])
def test_it_answers_without_torch(command):
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "ftml_bench.cli", command],
        capture_output=True,
        text=True,
        check=True,
    )
    modules = {line.split("|")[-1].strip().split(".")[0] for line in done.stderr.splitlines() if "|" in line}
    assert not modules & {"torch", "avalanche", "matplotlib", "numpy"}
    assert "argparse" in modules


def test_list_names_everything_with_a_line(capsys):
    assert cli.main(["list"]) == 0
    out = capsys.readouterr().out
    for name in ("quick", "rainbow_mnist_small", "RainbowDigits", "FollowTheLeader", "SinusoidMLP"):
        assert any(line.split()[:1] == [name] and len(line.split()) > 2 for line in out.splitlines()), name


def test_version(capsys):
    with pytest.raises(SystemExit) as caught:
        cli.main(["--version"])
    assert caught.value.code == 0
    assert capsys.readouterr().out.startswith("ftml-bench 0.")


@pytest.mark.parametrize("command", ["list", "data", "leaderboard", "run", "report"])
def test_every_command_has_help_with_an_example(command, capsys):
    with pytest.raises(SystemExit) as caught:
        cli.main([command, "--help"])
    assert caught.value.code == 0
    assert f"Example: ftml-bench {command}" in capsys.readouterr().out


def test_a_leaderboard_is_run_reported_and_gone_on_with(capsys, tmp_path):
    file = write_definition(FTML="finished")
    assert cli.main(["leaderboard", file, "--jobs", "1", "--quiet"]) == 0
    out, err = capsys.readouterr()
    assert "sines: Sinusoids" in out
    assert "loss at 4" in out
    assert "tensorboard --logdir runs/mine" in out
    assert err == ""
    for name in ("leaderboard.md", "leaderboard.csv", "report.html", "figures/sines.png", "figures/sines.svg"):
        assert (tmp_path / "runs/mine" / name).stat().st_size > 0
    records = sorted((tmp_path / "runs/mine").rglob("record.json"))
    before = [path.stat().st_mtime_ns for path in records]
    assert cli.main(["leaderboard", file, "--jobs", "1", "--quiet"]) == 0
    assert capsys.readouterr().out == out
    assert [path.stat().st_mtime_ns for path in records] == before


def test_report_makes_the_same_files_anew(capsys, tmp_path):
    cli.main(["leaderboard", write_definition(FTML="finished"), "--jobs", "1", "--quiet"])
    out = capsys.readouterr().out
    before = (tmp_path / "runs/mine/report.html").read_bytes()
    (tmp_path / "runs/mine/report.html").unlink()
    assert cli.main(["report", "runs/mine"]) == 0
    assert capsys.readouterr().out == out
    assert (tmp_path / "runs/mine/report.html").read_bytes() == before


@pytest.mark.usefixtures("undrawn")
def test_a_failed_cell_is_exit_code_1_and_named(capsys):
    assert cli.main(["leaderboard", write_definition(FTML="finished", Bad="failed"), "--jobs", "1", "--quiet"]) == 1
    out = capsys.readouterr().out
    assert "* sines/Bad/seed-0: ValueError: no" in out


def test_ctrl_c_says_how_to_go_on(capsys):
    assert cli.main(["leaderboard", write_definition(FTML="interrupted"), "--jobs", "1", "--quiet"]) == 130
    assert "the same command goes on" in capsys.readouterr().err


@pytest.mark.usefixtures("undrawn")
def test_other_seeds_and_another_folder(tmp_path):
    assert (
        cli.main(
            ["leaderboard", write_definition(FTML="finished"), "--seeds", "1,4", "--out", "x", "--quiet", "--jobs", "1"]
        )
        == 0
    )
    assert sorted(path.name for path in (tmp_path / "x/sines/FTML").iterdir()) == ["seed-1", "seed-4"]


@pytest.mark.parametrize(
    ("redo", "advice"),
    [
        ([], "the same command goes on"),
        (["--redo", "all"], "the same command without --redo goes on"),
        (["--redo=all"], "the same command without --redo goes on"),
    ],
)
def test_what_goes_on_after_ctrl_c_is_true(redo, advice, capsys):
    write_definition(FTML="interrupted")
    assert cli.main(["leaderboard", "mine.yaml", "--quiet", "--jobs", "1", *redo]) == 130
    assert capsys.readouterr().err.endswith(f"stopped; {advice} with the cells that are not finished\n")


@pytest.mark.usefixtures("undrawn")
def test_run_is_a_leaderboard_of_one_row(tmp_path):
    line = "run Sinusoids FromScratch --seed 3 --steps 7 --arrivals 4 --lr 0.01 --quiet --data ."
    assert cli.main([*line.split(), "--set", "step_factor=2", "draw=tasks", "--benchmark-set", "rounds=2"]) == 0
    folder = tmp_path / "runs/Sinusoids-FromScratch"
    assert (folder / "report.html").exists()
    definition = yaml.safe_load((folder / "leaderboard.yaml").read_text())
    assert definition["seeds"] == [3]
    assert definition["benchmarks"]["Sinusoids"] == {
        "benchmark": "Sinusoids",
        "settings": {"rounds": 2},
        "model": None,
        "arrivals": 4,
        "threshold": None,
        "checkpoints": None,
        "steps": 7,
        "optimizer": {"name": "Adam", "lr": 0.01},
        "strategies": {
            "FromScratch": {
                "strategy": "FromScratch",
                "optimizer": {"name": "Adam", "lr": 0.01},
                "step_factor": 2,
                "draw": "tasks",
            }
        },
    }
    record = yaml.safe_load((folder / "Sinusoids/FromScratch/seed-3/record.json").read_text())
    assert record["protocol"]["data"] == "."


@pytest.mark.usefixtures("undrawn")
def test_run_takes_module_and_class(tmp_path):
    assert cli.main(["run", "Sinusoids", "my_module:Mine", "--arrivals", "4,4", "--quiet"]) == 0
    definition = yaml.safe_load((tmp_path / "runs/Sinusoids-Mine/leaderboard.yaml").read_text())
    assert definition["benchmarks"]["Sinusoids"]["strategies"]["Mine"]["strategy"] == "my_module:Mine"
    assert definition["benchmarks"]["Sinusoids"]["arrivals"] == [4, 4]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("leaderbord quick", "unknown command 'leaderbord': did you mean 'leaderboard'?"),
        ("", "required: COMMAND"),
        ("leaderboard quik", "unknown leaderboard 'quik': did you mean 'quick'?"),
        ("leaderboard no/such.yaml", "cannot read the definition no/such.yaml"),
        ("leaderboard quick --sedes 1", "unknown option of leaderboard '--sedes': did you mean '--seeds'?"),
        ("list extra", "list takes no further argument 'extra'"),
        (
            "leaderboard quick --seeds 1,x",
            "argument --seeds: expected whole numbers with commas between them, got '1,x'",
        ),
        ("leaderboard quick --seeds 1,1", "seeds: 1 stands there more than once"),
        ("leaderboard quick --jobs 0", "--jobs: expected a whole number of at least 1, got '0'"),
        ("leaderboard quick --jobs two", "--jobs: expected a whole number of at least 1, got 'two'"),
        ("leaderboard .", "unknown leaderboard '.': expected one of: ablations/arrival_size, "),
        ("leaderboard quick --dry", "unknown option of leaderboard '--dry': did you mean '--dry-run'?"),
        ("leaderboard quick --stat=1", "unknown option of leaderboard '--stat': did you mean '--status'?"),
        ("report x --overal", "unknown option of report '--overal': did you mean '--overall'?"),
        ("speed --baseline", "unknown option of speed '--baseline': did you mean '--baselines'?"),
        ("speed --repeats 1.5", "--repeats: expected a whole number of at least 1, got '1.5'"),
        ("speed --threads 1 0", "--threads: expected a whole number of at least 1, got '0'"),
        ("verify x --rerun -1", "--rerun: expected a whole number of at least 0, got '-1'"),
        ("leaderboard quick --data nowhere", "--data: there is no folder nowhere"),
        ("run Sinusoid FTML", "unknown benchmark 'Sinusoid': did you mean 'Sinusoids'?"),
        ("run Sinusoids FTLM", "unknown strategy 'FTLM': did you mean 'FTML'?"),
        ("run Sinusoids FTML --steps 0", "steps: expected a whole number of at least 1, got '0'"),
        ("run Sinusoids FTML --steps 1.5", "steps: expected a whole number of at least 1, got '1.5'"),
        ("run Sinusoids FTML --lr -1", "lr: expected a finite number above 0, got '-1'"),
        ("run Sinusoids FTML --lr x", "lr: expected a finite number above 0, got 'x'"),
        ("run Sinusoids FTML --lr nan", "lr: expected a finite number above 0, got 'nan'"),
        ("run Sinusoids FTML --arrivals 0", "arrivals: expected a whole number of at least 1, got 0"),
        ("run Sinusoids FTML --seed -1", "--seed: expected a whole number of at least 0, got '-1'"),
        ("run Sinusoids FTML --set rounds", "--set: expected key=value, got 'rounds'"),
        ("run Sinusoids FTML --set a=1 a=2", "--set: 'a' is set twice"),
        ("run Sinusoids FTML --set a=[1", "--set a: line 1"),
        ("run Sinusoids FTML --set meta_batch_size=0", "meta_batch_size: expected a whole number of at least 1, got 0"),
        ("report nowhere", "nowhere is no leaderboard's folder"),
        (f"report {__file__}", "test_cli.py is no leaderboard's folder: it is a file"),
        (f"submit {__file__}", "test_cli.py is no leaderboard's folder: it is a file"),
        ("data minst", "unknown data set 'minst': did you mean 'mnist'?"),
        ("data RainbowDigits", "RainbowDigits is a benchmark: add --sheet FILE.png to draw it"),
        ("data --download", "say what to fetch: ftml-bench data mnist --download"),
        ("data --sheet a.png", "say what to draw"),
        ("data mnist --download --sheet a.png", "--sheet and --download: expected one of them"),
        ("data mnist --seed 3", "--set and --seed are of a benchmark that is drawn: add --sheet FILE.png"),
        ("data pose --strips there", "strips are made of cifar100"),
        ("data RainbowDigits --sheet no/a.png", "there is no folder"),
        ("data RainbowDigit --sheet a.png", "unknown benchmark 'RainbowDigit': did you mean 'RainbowDigits'?"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(refused, arguments, message):
    assert message in refused(*arguments.split())


def test_what_a_class_refuses_is_said_before_anything_is_written(refused, monkeypatch, tmp_path):
    def check(definition, data):
        raise UsageError("unknown setting\nof FTML")

    monkeypatch.setattr(ftml_bench.runs.cell, "check", check)
    assert "error: quick: unknown setting of FTML" in refused("leaderboard", "quick", "--quiet")
    assert "error: run: unknown setting of FTML" in refused("run", "Sinusoids", "FTML")
    assert not (tmp_path / "runs").exists()


@pytest.mark.usefixtures("undrawn")
def test_another_runs_folder_is_refused_before_anything_is_built(refused, monkeypatch, tmp_path, capsys):
    cli.main(["leaderboard", write_definition(FTML="finished"), "--jobs", "1", "--quiet"])
    capsys.readouterr()
    monkeypatch.delattr(ftml_bench.runs.cell, "check")
    assert "holds the results of another definition" in refused("leaderboard", "quick", "--out", "runs/mine")
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis/thesis.tex").write_text("mine")
    assert "is no leaderboard's folder" in refused("leaderboard", "quick", "--out", "thesis")


@pytest.mark.usefixtures("undrawn")
def test_other_seeds_are_said_to_be_what_differs(refused, capsys):
    file = write_definition(FTML="finished")  # seeds 0 and 1
    assert cli.main(["leaderboard", file, "--seeds", "0,1,2", "--jobs", "1", "--quiet"]) == 0
    capsys.readouterr()
    for given, here in ((["--seeds", "1,0,2,3"], "1,0,2,3"), ([], "0,1"), (["--status"], "0,1")):
        line = refused("leaderboard", file, *given)
        assert f"runs/mine holds the results of the same definition with other seeds (0,1,2; here {here}): " in line
        assert "give --seeds 0,1,2, to which more can be added at the end, or choose another --out" in line
    assert "of another definition" in refused("leaderboard", write_definition(FTML="failed"), "--seeds", "0,1,2,3")


def test_the_console_script_is_installed():
    script = os.path.join(os.path.dirname(sys.executable), "ftml-bench")
    done = subprocess.run([script, "leaderbord"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)


def test_a_reader_that_had_enough_is_no_error():
    command = f"{sys.executable} -m ftml_bench.cli list | head -1; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert done.stdout == "leaderboards:\n"
    assert not done.stderr
    assert done.returncode == 0


@pytest.mark.parametrize(
    ("gpus", "device", "message"),
    [
        (0, "cuda", "--device cuda: PyTorch finds no GPU here: expected cpu"),
        (0, "gpu", "--device gpu: PyTorch finds no GPU here: expected cpu"),
        (2, "gpu", "unknown --device 'gpu': did you mean 'cuda'?"),
        (2, "cuda:2", "did you mean 'cuda:1'"),
        (2, "meta", "expected one of: cpu, cuda, cuda:0, cuda:1"),
    ],
)
@pytest.mark.parametrize("command", [("run", "Sinusoids", "FTML"), ("speed",)])
def test_a_device_that_is_not_there_is_refused(command, gpus, device, message, refused, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    assert message in refused(*command, "--device", device)


@pytest.mark.usefixtures("undrawn")
def test_the_device_comes_to_the_cells_which_run_in_one_process_there(monkeypatch, tmp_path):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    jobs = []
    run_cells = schedule.run_cells

    def watched(*arguments, **settings):
        jobs.append(settings["jobs"])
        return run_cells(*arguments, **settings | {"jobs": 1})

    monkeypatch.setattr(schedule, "run_cells", watched)
    command = ["leaderboard", write_definition(FTML=None), "--quiet", "--out"]
    assert cli.main([*command, "gpu", "--device", "cuda"]) == 0
    assert cli.main([*command, "cpu"]) == 0
    for folder in ("gpu", "cpu"):
        (record,) = (tmp_path / folder).rglob("seed-0/record.json")
        assert json.loads(record.read_text())["protocol"]["device"] == {"gpu": "cuda", "cpu": "cpu"}[folder]
    assert jobs == [1, usable_cores()]
