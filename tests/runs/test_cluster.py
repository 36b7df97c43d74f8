"""What a cell asks of a cluster, what is refused before one is begun, and what a process of Ray's does there."""

import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from ftml_bench import cli
from ftml_bench.errors import UsageError
from ftml_bench.runs import cluster, locking, schedule
from ftml_bench.runs.definition import Cell, from_dict, with_seeds
from ftml_bench.runs.resources import Resources
from ftml_bench.runs.tasks import STOPPED, Task
from tests.runs import kills
from tests.runs.made import CONTENT
from tests.runs.test_locking import ALONE, end, hold  # noqa: F401

FTML = Cell("waves", "FTML", 0)


def with_resources(everywhere=None, row=None):
    """The small leaderboard with what it and its row FTML ask for."""
    entry = CONTENT["benchmarks"]["waves"]
    rows = {"FTML": {} if row is None else {"resources": row}, "FromScratch": {}}
    content = CONTENT | {"benchmarks": {"waves": entry | {"strategies": rows}}}
    return from_dict(content if everywhere is None else content | {"resources": everywhere}, "small")


def asked(definition, device="cpu", row="FTML"):
    task = Task(definition, (Cell("waves", row, 0),), Path(), None, device, ("", ""), "")
    return cluster.asked_by(task)


# -- resources


def test_a_cell_asks_for_a_core_and_on_a_gpu_for_that():
    assert asked(with_resources()) == {"CPU": 1.0}
    assert asked(with_resources(), "cuda") == {"CPU": 1.0, "GPU": 1.0}


def test_a_row_asks_for_what_the_leaderboard_says_but_for_what_it_says_itself():
    board = with_resources({"cpus": 2, "gpus": 0.5, "memory": "2GB"}, {"gpus": 0.25})
    assert asked(board, "cuda") == {"CPU": 2.0, "GPU": 0.25, "memory": 2e9}
    assert asked(board, "cuda", "FromScratch") == {"CPU": 2.0, "GPU": 0.5, "memory": 2e9}
    assert asked(board) == {"CPU": 2.0, "memory": 2e9}  # nobody trains on a GPU there


def test_resources_are_written_down_and_are_no_part_of_what_was_run():
    plain, board = with_resources(), with_resources({"cpus": 2}, {"memory": "1 GiB"})
    assert board.resources == Resources(cpus=2)
    assert board.benchmark("waves").row("FTML").resources == Resources(memory=2**30)
    assert from_dict(board.to_dict(), "again") == board
    assert "resources" not in str(plain.to_dict())
    assert board.hash == plain.hash


@pytest.mark.parametrize(
    ("resources", "said"),
    [
        ({"cpu": 1}, "unknown key 'cpu': did you mean 'cpus'?"),
        ([1], r"expected keys with values, got \[1\]"),
        ({"cpus": 0}, "cpus: expected a share of at least 0.01, or a whole number, got 0"),
        ({"cpus": True}, "cpus: expected a share of .* got True"),
        ({"cpus": "1"}, "cpus: expected a share of .* got '1'"),
        ({"cpus": 1.5}, "cpus: expected a share of .* got 1.5"),
        ({"gpus": -1}, "gpus: expected a share of .* got -1"),
        ({"gpus": [1]}, r"gpus: expected a share of .* got \[1\]"),
        ({"gpus": 1e300}, "gpus: expected a share of .* got 1e"),
        ({"memory": "2 apples"}, "memory: expected a whole number of bytes, or a text such as 2GB, got '2 apples'"),
        ({"memory": 0}, "memory: expected a whole number of bytes"),
        ({"memory": "9999999999999TB"}, "memory: expected a whole number of bytes"),
    ],
)
@pytest.mark.parametrize("where", ["small: resources: ", "small: waves: FTML: resources: "])
def test_other_resources_are_refused_in_one_line(where, resources, said):
    given = {"row": resources} if "FTML" in where else {"everywhere": resources}
    with pytest.raises(UsageError, match=f"^{where}{said}"):
        with_resources(**given)


def test_what_no_machine_has_is_refused_where_none_can_come():
    pool = object.__new__(cluster.RayPool)
    pool._here, pool._told = True, set()
    pool._ray = SimpleNamespace(nodes=lambda: [{"Alive": True, "Resources": {"CPU": 2.0, "memory": 1e9}}])
    task = Task(with_resources({"cpus": 2, "memory": 10**9}), (FTML,), Path(), None, "cpu", ("", ""), "")
    pool._see_room(task, cluster.asked_by(task))
    with pytest.raises(
        UsageError, match=r"^waves/FTML/seed-0: asks for 2 CPU, 1 GPU, .*: this machine has 2 CPU, 0 GPU"
    ):
        pool._see_room(task, cluster.asked_by(replace(task, device="cuda")))


# -- refused before anything is begun


