"""A cell is finished only with the evaluations of its protocol; no state meets files that it was not saved with; what
is named so is on the disk."""

import itertools
import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from ftml_bench import cli, files, protocol, saving
from ftml_bench.benchmarks import Sinusoids
from ftml_bench.errors import UsageError
from ftml_bench.runs import cell as cells
from ftml_bench.runs import pool, record, resuming, schedule
from ftml_bench.runs.definition import Cell, from_dict
from ftml_bench.runs.record import CURVE_COLUMNS, RunWriter
from ftml_bench.runs.storage import StorageError
from tests.runs import kills

HEADER = {"definition": "abc", "protocol": {}}
FTML = Cell("waves", "FTML", 3)


def board(seeds=(3,)):
    """Two rounds of sinusoids in three arrivals each."""
    entry = {
        "benchmark": "Sinusoids",
        "settings": {"rounds": 2, "images_per_round": 12, "held_out_per_round": 20},
        "arrivals": [2, 4, 6],
        "checkpoints": [2, 12],
        "measures": ["regret"],
        "steps": 2,
        "optimizer": {"name": "SGD", "lr": 0.01},
        "strategies": {"FTML": {"meta_batch_size": 2}, "hindsight": {"strategy": "FTML", "comparator": True}},
    }
    return from_dict({"name": "lost", "seeds": list(seeds), "benchmarks": {"waves": entry}}, "lost")


@pytest.fixture(autouse=True)
def _save_always(monkeypatch):
    monkeypatch.setattr(resuming, "SAVE_EVERY", 0.0)
    monkeypatch.setattr(pool, "one_thread", lambda: None)  # other tests of this process may have their threads


def run_cell(folder, on_evaluation=lambda done, total: None, row="FTML"):
    return cells.run_cell(board(), Cell("waves", row, 3), folder, None, on_evaluation)


def stopped_at(folder, stop):
    def tell(done, total):
        if done == stop:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        run_cell(folder, tell)


def append(writer, datapoints, loss=0.5):
    row = {**dict.fromkeys(CURVE_COLUMNS, 0), "loss": loss, "accuracy": None, "datapoints": datapoints}
    writer.append(row, 1.0)


# -- finished means: all evaluations, and no other


def test_the_evaluations_of_the_protocol_counted_by_hand():
    waves = Sinusoids(rounds=2, images_per_round=12, held_out_per_round=20)
    assert protocol.keys(waves, [2, 4, 6]) == [(0, 0, 2), (0, 0, 6), (0, 0, 12), (1, 1, 2), (1, 1, 6), (1, 1, 12)]
    assert protocol.keys_in_hindsight(waves) == [(0, 0, 12), (1, 1, 12)]


@pytest.mark.parametrize("row", ["FTML", "hindsight"])
def test_a_cell_holds_the_evaluations_of_its_protocol(row, tmp_path):
    assert run_cell(tmp_path, row=row) == "finished"
    waves = Sinusoids(rounds=2, images_per_round=12, held_out_per_round=20)
    expected = protocol.keys(waves, [2, 4, 6]) if row == "FTML" else protocol.keys_in_hindsight(waves)
    curve = record.read(tmp_path).curve
    assert [(row.round, row.evaluated_round, row.datapoints) for row in curve] == expected


@pytest.mark.parametrize("sizes", [[4], [4, 8, 12], [8, 4], [4, 4], []])
def test_a_table_with_other_evaluations_is_not_finished(sizes, tmp_path):
    writer = RunWriter.start(tmp_path, HEADER)
    for size in sizes:
        append(writer, size)
    (tmp_path / "state.pt").touch()
    with pytest.raises(StorageError, match=r"curve.csv: holds others than the 2 evaluations of this run"):
        writer.check([(0, 0, 4), (0, 0, 8)])
    assert record.read(tmp_path).status == "running"
    assert not (tmp_path / "state.pt").exists()  # which may be what is wrong


@pytest.mark.parametrize("table", ["curve.csv", "timing.csv", "measures.csv"])
@pytest.mark.parametrize("how", ["line added", "line changed", "cut off"])
def test_a_table_that_another_process_wrote_to_is_not_finished(table, how, tmp_path):
    writer = RunWriter.start(tmp_path, HEADER)
    for size in (4, 8):
        append(writer, size)
        writer.append_measure(0, "regret", 0.25)
    file = tmp_path / table
    content = file.read_text()
    changed = {"line added": content + content.splitlines()[-1] + "\n", "line changed": content.replace("0", "7")}
    file.write_text(changed.get(how, content[:-3]))
    with pytest.raises(StorageError, match=rf"{table}: is not what was written to it"):
        writer.finish("finished")
    assert record.read(tmp_path).status == "running"


