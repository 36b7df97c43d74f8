"""On a cluster of several machines, all of them on this one: a leaderboard comes to what the local pool comes to, bit
for bit, whatever ends on the way."""

import importlib.util
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ftml_bench.errors import UsageError
from ftml_bench.runs import cluster, record, schedule
from ftml_bench.runs.definition import from_dict
from ftml_bench.runs.record import CURVE_COLUMNS, RunWriter
from tests.runs import kills, kills_on_ray
from tests.runs.made import CONTENT

pytestmark = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed")
REPOSITORY = Path(__file__).parents[2]
LINUX = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")


@pytest.fixture(scope="module")
def made():
    """Two machines of a core, the first with a card and 3 GB, beside the head."""
    found = kills_on_ray.cluster(0)
    found.add_node(num_cpus=1, num_gpus=1, memory=3 * 10**9, **kills_on_ray.SMALL)
    found.add_node(num_cpus=1, memory=2 * 10**9, **kills_on_ray.SMALL)
    yield found
    found.shutdown()


def place(made):
    return lambda *_: cluster.RayPool(made.address, 1)


def start(folder, *options, cells="light", **more):
    """The leaderboard that `kills` kills, in a process of its own."""
    (folder / "board.yaml").write_text(kills.BOARD)
    command = [sys.executable, "-W", "ignore", kills.__file__, "board", cells, str(folder / "board.yaml"), *options]
    own = {kills.MARK: str(folder), "OMP_NUM_THREADS": "1", "HOME": str(folder), **more}
    environment = {**os.environ, **kills_on_ray.EVEN, **own}
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, start_new_session=True
    )


def end_of(process):
    said = process.communicate(timeout=120)
    return process.returncode, *said


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """What the light cells come to in the local pool."""
    folder = tmp_path_factory.mktemp("whole")
    assert end_of(start(folder, "--out", str(folder / "out"), "--jobs", "1"))[0] == 0
    return kills.results(folder / "out")


def until(condition, process):
    while not condition():
        assert process.poll() is None, process.communicate()
        time.sleep(0.005)


def saved(root):
    return lambda: list(root.glob("waves/*/*/state.pt")) and kills_on_ray.servants(str(root.parent))


# -- whatever ends


@LINUX
def test_a_machine_that_is_gone_costs_what_came_after_the_last_state(made, whole, tmp_path):
    """Both machines that work go, one after the other; what ran there goes on elsewhere."""
    root = tmp_path / "out"
    lent = made.add_node(num_cpus=1, **kills_on_ray.SMALL)
    process = start(tmp_path, "--ray", made.address, "--out", str(root))
    until(saved(root), process)
    made.remove_node(lent, allow_graceful=False)
    code, out, said = end_of(process)
    assert code == 0
    assert kills.results(root) == whole
    assert out == "\nfigures:      " + out.partition("figures:      ")[2]  # and not a word of Ray's
    assert all("; what this stops is tried again after the others" in line for line in said.splitlines())


@LINUX
def test_a_process_of_rays_that_is_killed_costs_what_came_after_its_last_state(made, whole, tmp_path):
    root = tmp_path / "out"
    process = start(tmp_path, "--ray", made.address, "--out", str(root))
    until(saved(root), process)
    os.kill(kills_on_ray.servants(str(tmp_path))[0], signal.SIGKILL)
    code, _, said = end_of(process)
    assert code == 0
    assert "its process was ended from outside" in said
    assert kills.results(root) == whole


@LINUX
@pytest.mark.parametrize(("number", "code"), [("SIGKILL", -9), ("SIGTERM", 143)])
def test_a_run_that_is_ended_leaves_nobody_and_goes_on(number, code, made, whole, tmp_path):
    root = tmp_path / "out"
    process = start(tmp_path, "--ray", made.address, "--out", str(root))
    until(saved(root), process)
    process.send_signal(getattr(signal, number))
    ended, out, said = end_of(process)
    assert (ended, out) == (code, "")
    assert "SIGTERM received" not in said
    deadline = time.monotonic() + 5.0
    while (left := kills.marked(str(tmp_path))) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not left
    assert end_of(start(tmp_path, "--ray", made.address, "--out", str(root)))[0] == 0
    assert kills.results(root) == whole


# -- what it is given


def looks_around(definition, cell, folder, data, on_evaluation, device="cpu"):
    """Stands for a cell: it writes down what it finds about itself."""
    from ftml_bench.runs.progress import say

    card = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    say(f"{cell} on {device}")
    header = {"card": card, "folder": str(Path.cwd()), "data": data, "rays": "ray" in sys.modules}
    writer = RunWriter.start(folder, {"definition": definition.hash, "protocol": {}, **header})
    writer.append({**dict.fromkeys(CURVE_COLUMNS, 1), "loss": 0.5, "accuracy": None}, 1.0)
    writer.finish("finished")
    return "finished"


def together(definition, folders, data, on_evaluation, device):
    """Several of them."""
    return {
        cell: looks_around(definition, cell, folder, data, on_evaluation, f"{device} with {len(folders)}")
        for cell, folder in folders.items()
    }


