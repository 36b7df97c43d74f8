"""`--status`, `--dry-run` and `--redo`, and what a report says of cells that were run with other versions."""

import json
import shutil

import pytest

from ftml_bench import cli, report
from ftml_bench.errors import UsageError
from ftml_bench.report.contents import compute
from ftml_bench.runs import locking, record, schedule, status
from ftml_bench.runs.definition import Cell
from tests.runs.made import CONTENT, DEFINITION, edit, write_all

pytestmark = pytest.mark.usefixtures("undrawn")

FTML_0, FTML_1 = Cell("waves", "FTML", 0), Cell("waves", "FTML", 1)
SCRATCH_0, SCRATCH_1 = Cell("waves", "FromScratch", 0), Cell("waves", "FromScratch", 1)


@pytest.fixture
def root(tmp_path):
    return write_all(tmp_path / "small")


@pytest.fixture
def definition_file(tmp_path):
    (tmp_path / "small.yaml").write_text(json.dumps(CONTENT))
    return str(tmp_path / "small.yaml")


def files(root):
    return {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}


def interrupt(root, cell, rows, **changed):
    """Leaves of a cell its first rows, one of them half written, and a record that says that it runs."""
    folder = root / cell.folder
    edit(folder / "record.json", status="running", tables=None, **changed)
    lines = (folder / "timing.csv").read_text().splitlines(keepends=True)
    (folder / "timing.csv").write_text("".join(lines[: 1 + rows]) + "0,2")


def test_the_status_of_every_cell(root):
    interrupt(root, FTML_0, 4, resumed=["2026-01-01T00:00:00+00:00", "2026-01-02T00:00:00+00:00"])
    record.mark_failed(root / FTML_1.folder, DEFINITION.hash, "no data", "")
    shutil.rmtree(root / SCRATCH_1.folder)
    found = {one.cell: one for one in status.of_cells(DEFINITION, root)}
    assert [one.state for one in found.values()] == ["interrupted", "failed", "finished", "open"]
    assert (found[FTML_0].done, found[FTML_0].total, found[FTML_0].seconds) == (4, 8, 1.5)  # rows at 0, 0.5, 1, 1.5 s
    assert found[FTML_0].since == "2026-01-02T00:00:00+00:00"
    assert found[FTML_1].note == "no data"
    with locking.alone(root):
        assert status.of_cells(DEFINITION, root)[0].state == "running"


def test_how_long_it_will_take_by_hand(root):
    assert status.seconds_left(status.of_cells(DEFINITION, root)) == 0
    interrupt(root, FTML_0, 4)
    shutil.rmtree(root / FTML_1.folder)
    shutil.rmtree(root / SCRATCH_1.folder)
    # Interrupted after 4 of 8 in 1.5 s: 3 s, maybe from its start. FTML's other seed: as that one, 3 s. FromScratch's:
    # as its other seed, which took 3.5 s.
    assert status.seconds_left(status.of_cells(DEFINITION, root)) == 3.0 + 3.0 + 3.5
    with locking.alone(root):  # it runs: half of it is done
        assert status.seconds_left(status.of_cells(DEFINITION, root)) == 1.5 + 3.0 + 3.5
    shutil.rmtree(root / FTML_0.folder)
    assert status.seconds_left(status.of_cells(DEFINITION, root)) == 3 * 3.5  # as the benchmark's other row
    shutil.rmtree(root / SCRATCH_0.folder)
    assert status.seconds_left(status.of_cells(DEFINITION, root)) is None


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0 s"), (89, "89 s"), (90, "2 min"), (5399, "90 min"), (9000, "2.5 h")]
)
def test_durations_for_people(seconds, text):
    assert status.duration(seconds) == text


@pytest.mark.parametrize("option", ["--status", "--dry-run"])
def test_to_look_writes_nothing(root, definition_file, option, tmp_path, capsys):
    interrupt(root, FTML_0, 4)
    shutil.rmtree(root / SCRATCH_1.folder)
    before = files(root)
    assert cli.main(["leaderboard", definition_file, "--out", str(root), option]) == 0
    assert files(root) == before
    out = capsys.readouterr().out
    assert str(FTML_0) in out
    assert str(FTML_1) not in out
    assert cli.main(["leaderboard", definition_file, "--out", str(tmp_path / "new"), option]) == 0
    assert "4" in capsys.readouterr().out
    assert not (tmp_path / "new").exists()


def test_the_status_says_who_runs_it(root, definition_file, capsys):
    command = ["leaderboard", definition_file, "--out", str(root), "--status"]
    interrupt(root, FTML_0, 4)
    with locking.alone(root):
        assert cli.main(command) == 0
        assert "run by process " in capsys.readouterr().out
    assert cli.main(command) == 0
    out = capsys.readouterr().out
    assert "4 cells: 1 interrupted, 3 finished\nnobody runs it\n" in out
    assert "4 of 8" in out
    assert "left, by the speed so far: 3 s one at a time" in out


