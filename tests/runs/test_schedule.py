"""Cells are run once, kept, done again where they did not end well; nothing that was there is overwritten."""

import os
import shutil

import pytest

from ftml_bench.errors import UsageError
from ftml_bench.runs import definition as definitions
from ftml_bench.runs import pool, record, schedule, worker
from ftml_bench.runs.definition import Cell
from ftml_bench.runs.progress import Progress
from ftml_bench.runs.reading import read_runs
from ftml_bench.runs.record import RunWriter
from ftml_bench.runs.tasks import Task


def fake_cell(definition, cell, folder, data, on_evaluation, device="cpu"):
    """Stands for a cell that trains: two evaluations, then what the row's setting `ends` says."""
    if folder.parent.parent.parent.joinpath("..", "mended").exists():
        ends = "finished"
    else:
        ends = definition.benchmark(cell.benchmark).row(cell.row).settings.get("ends", "finished")
    if ends == "at once":
        raise UsageError("MNIST is missing")
    writer = RunWriter.start(
        folder, {"definition": definition.hash, "protocol": {}, "data": data, "process": os.getpid()}
    )
    for done in (1, 2):
        row = dict.fromkeys(record.CURVE_COLUMNS, done) | {"accuracy": None, "loss": float(cell.seed)}
        writer.append(row, float(done))
        on_evaluation(done, 2)
        if ends == "raises":
            raise ZeroDivisionError("by\nzero")
        if ends == "in another encoding":
            raise RuntimeError("cannot read data/\udcff.png")
        if ends == "without words":
            raise WordlessError
        if ends == "interrupted":
            raise KeyboardInterrupt
        if ends == "killed":
            os._exit(1)
    writer.finish(ends, **({"diverged_round": 0} if ends == "diverged" else {}))
    return ends


class WordlessError(Exception):
    def __str__(self):
        raise TypeError("no text")


@pytest.fixture(autouse=True)
def _fake(monkeypatch):
    monkeypatch.setattr(schedule, "RUN_CELL", f"{__name__}:fake_cell")
    monkeypatch.setattr(pool, "one_thread", lambda: None)  # other tests of this process may have their threads


def leaderboard(**rows):
    """One benchmark; a row for each name, whose cells end as its value says. Seeds 0 and 1."""
    return definitions.from_dict(
        {
            "name": "test",
            "seeds": [0, 1],
            "benchmarks": {
                "sines": {
                    "benchmark": "Sinusoids",
                    "steps": 1,
                    "optimizer": {"name": "Adam"},
                    "strategies": {name: {"strategy": "FromScratch", "ends": ends} for name, ends in rows.items()},
                }
            },
        },
        "test",
    )


def run(definition, root, jobs=1):
    return schedule.run_cells(definition, root, jobs=jobs, data=None, quiet=True)


def snapshot(root):
    return {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in root.rglob("*") if path.is_file()}


def test_every_cell_is_run_and_the_definition_stands_beside(tmp_path):
    board = leaderboard(good="finished", wild="diverged")
    outcomes = run(board, tmp_path / "out")
    assert outcomes == [
        (Cell("sines", "good", 0), "finished", ""),
        (Cell("sines", "good", 1), "finished", ""),
        (Cell("sines", "wild", 0), "diverged", ""),
        (Cell("sines", "wild", 1), "diverged", ""),
    ]
    found, runs, missing = read_runs(tmp_path / "out")
    assert found == board
    assert [cell for cell, _ in runs] == board.cells()
    assert missing == []
    assert board.hash in (tmp_path / "out/leaderboard.yaml").read_text()


def test_finished_and_diverged_cells_are_kept_untouched(tmp_path):
    board = leaderboard(good="finished", wild="diverged")
    first = run(board, tmp_path)
    before = snapshot(tmp_path)
    assert run(board, tmp_path) == first
    assert snapshot(tmp_path) == before