@pytest.mark.parametrize("how", ["removed", "replaced"])
def test_a_table_that_is_not_there_any_more_is_seen_at_the_next_evaluation(how, tmp_path):
    """Not at the end: until then an open file takes what is written to it."""
    writer = RunWriter.start(tmp_path, HEADER)
    append(writer, 4)
    content = (tmp_path / "curve.csv").read_bytes()
    (tmp_path / "curve.csv").unlink()
    if how == "replaced":
        (tmp_path / "curve.csv").write_bytes(content)
    with pytest.raises(StorageError, match=r"curve.csv: was removed or replaced while it was written"):
        append(writer, 8)


def test_a_cell_that_another_process_wrote_to_is_done_again_and_has_the_results_of_one_that_was_not(tmp_path, capsys):
    """As by an old worker that nothing has ended: it writes where it had been."""

    def run(root):
        return [o.status for o in schedule.run_cells(board(), root, jobs=1, data=None, quiet=True)]

    assert run(tmp_path / "whole") == ["finished"] * 2
    seen = []
    run_cell = cells.run_cell

    def written_to(definition, cell, folder, data, on_evaluation, device="cpu"):
        def tell(done, total):
            if (cell.row, done) == ("FTML", 5) and not seen:
                seen.append(done)
                with (folder / "curve.csv").open("r+b") as file:
                    file.seek(70)
                    file.write(b"1,1,2,0.5,,10,20\n")

        return run_cell(definition, cell, folder, data, tell, device)

    cells.run_cell = written_to
    try:
        assert run(tmp_path / "out") == ["finished"] * 2
    finally:
        cells.run_cell = run_cell
    assert "waves/FTML/seed-3: " in capsys.readouterr().err
    assert kills.results(tmp_path / "out") == kills.results(tmp_path / "whole")


# -- a state and its files


