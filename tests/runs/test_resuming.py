"""A cell that was interrupted goes on from its saved state, and its files are those of one that was not."""

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from avalanche.training.plugins import AGEMPlugin
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from ftml_bench.errors import UsageError
from ftml_bench.runs import cell as cells
from ftml_bench.runs import pool, record, resuming, schedule
from ftml_bench.runs.definition import Cell, from_dict, with_seeds
from ftml_bench.runs.record import RunWriter
from ftml_bench.saving import strategies

ROWS = {
    "FTML": {"meta_batch_size": 2},
    "FollowTheLeader": {"train_mb_size": 10},
    "FromScratch": {"train_mb_size": 10},
    "TrainOnEverything": {"train_mb_size": 10},
    "in hindsight": {"strategy": "FTML", "meta_batch_size": 2, "comparator": True},
}


def definition(**rows):
    """Two rounds of sinusoids in three arrivals each; regret is measured."""
    entry = {
        "benchmark": "Sinusoids",
        "settings": {"rounds": 2, "images_per_round": 12, "held_out_per_round": 20},
        "arrivals": 4,
        "checkpoints": [4, 12],
        "measures": ["regret"],
        "steps": 2,
        "optimizer": {"name": "SGD", "lr": 0.01, "momentum": 0.9, "then": {"after_steps": 5, "lr": 0.001}},
        "strategies": rows or ROWS,
    }
    return from_dict({"name": "tiny", "seeds": [3], "benchmarks": {"waves": entry}}, "tiny")


class Interruption(BaseException):
    """As Ctrl-C."""


@pytest.fixture(autouse=True)
def _save_always(monkeypatch):
    monkeypatch.setattr(resuming, "SAVE_EVERY", 0.0)
    monkeypatch.setattr(pool, "one_thread", lambda: None)  # other tests of this process may have their threads


def run(folder, row="FTML", *, stop=None, of=None):
    """Run a cell; `stop`: interrupt it when that evaluation has been written, before its state is saved."""
    told = []

    def on_evaluation(done, total):
        told.append(done)
        if done == stop and len(told) > 1:  # the first says where it begins
            raise Interruption

    torch.rand(3)  # whatever happened in the process before
    cells.run_cell(of or definition(), Cell("waves", row, 3), folder, None, on_evaluation)
    return told[1:]


def interrupted(folder, row="FTML", *, stop):
    with pytest.raises(Interruption):
        run(folder, row, stop=stop)


def tables(folder):
    return {name: (folder / name).read_bytes() for name in ("curve.csv", "measures.csv") if (folder / name).is_file()}


def names(folder):
    """Of its files but those of events, which have the time in them."""
    return sorted(path.name for path in folder.iterdir() if "tfevents" not in path.name)


def events(folder):
    """{tag: [(x, value), ...]} of all event files, sorted: files of one second have no order."""
    curves = {}
    for where in {file.parent for file in folder.rglob("*tfevents*")}:
        found = EventAccumulator(str(where), size_guidance={"scalars": 0})
        found.Reload()
        for tag in found.Tags()["scalars"]:
            curves.setdefault(tag, []).extend((e.step, e.value) for e in found.Scalars(tag))
    return {tag: sorted(values) for tag, values in curves.items()}


@pytest.mark.parametrize("row", [row for row in ROWS if row != "in hindsight"])
def test_an_interrupted_cell_has_the_files_of_one_that_was_not(row, tmp_path, capsys):
    """Interrupted twice: in the middle of a round, and after the next one has begun."""
    run(tmp_path / "whole", row)
    folder = tmp_path / "again"
    interrupted(folder, row, stop=3)
    assert len((folder / "curve.csv").read_text().splitlines()) == 1 + 3  # one more than is saved
    assert (folder / "state.pt").is_file()
    first = json.loads((folder / "record.json").read_text())
    with pytest.raises(Interruption):
        run(folder, row, stop=5)
    assert run(folder, row) == [5, 6]
    assert tables(folder) == tables(tmp_path / "whole")
    assert events(folder) == events(tmp_path / "whole")
    assert len((folder / "timing.csv").read_text().splitlines()) == 1 + 6
    whole, again = record.read(tmp_path / "whole").record, record.read(folder).record
    assert again["cost"] == whole["cost"]
    assert again["started"] == first["started"]
    assert len(again["resumed"]) == 2
    assert names(folder) == names(tmp_path / "whole")
    assert "state.pt" not in names(folder)
    assert capsys.readouterr().err == ""


def test_a_cell_goes_on_when_seeds_were_added(tmp_path, capsys):
    more = with_seeds(definition(), [3, 4])
    run(tmp_path / "whole", of=more)
    interrupted(tmp_path / "cell", stop=4)
    assert run(tmp_path / "cell", of=more)[0] == 4
    assert capsys.readouterr().err == ""
    assert tables(tmp_path / "cell") == tables(tmp_path / "whole")
    assert record.read(tmp_path / "cell").record["definition"] == more.hash
    interrupted(tmp_path / "other", stop=4)
    run(tmp_path / "other", of=with_seeds(definition(), [4, 3]))  # whose first seeds are not these
    assert "was begun with another definition" in capsys.readouterr().err


