"""What was changed after a run is refused, by the command that reports and by the one that goes on."""

import csv
import hashlib
import json
import shutil

import pytest

from ftml_bench import cli
from ftml_bench.runs import provenance, record, status, tasks
from ftml_bench.runs.appended import table_hash
from ftml_bench.runs.definition import Cell, from_dict
from ftml_bench.runs.record import RunWriter
from tests.runs.made import CONTENT, DEFINITION, edit, write_all, write_run

pytestmark = pytest.mark.usefixtures("undrawn")


@pytest.fixture
def root(tmp_path):
    return write_all(tmp_path / "small")


def lines_of(change):
    def changed(file):
        file.write_text("\n".join(change(file.read_text().splitlines())) + "\n")

    return changed


CHANGES = {
    "a line removed": lines_of(lambda lines: lines[:-1]),
    "a line doubled": lines_of(lambda lines: [*lines, lines[-1]]),
    "lines reversed": lines_of(lambda lines: [lines[0], *lines[:0:-1]]),
    "two lines exchanged": lines_of(lambda lines: [lines[0], lines[2], lines[1], *lines[3:]]),
    "a digit": lines_of(lambda lines: [line.replace("0.5", "0.4") for line in lines]),
    "a negative loss": lines_of(lambda lines: [line.replace(",0.5,", ",-0.5,") for line in lines]),
    "the end of lines": lambda file: file.write_bytes(file.read_bytes().replace(b"\n", b"\r\n")),
    "another seed's": lambda file: shutil.copy(file.parents[1] / "seed-1" / file.name, file),
}


def refused(root, capsys):
    code = cli.main(["report", str(root)])
    err = capsys.readouterr().err
    assert code == 2
    assert err.count("\n") == 1
    assert not list(root.glob("leaderboard.[mc]*"))  # no table was made
    return err


@pytest.mark.parametrize("change", CHANGES.values(), ids=list(CHANGES))
def test_a_table_that_was_changed_is_refused(root, change, capsys):
    change(root / "waves/FTML/seed-0/curve.csv")
    assert "waves/FTML/seed-0/curve.csv was changed after the run: it has " in refused(root, capsys)
    with pytest.raises(ValueError, match="was changed after the run"):
        tasks.status_of(DEFINITION, root, Cell("waves", "FTML", 0))  # so a run does not go on with it either


@pytest.mark.parametrize("table", ["timing.csv", "measures.csv"])
def test_so_are_the_other_tables(root, table, capsys):
    lines_of(lambda lines: [*lines[:-1], lines[-1].replace("5", "6")])(root / "waves/FTML/seed-0" / table)
    assert f"{table} was changed after the run: it has " in refused(root, capsys)


def test_a_table_that_is_gone_or_was_added_is_named(root, capsys):
    (root / "waves/FTML/seed-0/measures.csv").rename(root / "kept")
    assert "seed-0/measures.csv is missing" in refused(root, capsys)
    (root / "kept").rename(root / "waves/FTML/seed-0/measures.csv")
    file = root / "waves/FTML/seed-0/record.json"
    content = json.loads(file.read_text())
    del content["tables"]["measures.csv"]
    file.write_text(json.dumps(content))
    assert "seed-0/measures.csv is not of the run" in refused(root, capsys)


@pytest.mark.parametrize("tables", [[], {}, 3, {"curve.csv": {}}, {"curve.csv": {"rows": 8, "sha256": ""}}, None])
def test_a_record_whose_hashes_are_none_is_damaged(root, tables, capsys):
    file = root / "waves/FTML/seed-0/record.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"tables": tables}))
    assert "record.json: damaged: " in refused(root, capsys)


def test_another_seeds_whole_folder_is_refused(root, capsys):
    shutil.rmtree(root / "waves/FTML/seed-0")
    shutil.copytree(root / "waves/FTML/seed-1", root / "waves/FTML/seed-0")
    assert "seed-0/record.json is of another cell: waves/FTML/seed-1" in refused(root, capsys)


def test_an_edited_definition_is_refused(root, capsys):
    file = root / "leaderboard.yaml"
    text = file.read_text()
    file.write_text(text.replace("steps: 5", "steps: 6"))
    assert f"was changed after the run: its hash is {_hash(steps=6)}, that of the run was" in refused(root, capsys)
    file.write_text(file.read_text().replace(DEFINITION.hash, _hash(steps=6)))  # and its first line, too
    assert f"record.json is of another definition (hash {DEFINITION.hash}) than" in refused(root, capsys)


def test_a_record_of_another_definition_is_refused(root, capsys):
    write_run(root, Cell("waves", "FTML", 1), [0.9, 0.5] * 4, definition=_definition(steps=6))
    assert f"seed-1/record.json is of another definition (hash {_hash(steps=6)})" in refused(root, capsys)


def _definition(**changed):
    waves = CONTENT["benchmarks"]["waves"] | changed
    return from_dict(CONTENT | {"benchmarks": {"waves": waves}}, "small")