def test_a_cell_that_fails_is_recorded_and_the_others_go_on(tmp_path):
    outcomes = run(leaderboard(bad="raises", missing="at once", good="finished"), tmp_path / "out")
    assert [(status, message) for _, status, message in outcomes] == [
        ("failed", "ZeroDivisionError: by zero"),
        ("failed", "ZeroDivisionError: by zero"),
        ("failed", "MNIST is missing"),
        ("failed", "MNIST is missing"),
        ("finished", ""),
        ("finished", ""),
    ]
    folder = tmp_path / "out/sines/bad/seed-0"
    assert record.read(folder).record["reason"] == "ZeroDivisionError: by zero"
    assert "Traceback" in (folder / "error.txt").read_text()


def test_what_cannot_be_written_or_shown_of_an_error_ends_its_cell_alone(tmp_path):
    rows = {"bytes": "in another encoding", "silent": "without words", "good": "finished"}
    outcomes = run(leaderboard(**rows), tmp_path / "out")
    assert [status for _, status, _ in outcomes] == ["failed"] * 4 + ["finished"] * 2
    reasons = ["RuntimeError: cannot read data/\\udcff.png", "WordlessError: cannot be shown"]
    for row, reason in zip(rows, reasons, strict=False):
        folder = tmp_path / "out/sines" / row / "seed-0"
        assert record.read(folder).record["reason"] == reason
        assert reason.partition(": ")[0] in (folder / "error.txt").read_text()


def test_failed_running_and_incomplete_cells_are_done_again_from_the_start(tmp_path):
    root = tmp_path / "out"
    board = leaderboard(bad="raises", good="finished")
    run(board, root)
    RunWriter.start(root / "sines/good/seed-0", {"definition": board.hash, "protocol": {}})  # as if it had been killed
    (root / "sines/good/seed-1/record.json").unlink()
    (tmp_path / "mended").touch()
    assert [status for _, status, _ in run(board, root)] == ["finished"] * 4
    for cell in board.cells():
        found = record.read(root / cell.folder)
        assert (found.status, len(found.curve)) == ("finished", 2)
        assert not (root / cell.folder / "error.txt").exists()


def test_another_definitions_results_are_left_alone(tmp_path):
    ours, other = leaderboard(good="finished"), leaderboard(good="diverged")
    run(ours, tmp_path)
    before = snapshot(tmp_path)
    message = (
        rf"holds the results of another definition \(hash {ours.hash}, this one is {other.hash}\): choose another --out"
    )
    with pytest.raises(UsageError, match=message):
        run(other, tmp_path)
    assert snapshot(tmp_path) == before


def test_seeds_can_be_added_to_those_that_are_there(tmp_path):
    two = leaderboard(good="finished", wild="diverged")
    run(two, tmp_path)
    RunWriter.start(tmp_path / "sines/wild/seed-1", {"definition": two.hash, "protocol": {}})  # as if interrupted
    before = snapshot(tmp_path / "sines")
    four = definitions.with_seeds(two, [0, 1, 7, 3])
    assert [status for _, status, _ in run(four, tmp_path)] == ["finished"] * 4 + ["diverged"] * 4
    after = snapshot(tmp_path / "sines")
    assert {path for path in before if before[path] != after[path]} == {
        tmp_path / "sines/wild/seed-1" / name for name in ("record.json", "curve.csv", "timing.csv")
    }
    assert len(after) == 2 * len(before)
    found, runs, missing = read_runs(tmp_path)  # whose records have one of two hashes
    assert (found, len(runs), missing) == (four, 8, [])
    for others in ([0, 1], [0, 7, 1, 3], [1, 7, 3], [4]):
        with pytest.raises(UsageError, match=r"with other seeds \(0,1,7,3; here .*give --seeds 0,1,7,3, to which more"):
            run(definitions.with_seeds(two, others), tmp_path)
    assert snapshot(tmp_path / "sines") == after