def test_a_group_of_seeds_gets_its_share_of_a_card_and_all_that_a_process_here_would_have(
    made, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(schedule, "RUN_CELL", f"{__name__}:looks_around")
    monkeypatch.setattr(schedule, "RUN_TOGETHER", f"{__name__}:together")
    monkeypatch.setattr(sys, "argv", ["/bin/ftml-bench", "leaderboard", "small"])
    monkeypatch.chdir(tmp_path)
    Path("data").mkdir()
    board = from_dict(CONTENT | {"resources": {"gpus": 0.5, "memory": "1GB"}}, "small")
    found = schedule.run_cells(board, Path("out"), place=place(made), data="data", quiet=True, device="cuda")
    assert [outcome[1:] for outcome in found] == [("finished", "")] * 4
    for cell in board.cells():
        written = record.read(Path("out") / cell.folder).record
        assert written["command"] == "ftml-bench leaderboard small"
        assert written["card"] == "0"
        assert written["folder"] == str(tmp_path)
        assert written["data"] == str(tmp_path / "data")
        assert not written["rays"]
    said = sorted(line for line in capsys.readouterr().err.splitlines() if line.startswith("ftml-bench"))
    assert said == [
        *(f"ftml-bench: waves/FTML/seed-{seed} on cuda with 2" for seed in (0, 1)),
        *(f"ftml-bench: waves/FromScratch/seed-{seed} on cuda" for seed in (0, 1)),
    ]


def test_what_no_machine_has_is_said_once_and_waited_for(made, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(schedule, "RUN_CELL", f"{__name__}:looks_around")
    board = from_dict(CONTENT | {"seeds": [0], "resources": {"cpus": 2, "memory": "4GB"}}, "small")
    lent = []

    def lend():
        lent.append(made.add_node(num_cpus=2, memory=5 * 10**9, **kills_on_ray.SMALL))

    say = cluster.say
    monkeypatch.setattr(cluster, "say", lambda text: (say(text), lent or lend()))
    found = schedule.run_cells(board, tmp_path / "out", place=place(made), data=None, quiet=True)
    assert [outcome.status for outcome in found] == ["finished"] * 2
    asked = "asks for 2 CPU, 4000000000 memory: no machine of the cluster has that; it waits for one"
    assert capsys.readouterr().err.count(asked) == 1
    made.remove_node(lent[0])


def test_a_cluster_that_does_not_trust_the_run_is_said(made, tmp_path):
    """Else it would wait for ever for what tasks say."""
    trust = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "of nobody, which is a word as good as any other"}
    code, out, said = end_of(start(tmp_path, "--ray", made.address, "--out", str(tmp_path / "out"), **trust))
    assert (code, out) == (2, "")
    expected = "--ray: a task has ended and was not heard: expected the RAY_AUTH_MODE of the cluster here"
    assert said == f"ftml-bench: error: {expected}\n"


def test_another_version_of_the_suite_in_the_working_folder_is_not_taken(made, tmp_path, whole, monkeypatch):
    """Ray has its processes look there first."""
    (tmp_path / "ftml_bench").mkdir()
    (tmp_path / "ftml_bench/__init__.py").write_text("raise ImportError('this is another one')")
    monkeypatch.chdir(tmp_path)
    root = tmp_path / "out"
    code, _, said = end_of(start(tmp_path, "--ray", made.address, "--out", str(root), PYTHONPATH=str(REPOSITORY)))
    assert (code, said) == (0, "")
    assert kills.results(root) == whole


def test_a_machine_with_another_version_of_the_suite_ends_the_run(made, tmp_path, monkeypatch):
    monkeypatch.setattr(cluster, "__version__", "0.0.1")
    with pytest.raises(UsageError, match=r"^machine .*: it has ftml-bench .*, the run 0.0.1: expected the same$"):
        schedule.run_cells(from_dict(CONTENT, "small"), tmp_path / "out", place=place(made), data=None, quiet=True)


@LINUX
def test_a_cluster_that_is_begun_for_a_run_ends_with_it(tmp_path, whole):
    root = tmp_path / "out"
    code, _, said = end_of(start(tmp_path, "--ray", "--jobs", "2", "--out", str(root)))
    assert (code, said) == (0, "")
    assert kills.results(root) == whole
    assert not kills.marked(str(tmp_path))


def test_real_cells_come_to_the_same(made, tmp_path):
    """The suite's, in this process and on a cluster."""
    entry = {
        "benchmark": "Sinusoids",
        "settings": {"rounds": 2, "images_per_round": 8, "held_out_per_round": 10},
        "arrivals": 4,
        "checkpoints": [4],
        "measures": ["regret"],
        "steps": 2,
        "optimizer": {"name": "SGD", "lr": 0.01},
        "strategies": {"FTML": {}},
    }
    board = from_dict({"name": "real", "seeds": [0], "benchmarks": {"waves": entry}}, "real")
    for name, where in {"here": None, "there": place(made)}.items():
        found = schedule.run_cells(board, tmp_path / name, place=where, data=None, quiet=True)
        assert [outcome.status for outcome in found] == ["finished"]
    assert kills.results(tmp_path / "here") == kills.results(tmp_path / "there")