def _hash(**changed):
    return _definition(**changed).hash


def test_the_record_holds_rows_and_hashes(root):
    folder = root / "waves/FTML/seed-0"
    held = record.read(folder).record["tables"]
    assert {name: table["rows"] for name, table in held.items()} == {
        "curve.csv": 8,
        "timing.csv": 8,
        "measures.csv": 1,
    }
    for name, table in held.items():
        assert len(list(csv.DictReader((folder / name).open()))) == table["rows"]
        assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == table["sha256"]


def test_a_run_that_went_on_holds_those_of_all_its_rows(tmp_path):
    header = {"definition": "abc", "protocol": {}}
    row = dict.fromkeys(record.CURVE_COLUMNS, 1)
    writer = RunWriter.start(tmp_path, header)
    writer.append(row, 1.0)
    then = writer.contents()
    writer.append(row, 2.0)  # lost
    writer = RunWriter.go_on(tmp_path, header, then, header["definition"].__eq__)
    writer.append(row, 2.0)
    writer.append(row, 3.0)
    writer.finish("finished")
    assert record.read(tmp_path).record["tables"]["curve.csv"]["rows"] == 3


def test_the_record_names_the_commit_of_a_checkout(tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(provenance, "_git", lambda folder, *arguments: calls.append(folder) or "")
    monkeypatch.setattr(provenance, "__file__", str(tmp_path / "ftml_bench" / "runs" / "provenance.py"))
    assert provenance.provenance()["commit"] is None  # an installed package
    (tmp_path / ".git").mkdir()
    assert provenance.provenance()["commit"] == ""
    assert set(calls) == {tmp_path.resolve()}


@pytest.mark.parametrize(
    ("where", "value", "said"),
    [
        (("protocol", "threshold"), True, "protocol: threshold: expected [metric, value]"),
        (("protocol", "threshold"), ["accuracy", 80], "protocol: threshold: an accuracy lies in (0, 1], got 80"),
        (("protocol", "checkpoints"), [0], "protocol: checkpoints: expected a whole number of at least 1, got 0"),
        (("protocol", "rounds"), 1.5, "protocol: rounds: expected a whole number of at least 1, got 1.5"),
        (("protocol", "settings"), "x", "protocol: settings: expected keys with values, got 'x'"),
        (("protocol", "optimizer"), True, "protocol: optimizer: expected keys with values, got True"),
        (("protocol", "metric"), "F1", "protocol: metric: unknown metric 'F1'"),
        (("protocol", "metric"), None, "its protocol says no 'metric'"),
        (("cost",), [], "cost: expected keys with numbers, got []"),
        (("cost", "points_kept"), "x", "cost: points_kept: expected a finite number, not below 0, got 'x'"),
        (("cost", "points_kept"), float("nan"), "cost: points_kept: expected a finite number, not below 0, got nan"),
        (("finished",), "x", "finished: expected a time in ISO 8601, got 'x'"),
        (("started",), 5, "started: expected a time in ISO 8601, got 5"),
        (("started",), "0001-01-01", "started: expected a time in ISO 8601, got '0001-01-01'"),  # before all calendars
    ],
)
def test_a_record_that_says_what_it_cannot_is_named_by_its_key(root, where, value, said, capsys):
    """It may come from somebody else, in an archive."""
    file = root / "waves/FTML/seed-0/record.json"
    content = json.loads(file.read_text())
    inner = content
    for key in where[:-1]:
        inner = inner[key]
    inner[where[-1]] = value
    file.write_text(json.dumps(content))
    assert f"record.json: damaged: {said}" in refused(root, capsys)


@pytest.mark.parametrize("state", ["running", "failed"])
@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("protocol", [], "protocol: expected keys with values, got []"),
        ("versions", "x", "versions: expected keys with values, got 'x'"),
        ("started", 5, "started: expected a time in ISO 8601, got 5"),
        ("resumed", 5, "resumed: expected a list of times, got 5"),
        ("resumed", ["x"], "resumed: expected a time in ISO 8601, got 'x'"),
        ("reason", [1], "reason: expected text, got [1]"),
    ],
)
def test_so_is_one_of_a_cell_that_has_not_ended(root, state, key, value, said, capsys):
    edit(root / "waves/FTML/seed-0/record.json", status=state, tables=None, **{key: value})
    assert f"record.json: damaged: {said}" in refused(root, capsys)
    assert said in status.of_cells(DEFINITION, root)[0].note


def test_datapoints_that_do_not_increase_are_damage(root, capsys):
    folder = root / "waves/FTML/seed-0"
    text = (folder / "curve.csv").read_text().replace("0,0,10,", "0,0,0,", 1)
    (folder / "curve.csv").write_text(text)
    content = json.loads((folder / "record.json").read_text())
    content["tables"]["curve.csv"] = table_hash(text.encode())
    (folder / "record.json").write_text(json.dumps(content))
    assert "curve.csv: damaged: datapoints of round 1 that do not increase from 1 on: [0, 20]" in refused(root, capsys)