def test_what_another_run_left_before_the_folder_was_locked_is_left_alone(tmp_path):
    ours, other = leaderboard(good="finished"), leaderboard(good="diverged")

    def place(tasks, cut_off):  # stands for the seconds that a cluster takes to begin
        run(other, tmp_path)
        before.update(snapshot(tmp_path))
        return pool.ThisProcess()

    before = {}
    with pytest.raises(UsageError, match=rf"holds the results of another definition \(hash {other.hash}"):
        schedule.run_cells(ours, tmp_path, place=place, data=None, quiet=True)
    assert snapshot(tmp_path) == before


def test_rows_in_another_order_and_another_description_are_taken_over(tmp_path):
    board = leaderboard(good="finished", wild="diverged")
    run(board, tmp_path)
    before = snapshot(tmp_path / "sines")
    content = board.to_dict() | {"description": "rows the other way round"}
    rows = content["benchmarks"]["sines"]["strategies"]
    content["benchmarks"]["sines"]["strategies"] = dict(reversed(rows.items()))
    other = definitions.from_dict(content, "test")
    assert other.hash == board.hash
    run(other, tmp_path)
    found = read_runs(tmp_path)[0]
    assert [row.name for row in found.benchmarks[0].rows] == ["wild", "good"]
    assert found.description == "rows the other way round"
    assert snapshot(tmp_path / "sines") == before


def test_what_was_begun_with_fewer_seeds_goes_on_from_its_saved_state(tmp_path):
    two = leaderboard(good="finished")
    RunWriter.start(tmp_path / "cell", {"definition": two.hash, "protocol": {}})
    (tmp_path / "cell" / record.SAVED_STATE).touch()
    assert record.may_go_on(tmp_path / "cell", definitions.with_seeds(two, [0, 1, 2]).includes)
    for others in (leaderboard(good="diverged"), definitions.with_seeds(two, [0])):
        assert not record.may_go_on(tmp_path / "cell", others.includes)


def test_a_run_that_ends_while_it_removes_a_cell_goes_on(tmp_path, monkeypatch):
    board = leaderboard(good="finished")
    run(board, tmp_path)

    def killed_after(number, calls):
        def unlink(*arguments, **keywords):
            real(*arguments, **keywords)
            calls.append(arguments)
            if len(calls) == number:
                raise KeyboardInterrupt

        return unlink

    real = os.unlink
    for number in (1, 2):  # of the three files of a cell
        with monkeypatch.context() as patched:
            patched.setattr(os, "unlink", killed_after(number, []))
            with pytest.raises(KeyboardInterrupt):
                schedule.run_cells(board, tmp_path, data=None, quiet=True, redo=set(board.cells()))
        assert [status for _, status, _ in run(board, tmp_path)] == ["finished"] * 2


def test_a_link_in_the_place_of_a_cell_is_followed_and_never_removed(tmp_path):
    root, elsewhere = tmp_path / "out", tmp_path / "elsewhere"
    board = leaderboard(good="finished")
    first, second = board.cells()
    run(board, root)
    (root / first.folder).rename(elsewhere)
    (root / first.folder).symlink_to(elsewhere)
    before = snapshot(tmp_path)
    assert [status for _, status, _ in run(board, root)] == ["finished"] * 2  # both are kept
    message = r"seed-0 is a link, and a cell that is begun anew is removed first: remove the link"
    with pytest.raises(UsageError, match=message):
        schedule.run_cells(board, root, data=None, quiet=True, redo={first, second})
    assert snapshot(tmp_path) == before
    (elsewhere / "record.json").unlink()
    (root / second.folder / "record.json").unlink()
    before = snapshot(tmp_path)
    with pytest.raises(UsageError, match=message):
        run(board, root)
    assert snapshot(tmp_path) == before


def test_a_folder_of_something_else_is_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(UsageError, match=r"exists and is no leaderboard's folder"):
        run(leaderboard(good="finished"), tmp_path)
    with pytest.raises(UsageError, match=r"exists and is no leaderboard's folder"):
        run(leaderboard(good="finished"), tmp_path / "thesis.tex")
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_folder_whose_name_is_no_utf_8_is_refused(tmp_path):
    with pytest.raises(UsageError, match=r"/b\\udcffd/out: expected a name in UTF-8: choose another --out$"):
        run(leaderboard(good="finished"), tmp_path / os.fsdecode(b"b\xffd") / "out")
    assert not list(tmp_path.iterdir())