def test_the_folder_of_another_definition_has_no_status_here(root, capsys):
    assert cli.main(["leaderboard", "quick", "--out", str(root), "--status"]) == 2
    assert "another definition" in capsys.readouterr().err


def test_a_dry_run_names_what_would_be_run_again(root, definition_file, capsys):
    command = ["leaderboard", definition_file, "--out", str(root), "--dry-run"]
    assert cli.main(command) == 0
    assert capsys.readouterr().out == f"{root}: 0 of 4 cells would be run\n"
    interrupt(root, FTML_0, 4)
    (root / FTML_0.folder / "state.pt").write_bytes(b"")
    assert cli.main([*command, "--redo", str(SCRATCH_1)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"{root}: 2 of 4 cells would be run"
    assert set(lines[1:]) == {f"  {FTML_0} (from its saved state)", f"  {SCRATCH_1}"}
    assert cli.main([*command, "--redo", str(FTML_0)]) == 0
    assert f"  {FTML_0}\n" in capsys.readouterr().out  # from its start


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["all"], {FTML_0, FTML_1, SCRATCH_0, SCRATCH_1}),
        (["failed"], {FTML_1}),
        ([str(SCRATCH_0), "failed"], {SCRATCH_0, FTML_1}),
        ([], set()),
    ],
)
def test_the_cells_that_are_meant(root, names, expected):
    record.mark_failed(root / FTML_1.folder, DEFINITION.hash, "no data", "")
    assert schedule.cells_named(DEFINITION, root, names) == expected


def test_a_cell_that_there_is_not_is_refused_with_the_nearest(root):
    with pytest.raises(UsageError, match=r"unknown cell 'waves/FTLM/seed-0': did you mean 'waves/FTML/seed-0'\?"):
        schedule.cells_named(DEFINITION, root, ["waves/FTLM/seed-0"])


def test_what_is_redone_is_run_and_all_else_kept(root, monkeypatch):
    ran = []

    def run_cell(definition, cell, folder, data, on_evaluation, device):
        assert not folder.exists()  # of what was there, nothing is left
        ran.append(cell)
        return "finished"

    monkeypatch.setattr(schedule, "RUN_CELL", "ftml_bench.runs.cell:run_cell")
    monkeypatch.setattr("ftml_bench.runs.tasks._imported", lambda name: run_cell)
    monkeypatch.setattr(schedule, "LocalPool", lambda processes: schedule.ThisProcess())
    (root / FTML_0.folder / "state.pt").write_bytes(b"")
    curve = root / FTML_0.folder / "curve.csv"
    curve.write_text(curve.read_text().replace("0.5", "0.4"))  # refused otherwise
    before = files(root / SCRATCH_0.folder)
    schedule.run_cells(DEFINITION, root, jobs=1, data=None, quiet=True, redo={FTML_0, FTML_1})
    assert sorted(map(str, ran)) == [str(FTML_0), str(FTML_1)]
    assert files(root / SCRATCH_0.folder) == before


# -- what a report says of the cells


def remarks(root):
    """What terminal, Markdown and page say, which is the same."""
    found = compute(root).remarks
    text = report.write(root)
    for remark in found:
        assert remark in text
        assert remark in (root / "leaderboard.md").read_text()
        assert f'<div class="warning">{remark}</div>' in (root / "report.html").read_text()
    return found


def test_cells_that_were_run_alike_need_no_remark(root):
    assert remarks(root) == []


@pytest.mark.parametrize(
    ("what", "changed", "kind"),
    [
        ("version of torch", {"versions": {"torch": "1.0"}}, "1.0"),
        ("version of the suite", {"versions": {"ftml-bench": "0.0.1"}}, "0.0.1"),
        ("device", {"device": "cuda:1"}, "cuda"),
    ],
)
def test_cells_of_another_kind_are_named(root, what, changed, kind):
    file = root / FTML_1.folder / "record.json"
    content = json.loads(file.read_text())
    edit(file, **{key: content[key] | value if isinstance(value, dict) else value for key, value in changed.items()})
    (remark,) = remarks(root)
    assert remark.startswith(f"Not all cells are of the same {what}: ")
    assert remark.endswith(f" in 3; {kind} in 1 ({FTML_1}).")


def test_two_cards_of_one_machine_are_one_device(root):
    for number, cell in enumerate(DEFINITION.cells()):
        edit(root / cell.folder / "record.json", device=f"cuda:{number}")
    assert remarks(root) == []


def test_records_without_hashes_are_reported_with_a_remark(root):
    for cell in DEFINITION.cells():
        edit(root / cell.folder / "record.json", tables=None)
    (remark,) = remarks(root)
    assert remark.startswith(f"No hashes in the records of 4 ({FTML_0}, {FTML_1}, {SCRATCH_0} and 1 more): ")