def test_a_cell_whose_events_lie_where_they_did_before_goes_on(tmp_path):
    """Until then they lay in a folder of their own, and the saved state names them there."""
    run(tmp_path / "whole")
    folder = tmp_path / "again"
    interrupted(folder, stop=4)
    state = torch.load(folder / "state.pt", weights_only=True)
    contents = state["more"]["contents"]
    (folder / "tb").mkdir()
    for file in folder.glob("*tfevents*"):
        file.rename(folder / "tb" / file.name)
        contents[f"tb/{file.name}"] = contents.pop(file.name)
    torch.save(state, folder / "state.pt")
    assert run(folder) == [4, 5, 6]
    assert events(folder) == events(tmp_path / "whole")


def test_the_seconds_are_those_of_all_attempts(tmp_path, monkeypatch):
    interrupted(tmp_path, stop=3)
    file = tmp_path / "state.pt"
    state = torch.load(file, weights_only=True)
    state["more"]["seconds"] += 1000.0
    torch.save(state, file)
    run(tmp_path)
    assert 1000 < record.read(tmp_path).seconds < 1100


def test_a_state_is_saved_only_now_and_then(tmp_path, monkeypatch):
    monkeypatch.setattr(resuming, "SAVE_EVERY", 3600.0)
    interrupted(tmp_path, stop=5)
    assert not (tmp_path / "state.pt").exists()


def test_a_comparator_that_trains_on_all_at_once_is_done_again(tmp_path):
    interrupted(tmp_path, "in hindsight", stop=1)
    assert not (tmp_path / "state.pt").exists()
    assert run(tmp_path, "in hindsight") == [1, 2]


@pytest.mark.parametrize("damage", ["flipped", "text", "other", "lost rows", "other versions", "other settings"])
def test_a_state_that_cannot_be_used_is_said_once_and_the_cell_done_again(damage, tmp_path, capsys):
    folder = tmp_path / "again"
    run(tmp_path / "whole")
    interrupted(folder, stop=4)
    file = folder / "state.pt"
    if damage == "flipped":
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 1
        file.write_bytes(content)
    elif damage == "text":
        file.write_text("not a state")
    elif damage == "other":  # one of a script of the user's
        state = torch.load(file, weights_only=True)
        torch.save({**state, "more": {}}, file)
    elif damage == "lost rows":
        (folder / "curve.csv").write_text("round,")
    else:
        header = json.loads((folder / "record.json").read_text())
        header["versions" if damage == "other versions" else "protocol"]["torch"] = "0.4.1"
        (folder / "record.json").write_text(json.dumps(header))
    assert run(folder) == [1, 2, 3, 4, 5, 6]
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1
    assert said[0].startswith(f"ftml-bench: {folder}")
    assert said[0].endswith(": the cell is done again from its start")
    assert tables(folder) == tables(tmp_path / "whole")
    assert events(folder) == events(tmp_path / "whole")
    assert "resumed" not in record.read(folder).record


def test_a_strategy_that_cannot_be_saved_runs_to_its_end(tmp_path, capsys, monkeypatch):
    build = cells.build_strategy

    def with_agem(*arguments, **settings):
        strategy = build(*arguments, **settings)
        strategy.plugins.insert(0, AGEMPlugin(4, 64))
        return strategy

    monkeypatch.setattr(cells, "build_strategy", with_agem)
    interrupted(tmp_path, "FollowTheLeader", stop=5)
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1
    assert "AGEMPlugin cannot be saved: its " in said[0]
    assert said[0].endswith("; if it is interrupted, the cell will be done again from its start")
    assert not (tmp_path / "state.pt").exists()
    assert run(tmp_path, "FollowTheLeader") == [1, 2, 3, 4, 5, 6]


# -- whole leaderboards


def board():
    return definition(FTML=ROWS["FTML"], FollowTheLeader=ROWS["FollowTheLeader"])


def run_board(root, **settings):
    return [status for _, status, _ in schedule.run_cells(board(), root, jobs=1, data=None, quiet=True, **settings)]