def test_a_damaged_record_is_named_and_nothing_is_run(tmp_path):
    board = leaderboard(good="finished")
    run(board, tmp_path)
    (tmp_path / "sines/good/seed-1/record.json").write_text("{")
    before = snapshot(tmp_path)
    with pytest.raises(UsageError, match=r"seed-1/record.json: damaged.*; it is run again with --redo \S+/seed-1$"):
        run(board, tmp_path)
    assert snapshot(tmp_path) == before


def test_ctrl_c_ends_the_run_and_the_rest_can_follow(tmp_path):
    board = leaderboard(good="finished", stopped="interrupted")
    with pytest.raises(KeyboardInterrupt):
        run(board, tmp_path / "out")
    assert not list((tmp_path / "out").glob(".*"))  # the lock is open again
    assert record.read(tmp_path / "out/sines/good/seed-1").status == "finished"
    assert record.read(tmp_path / "out/sines/stopped/seed-0").status == "running"
    (tmp_path / "mended").touch()
    assert [status for _, status, _ in run(board, tmp_path / "out")] == ["finished"] * 4


def test_several_processes_give_the_same_files(tmp_path):
    board = leaderboard(good="finished", wild="diverged", bad="raises")
    one, two = run(board, tmp_path / "one"), run(board, tmp_path / "two", jobs=2)
    assert two == one
    for cell in board.cells():
        curves = [(tmp_path / name / cell.folder / "curve.csv").read_bytes() for name in ("one", "two")]
        assert curves[0] == curves[1]
        if cell.row == "good":
            assert record.read(tmp_path / "two" / cell.folder).record["process"] != os.getpid()


def test_a_process_that_dies_is_recorded_as_a_failure(tmp_path):
    outcomes = run(leaderboard(dead="killed"), tmp_path, jobs=2)
    assert [status for _, status, _ in outcomes] == ["failed", "failed"]
    reason = "its process was ended with exit code 1 (3 times)"
    assert record.read(tmp_path / "sines/dead/seed-0").record["reason"] == reason


def test_a_process_that_dies_takes_nothing_from_cells_that_had_ended(tmp_path):
    board = leaderboard(wild="diverged")
    run(board, tmp_path)
    first, second = board.cells()
    shutil.rmtree(tmp_path / second.folder)
    task = Task(board, (first, second), tmp_path, None, "cpu", (schedule.RUN_CELL, schedule.RUN_TOGETHER), "")
    (tmp_path / first.folder / "state.pt").touch()  # it died when it was about to remove it
    assert schedule._of_death(task, worker.Death("by SIGKILL")) == [
        (first, "diverged", ""),
        (second, "stopped", "its process was ended by SIGKILL"),
    ]
    assert not (tmp_path / first.folder / "state.pt").exists()


def test_the_longest_cells_come_first(tmp_path):
    board = definitions.load("rainbow_mnist_small")
    order = sorted(board.cells(), key=lambda cell: schedule._cost(board, cell))
    assert list(dict.fromkeys(cell.row for cell in order))[:2] == ["FTML", "FromScratch x10"]


def test_the_bar_knows_its_length_once_a_cell_of_each_benchmark_has_begun(capsys):
    board = leaderboard(one="finished", two="finished")
    progress = Progress(board, board.cells()[1:], kept=1, quiet=False)
    progress.evaluated(board.cells()[1], 5, 20)
    assert (progress._bar.n, progress._bar.total) == (5, 60)
    progress.evaluated(board.cells()[1], 20, 20)
    progress.ended(board.cells()[1])
    assert (progress._bar.n, progress._said(80)["end"]) == (20, "2/4 cells")
    progress.close()