@pytest.mark.parametrize("table", ["curve.csv", "timing.csv", "measures.csv", "events"])
def test_a_state_goes_on_with_no_files_but_its_own(table, tmp_path, capsys):
    """Another run's are of the same length, or longer."""
    assert run_cell(tmp_path / "whole") == "finished"
    folder = tmp_path / "again"
    stopped_at(folder, 4)
    file = next(folder.glob("*tfevents*")) if table == "events" else folder / table
    content = bytearray(file.read_bytes())
    content[len(content) // 3] ^= 1
    file.write_bytes(content)
    assert run_cell(folder) == "finished"
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert said.endswith("is not the one that the state was saved with: the cell is done again from its start\n")
    assert kills.results(folder) == kills.results(tmp_path / "whole")


def test_what_was_left_of_an_interrupted_writing_is_removed(tmp_path):
    folder = tmp_path / "cell"
    stopped_at(folder, 4)
    for name in (".state.pt.99.tmp", ".state.pt.tmp", ".record.json.99"):
        (folder / name).touch()
    (folder / "error.txt").touch()
    assert run_cell(folder) == "finished"
    names = [p.name for p in folder.iterdir() if "tfevents" not in p.name]
    assert sorted(names) == ["curve.csv", "measures.csv", "record.json", "timing.csv"]


def test_what_a_cell_was_killed_before_it_could_remove_goes_at_the_next_start(tmp_path):
    run = [board(), tmp_path / "out"], {"jobs": 1, "data": None, "quiet": True}
    schedule.run_cells(*run[0], **run[1])
    folder = tmp_path / "out" / FTML.folder
    before = sorted(tmp_path.rglob("*"))
    for name in ("state.pt", "error.txt", ".lock", ".record.json.99.tmp", "../../../.leaderboard.yaml.99.tmp"):
        (folder / name).touch()
    schedule.run_cells(*run[0], **run[1])
    assert sorted(tmp_path.rglob("*")) == before


# -- a save that fails


def test_a_save_that_fails_keeps_the_last_state_and_the_cell_runs_on(tmp_path, monkeypatch, capsys):
    assert run_cell(tmp_path / "whole") == "finished"
    folder, states = tmp_path / "out", []
    fsync = os.fsync

    def full_for_a_moment(descriptor):
        if len(states) in (2, 3) and Path(os.readlink(f"/proc/self/fd/{descriptor}")).name.startswith(".state.pt."):
            raise OSError(28, "No space left on device")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", full_for_a_moment)
    assert run_cell(folder, lambda done, total: done and states.append(saved(folder))) == "finished"
    assert states == [None, 1, 1, 1, 4, 5]
    said = capsys.readouterr().err
    assert said == (
        f"ftml-bench: {folder}/state.pt: No space left on device: no state is saved until that has gone; "
        "the cell runs on\n"
    )
    assert kills.results(folder) == kills.results(tmp_path / "whole")


def saved(folder):
    """How many evaluations the state in a folder has; None without one."""
    return saving.load_file(folder / "state.pt")["more"]["done"] if (folder / "state.pt").exists() else None


@pytest.mark.parametrize("what", ["curve.csv", "waves", "."])
def test_a_folder_that_is_removed_is_said_once_and_the_other_cells_go_on(what, tmp_path, monkeypatch, capsys):
    root, begun = tmp_path / "out", []
    run_cell = cells.run_cell

    def removed(definition, cell, folder, data, on_evaluation, device="cpu"):
        begun.append(cell.row)

        def tell(done, total):
            if (cell.row, cell.seed, done, begun.count("FTML")) == ("FTML", 3, 3, 1):
                target = folder / what if what == "curve.csv" else root / what
                while target.is_dir():  # TensorBoard's thread may write into it meanwhile
                    shutil.rmtree(target, ignore_errors=True)
                target.unlink(missing_ok=True)

        return run_cell(definition, cell, folder, data, tell, device)

    monkeypatch.setattr(cells, "run_cell", removed)
    outcomes = schedule.run_cells(board(), root, jobs=1, data=None, quiet=True)
    said = capsys.readouterr().err
    assert said.count("; what this stops is tried again after the others\n") == (2 if what == "." else 1), outcomes
    if what == ".":
        assert [outcome.status for outcome in outcomes] == ["failed", "failed"]
        assert outcomes[1].message == f"{root}: was removed while it was run (3 times)"
        assert not root.exists()  # it is not made anew
    else:
        assert [outcome.status for outcome in outcomes] == ["finished", "finished"]
        monkeypatch.setattr(cells, "run_cell", run_cell)
        schedule.run_cells(board(), tmp_path / "whole", jobs=1, data=None, quiet=True)
        assert kills.results(root) == kills.results(tmp_path / "whole")


def test_a_small_disk_that_becomes_full(tmp_path, monkeypatch):
    """A file system of its own, where that may be mounted; room is made while nothing runs."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(disk)], capture_output=True).returncode:
        return  # every write is made to fail in other tests
    try:
        monkeypatch.setattr(schedule, "LocalPool", lambda processes: pool.ThisProcess())
        schedule.run_cells(board(), tmp_path / "whole", jobs=1, data=None, quiet=True)
        expected = kills.results(tmp_path / "whole")
        failed = 0
        for free in (0, 8, 16, 32, 48):  # kB
            root = disk / f"out {free}"
            filler = disk / "filler"
            with filler.open("wb") as file:
                room = shutil.disk_usage(disk).free - free * 1024
                file.write(bytes(room))
            try:
                statuses = [o.status for o in schedule.run_cells(board(), root, jobs=1, data=None, quiet=True)]
                failed += "failed" in statuses
            except UsageError:  # not even the lock
                failed += 1
            filler.unlink()
            outcomes = schedule.run_cells(board(), root, jobs=1, data=None, quiet=True)
            assert [outcome.status for outcome in outcomes] == ["finished", "finished"]
            assert kills.results(root) == expected
            shutil.rmtree(root)
        assert failed >= 3
    finally:
        subprocess.run(["umount", "--lazy", str(disk)], check=True)


# -- the first write


@pytest.mark.parametrize("left", ["", "\0" * 700, "# The definition as", "half", None])
def test_a_folder_whose_first_write_was_cut_off_is_taken_again(left, tmp_path):
    root = tmp_path / "out"
    root.mkdir()
    (root / ".leaderboard.yaml.77.tmp").write_text("name: l")
    (root / ".lock").touch()
    if left == "half":
        (tmp_path / "other").mkdir()
        schedule._claim(board(), tmp_path / "other")
        left = (tmp_path / "other/leaderboard.yaml").read_text()[:200]
    if left is not None:
        (root / "leaderboard.yaml").write_text(left)
    outcomes = schedule.run_cells(board(), root, jobs=1, data=None, quiet=True)
    assert [outcome.status for outcome in outcomes] == ["finished", "finished"]
    assert sorted(path.name for path in root.iterdir()) == ["leaderboard.yaml", "waves"]
    (root / FTML.folder / "record.json").write_text("")  # nor does one that a power cut has left of a cell stop all
    outcomes = schedule.run_cells(board(), root, jobs=1, data=None, quiet=True)
    assert [outcome.status for outcome in outcomes] == ["finished", "finished"]


@pytest.mark.parametrize("content", ["name: mine\nseeds: [0]\n", "\nname: mine\n", "# Mine\n"])
def test_a_definition_of_the_users_is_not_taken_for_that(content, tmp_path):
    (tmp_path / "leaderboard.yaml").write_text(content)
    with pytest.raises(UsageError):
        schedule.run_cells(board(), tmp_path, jobs=1, data=None, quiet=True)
    assert (tmp_path / "leaderboard.yaml").read_text() == content


# -- on the disk


def test_what_gets_a_name_is_on_the_disk(tmp_path, monkeypatch):
    """Every file that is renamed has been synced, its folder after it; the tables before a state or a record."""
    calls = []
    fsync, replace = os.fsync, Path.replace
    names = {}

    def synced(descriptor):
        name = os.readlink(f"/proc/self/fd/{descriptor}")
        calls.append(("fsync", name))
        names[name] = os.stat(descriptor).st_size
        fsync(descriptor)

    def replaced(source, target):
        assert names.get(str(source)) == os.stat(source).st_size, source
        calls.append(("replace", str(target)))
        return replace(source, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(Path, "replace", replaced)
    assert run_cell(tmp_path) == "finished"
    renamed = [number for number, (call, _) in enumerate(calls) if call == "replace"]
    assert len(renamed) == 1 + 6 + 1  # two records, six states
    for number in renamed:
        assert calls[number + 1] == ("fsync", str(tmp_path))
    tables = {("fsync", str(tmp_path / name)) for name in ("curve.csv", "timing.csv")}
    for before, number in itertools.pairwise(renamed):
        assert tables <= set(calls[before:number])
    assert all(names[str(tmp_path / name)] == (tmp_path / name).stat().st_size for name in ("curve.csv", "timing.csv"))


def test_what_cannot_be_written_leaves_what_was_there(tmp_path):
    file = tmp_path / "state"
    file.write_text("old")
    with pytest.raises(TypeError), files.replacing(file) as new:
        new.write("no bytes")
    assert [path.name for path in tmp_path.iterdir()] == ["state"]
    assert file.read_text() == "old"


def test_two_that_write_at_once_each_leave_a_whole_file(tmp_path):
    """Threads of a process have one number, and so may processes of two containers on one disk."""
    file = tmp_path / "state"
    with files.replacing(file) as first:
        first.write(b"first, half")
        with files.replacing(file) as second:
            second.write(b"second")
        assert file.read_bytes() == b"second"
        first.write(b" and whole")
        assert file.read_bytes() == b"second"
    assert file.read_bytes() == b"first, half and whole"
    assert [path.name for path in tmp_path.iterdir()] == ["state"]


def test_what_is_written_has_the_rights_of_any_new_file(tmp_path):
    before = os.umask(0o027)
    try:
        with files.replacing(tmp_path / "state") as file:
            names = [path.name for path in tmp_path.iterdir()]
            file.write(b"new")
    finally:
        os.umask(before)
    assert (tmp_path / "state").stat().st_mode & 0o777 == 0o640
    (tmp_path / names[0]).touch()  # as if it had been ended meanwhile
    files.remove_temporary(tmp_path / "state")
    assert [path.name for path in tmp_path.iterdir()] == ["state"]


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(cells, "check", lambda *_: None)
    file = tmp_path / "board.yaml"
    file.write_text(json.dumps({**board().to_dict()}))
    for out in ("/proc/nothing/here", "/proc/version"):
        assert cli.main(["leaderboard", str(file), "--out", out, "--quiet"]) == 2
        said = capsys.readouterr().err
        assert said.count("\n") == 1
        assert "cannot be written" in said or "is no leaderboard's folder" in said