def test_a_leaderboard_that_was_killed_goes_on_where_it_was(tmp_path):
    """By a signal that no program can catch, while its second cell runs."""
    script = """
import os, signal, sys
from pathlib import Path
from ftml_bench.runs import resuming
from tests.runs.test_resuming import board, cells, schedule
resuming.SAVE_EVERY = 0.0
run_cell = cells.run_cell
def killed(definition, cell, folder, data, on_evaluation, device="cpu"):
    def tell(done, total):
        if (cell.row, done) == ("FollowTheLeader", 4):
            os.kill(os.getpid(), signal.SIGKILL)
    return run_cell(definition, cell, folder, data, tell)
cells.run_cell = killed
schedule.run_cells(board(), Path(sys.argv[1]), jobs=1, data=None, quiet=True)
"""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "ignore", "-c", script, str(tmp_path / "killed")]
    assert subprocess.run(command, env=environment, cwd=tmp_path).returncode == -9
    folders = {cell.row: cell.folder for cell in board().cells()}
    stopped = tmp_path / "killed" / folders["FollowTheLeader"]
    assert record.read(tmp_path / "killed" / folders["FTML"]).status == "finished"
    assert record.read(stopped).status == "running"
    assert len((stopped / "curve.csv").read_text().splitlines()) == 1 + 4

    untouched = (tmp_path / "killed" / folders["FTML"] / "record.json").stat().st_mtime_ns
    times = (stopped / "timing.csv").read_text().splitlines()
    assert run_board(tmp_path / "killed") == ["finished", "finished"]
    assert (tmp_path / "killed" / folders["FTML"] / "record.json").stat().st_mtime_ns == untouched
    assert len(record.read(stopped).record["resumed"]) == 1
    assert (stopped / "timing.csv").read_text().splitlines()[:4] == times[:4]  # three evaluations were saved
    assert run_board(tmp_path / "whole") == ["finished", "finished"]
    for folder in folders.values():
        assert tables(tmp_path / "killed" / folder) == tables(tmp_path / "whole" / folder)


def fails(error, after):
    """Has cells raise an error after so many evaluations."""
    run_cell = cells.run_cell

    def failing(definition, cell, folder, data, on_evaluation, device="cpu"):
        def tell(done, total):
            on_evaluation(done, total)
            if done == after:
                raises(error)

        return run_cell(definition, cell, folder, data, tell)

    return failing


def raises(error):
    raise error


def test_a_cell_that_failed_is_done_from_the_start(tmp_path, monkeypatch):
    """What failed is mended first, so that nothing of before may stay."""
    with monkeypatch.context() as patch:
        patch.setattr(cells, "run_cell", fails(ZeroDivisionError("of a plugin"), after=3))
        assert run_board(tmp_path) == ["failed", "failed"]
    assert not list(tmp_path.rglob("state.pt"))
    assert run_board(tmp_path) == ["finished", "finished"]
    assert not list(tmp_path.rglob("error.txt"))


def lack_of_memory():
    """What PyTorch raises of a CPU."""
    try:
        torch.empty(2**50)
    except RuntimeError as error:
        return error


PASSING = {
    "memory": MemoryError(),
    "memory of a CPU": lack_of_memory(),
    "memory of a GPU": torch.OutOfMemoryError("CUDA out of memory."),
    "files": OSError(errno.EMFILE, os.strerror(errno.EMFILE)),
}


@pytest.mark.parametrize("error", PASSING.values(), ids=PASSING)
def test_a_cell_that_failed_by_what_passes_goes_on(error, tmp_path, monkeypatch, capsys):
    """A lack of memory, also where the state or the data are read, and data that this machine does not have."""
    monkeypatch.setattr(schedule, "LocalPool", lambda processes: pool.ThisProcess())
    rows = definition(FTML=ROWS["FTML"])
    folder = tmp_path / rows.cells()[0].folder

    def run_rows():
        ((_, status, message),) = schedule.run_cells(rows, tmp_path, jobs=1, data=None, quiet=True)
        return status, message

    with monkeypatch.context() as patch:
        patch.setattr(cells, "run_cell", fails(error, after=4))
        assert run_rows()[0] == "failed"
    state = (folder / "state.pt").read_bytes()
    read = Path.read_bytes
    for where, name, what in (
        (cells, "build_benchmark", lambda *_: raises(UsageError("MNIST is missing"))),
        (Path, "read_bytes", lambda path: raises(error) if path.name == "state.pt" else read(path)),
        (strategies, "load_module_state", lambda *_: raises(error)),
        *([] if isinstance(error, OSError) else [(torch, "load", lambda *_, **__: raises(error))]),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(where, name, what)
            status, message = run_rows()
        assert (status, (folder / "state.pt").read_bytes()) == ("failed", state), (name, message)
    assert record.has_failed(folder)
    assert capsys.readouterr().err == ""  # of a cell that would be done again
    assert run_rows() == ("finished", "")
    assert len(record.read(folder).record["resumed"]) == 1
    assert not (folder / "error.txt").exists()
    run(tmp_path / "whole", of=rows)
    assert tables(folder) == tables(tmp_path / "whole")


def test_a_state_of_another_definition_is_not_used(tmp_path):
    """As the results of another definition are not: whoever put a folder of another leaderboard there."""
    folder = tmp_path / board().cells()[0].folder
    RunWriter.start(folder, {"definition": "another", "protocol": {}})
    (folder / "state.pt").write_text("of another definition")
    assert not record.may_go_on(folder, board().includes)
    assert record.may_go_on(folder, "another".__eq__)