def run_on(address, root, board=None):
    """Runs the small board on the cluster at an address."""
    return schedule.run_cells(
        board or from_dict(CONTENT, "small"),
        root,
        place=lambda *_: cluster.RayPool(address, 1),
        data=None,
        quiet=True,
    )


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--ray", "10.0.0.1"], "--ray: expected 'auto' or HOST:PORT of a cluster that this machine is one of"),
        (["--ray", "ray://10.0.0.1:10001"], "--ray: expected 'auto' or HOST:PORT"),
        (["--ray", "auto", "--jobs", "2"], "--jobs: how many cells run at a time is what the cluster 'auto' has room"),
        (["--ray", "--jobs", "0"], "argument --jobs: expected a whole number of at least 1, got '0'"),
        (["--ray", "--device", "cuda:1"], "--device cuda:1: expected cpu or cuda with --ray, which chooses the GPU"),
    ],
)
def test_what_cannot_be_had_of_a_cluster_is_one_line(options, said, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(cluster, "imported", lambda: None)
    monkeypatch.chdir(tmp_path)
    assert cli.main(["leaderboard", "quick", *options]) == 2
    found = capsys.readouterr().err
    assert found.startswith(f"ftml-bench: error: {said}")
    assert found.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("address", ["127.0.0.1:1", "localhost:99999", "[::1]:1", "no.such.host.invalid:6379"])
def test_an_address_where_nobody_answers_is_one_line(address, monkeypatch, tmp_path):
    monkeypatch.setattr(cluster, "imported", lambda: None)
    with pytest.raises(UsageError, match=f"^--ray {re.escape(address)}: nobody answers there: "):
        run_on(address, tmp_path / "below" / "out")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("address", ["auto", cluster.HERE])
def test_where_ray_finds_no_cluster_or_cannot_begin_one_nothing_is_written(address, monkeypatch, tmp_path):
    def init(**settings):
        raise ConnectionError("Could not find any running Ray instance.\nPlease specify the one to connect to")

    ray = SimpleNamespace(init=init, exceptions=SimpleNamespace(RayError=ArithmeticError))
    monkeypatch.setattr(cluster, "imported", lambda: ray)
    with pytest.raises(UsageError, match=f"^--ray {address}: Could not find any running Ray instance.$"):
        run_on(address, tmp_path / "below" / "out")
    assert not list(tmp_path.iterdir())


def test_what_is_finished_needs_no_cluster(monkeypatch, tmp_path):
    board = with_seeds(from_dict(CONTENT, "small"), [0])
    monkeypatch.setattr(schedule, "RUN_CELL", f"{__name__}:talkative")
    schedule.run_cells(board, tmp_path, jobs=1, data=None, quiet=True)
    monkeypatch.setattr(cluster, "imported", lambda: pytest.fail("it was asked for"))
    assert [outcome.status for outcome in run_on("auto", tmp_path, board)] == ["finished"] * 2


def test_without_ray_one_line_names_the_extra(monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.chdir(tmp_path)
    assert cli.main(["leaderboard", "quick", "--ray"]) == 2
    said = "ftml-bench: error: --ray: Ray is not installed: pip install 'ftml-bench[ray]'\n"
    assert capsys.readouterr().err == said
    assert not list(tmp_path.iterdir())


def test_nothing_imports_ray_but_what_asks_for_it():
    script = (
        "import sys, ftml_bench.cli, ftml_bench.runs.schedule, ftml_bench.runs.cluster; assert 'ray' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


# -- in a process of Ray's


def forever(definition, cell, folder, data, on_evaluation, device="cpu"):
    """Stands for a cell that does not end."""
    on_evaluation(1, 2)
    (folder / "process").write_text(str(os.getpid()))
    time.sleep(600)


def task_of(root, holder, runner=f"{__name__}:forever"):
    return Task(from_dict(CONTENT, "small"), (FTML,), root, None, "cpu", (runner, ""), holder)


def test_a_cell_ends_with_its_run_although_rays_process_lives(tmp_path, hold):  # noqa: F811
    (tmp_path / "leaderboard.yaml").touch()
    driver = hold(ALONE)
    messages = cluster._serve(task_of(tmp_path, locking.holder(tmp_path)), cluster.Origin.here())
    assert next(messages) == (FTML, 1, 2)
    while not (tmp_path / FTML.folder / "process").exists():
        time.sleep(0.01)
    end(driver, signal.SIGKILL)
    assert list(messages) == []
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / FTML.folder / "process").read_text()), 0)


def test_a_machine_that_does_not_see_the_folder_ends_the_run(tmp_path, hold):  # noqa: F811
    """Else it would take all cells, one after the other, since it alone is idle."""
    hold(ALONE)
    task = task_of(tmp_path, locking.holder(tmp_path))
    with pytest.raises(UsageError, match="is not the folder that is run: expected one that all machines share") as told:
        next(cluster._serve(replace(task, root=tmp_path / "elsewhere"), cluster.Origin.here()))

    class RayTaskError(Exception):
        cause = told.value

    pool = object.__new__(cluster.RayPool)
    with pytest.raises(UsageError, match=r"/elsewhere is not the folder that is run"):
        pool._of_machine(task, RayTaskError())
    removed = pool._of_machine(replace(task, root=tmp_path / "removed"), RayTaskError())
    assert [(outcome.status, outcome.message.rpartition(": ")[2]) for outcome in removed] == [
        (STOPPED, "was removed while it was run")
    ]


# -- what a worker says


def talkative(definition, cell, folder, data, on_evaluation, device="cpu"):
    """Stands for a cell that says something."""
    from ftml_bench.runs.progress import say

    say(f"{cell} has something to say")
    return kills.run_light(definition, cell, folder, data, on_evaluation, device)


def test_what_a_worker_says_is_said_by_the_process_that_has_made_it(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(schedule, "RUN_CELL", f"{__name__}:talkative")
    board = with_seeds(from_dict(CONTENT, "small"), [0])
    schedule.run_cells(board, tmp_path / "out", jobs=2, data=None, quiet=True)
    said = sorted(line for line in capfd.readouterr().err.splitlines() if line)
    assert said == [f"ftml-bench: waves/{row}/seed-0 has something to say" for row in ("FTML", "FromScratch")]
