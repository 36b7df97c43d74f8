"""The files of a cell: what is written is read again, and damage is named."""

import ast
import json
import math
import sys
from pathlib import Path

import pytest

import ftml_bench
from ftml_bench import benchmarks, strategies
from ftml_bench.errors import UsageError
from ftml_bench.runs import record
from ftml_bench.runs.provenance import provenance
from ftml_bench.runs.reading import read_runs
from ftml_bench.runs.record import CurveRow, RunWriter

HEADER = {"definition": "abc", "protocol": {"rounds": 1}, "device": "cpu"}


def row(datapoints, loss=0.1 + 0.2, accuracy=1 / 3):
    return {
        "round": 0,
        "evaluated_round": 0,
        "datapoints": datapoints,
        "loss": loss,
        "accuracy": accuracy,
        "steps": datapoints,
        "gradient_evaluations": 10 * datapoints,
    }


def finished(folder):
    writer = RunWriter.start(folder, HEADER)
    writer.append(row(10), 1.5)
    writer.append(row(20, accuracy=None), 4.25)
    writer.finish("finished", cost={"steps": 20})
    return folder


def test_what_is_written_is_read_bit_for_bit(tmp_path):
    run = record.read(finished(tmp_path / "cell"))
    assert run.curve == [
        CurveRow(0, 0, 10, 0.1 + 0.2, 1 / 3, 10, 100),
        CurveRow(0, 0, 20, 0.1 + 0.2, None, 20, 200),
    ]
    assert run.seconds == 4.25
    assert run.status == "finished"
    assert run.record["cost"] == {"steps": 20}


def test_the_record_says_how_it_came_about(tmp_path):
    found = record.read(finished(tmp_path)).record
    assert set(found["versions"]) == {"python", "torch", "avalanche-lib", "ftml-bench", "numpy"}
    assert {"commit", "command", "started", "finished", "device", "definition", "protocol"} <= set(found)
    assert found["started"].endswith("+00:00")


def test_rows_are_on_disk_as_soon_as_they_are_appended(tmp_path):
    writer = RunWriter.start(tmp_path, HEADER)
    assert json.loads((tmp_path / "record.json").read_text())["status"] == "running"
    writer.append(row(10), 1.0)
    assert len((tmp_path / "curve.csv").read_text().splitlines()) == 2
    assert len((tmp_path / "timing.csv").read_text().splitlines()) == 2
    assert not list(tmp_path.glob(".*"))  # no temporary file is left


def test_where_the_system_does_not_say_its_peak_memory_is_left_out(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "resource", None)  # as on Windows
    run = record.read(finished(tmp_path))
    assert (len(run.curve), run.seconds) == (2, 4.25)
    assert (tmp_path / "timing.csv").read_text().splitlines()[1:] == ["0,10,1.5,", "0,20,4.25,"]


@pytest.mark.parametrize("package", [ftml_bench, benchmarks, strategies])
def test_no_module_of_some_systems_alone_is_imported_unless_its_lack_is_foreseen(package):
    some = {"fcntl", "grp", "posix", "pty", "pwd", "resource", "syslog", "termios", "tty", "msvcrt", "winreg"}
    for file in Path(package.__file__).parent.rglob("*.py"):
        for statement in ast.parse(file.read_text(encoding="utf-8")).body:  # not those inside of functions
            names = [name.name for name in statement.names] if isinstance(statement, ast.Import) else []
            names += [statement.module] if isinstance(statement, ast.ImportFrom) else []
            assert not some & {name.split(".")[0] for name in names}, file


def test_nothing_in_the_curve_depends_on_the_clock(tmp_path):
    for name, seconds in (("a", 1.0), ("b", 2.0)):
        writer = RunWriter.start(tmp_path / name, HEADER)
        writer.append(row(10), seconds)
        writer.finish("finished")
    assert (tmp_path / "a/curve.csv").read_bytes() == (tmp_path / "b/curve.csv").read_bytes()


def test_starting_anew_forgets_the_earlier_attempt(tmp_path):
    finished(tmp_path)
    RunWriter.start(tmp_path, HEADER).finish("finished")
    assert record.read(tmp_path).curve == []


def test_nan_is_read_as_nan(tmp_path):
    writer = RunWriter.start(tmp_path, HEADER)
    writer.append(row(10, loss=math.nan), 1.0)
    writer.finish("diverged", diverged_round=0)
    assert math.isnan(record.read(tmp_path).curve[0].loss)


def test_a_divergence_needs_its_round(tmp_path):
    with pytest.raises(ValueError, match="diverged_round"):
        RunWriter.start(tmp_path, HEADER).finish("diverged")
    with pytest.raises(ValueError, match="status 'done'"):
        RunWriter.start(tmp_path, HEADER).finish("done")


def test_a_header_needs_definition_and_protocol(tmp_path):
    with pytest.raises(KeyError, match="protocol"):
        RunWriter.start(tmp_path / "cell", {"definition": "abc"})
    assert not (tmp_path / "cell").exists()


def test_a_failure_keeps_what_was_recorded(tmp_path):
    RunWriter.start(tmp_path, HEADER)
    record.mark_failed(tmp_path, "abc", "ValueError: no", "Traceback ...\n")
    found = record.read(tmp_path).record
    assert (found["status"], found["reason"], found["device"]) == ("failed", "ValueError: no", "cpu")
    assert (tmp_path / "error.txt").read_text() == "Traceback ...\n"


def test_a_failure_before_anything_was_recorded(tmp_path):
    record.mark_failed(tmp_path / "cell", "abc", "no data", "Traceback ...\n")
    found = record.read(tmp_path / "cell").record
    assert (found["status"], found["definition"]) == ("failed", "abc")


def test_a_running_cell_with_half_a_line_can_be_read(tmp_path):
    RunWriter.start(tmp_path, HEADER)
    with (tmp_path / "curve.csv").open("a") as file:
        file.write("0,0,1")
    assert record.read(tmp_path).status == "running"


def test_columns_say_that_rounds_count_from_0_and_tables_of_before_are_read(tmp_path):
    finished(tmp_path)
    before = record.read(tmp_path)
    for name, columns in (("curve.csv", "round_from_0,evaluated_round_from_0,"), ("timing.csv", "round_from_0,")):
        text = (tmp_path / name).read_text()
        assert text.startswith(columns)
        (tmp_path / name).write_text(text.replace("_from_0", ""))
    file = tmp_path / "record.json"
    file.write_text(json.dumps({key: value for key, value in json.loads(file.read_text()).items() if key != "tables"}))
    assert record.read(tmp_path).curve == before.curve
    assert record.read_times(tmp_path) == [(0, 10, 1.5), (0, 20, 4.25)]


@pytest.mark.parametrize(
    ("name", "damage", "message"),
    [
        (
            "curve.csv",
            lambda text: text.replace("0,0,10,", "0,0,ten,"),
            r"curve.csv: damaged: line 2: datapoints is 'ten'",
        ),
        ("curve.csv", lambda text: text[:-2], r"curve.csv: damaged: line 3 is cut off"),
        ("curve.csv", lambda text: text[:-5], r"curve.csv: damaged: line 3 has 6 values, expected 7"),
        (
            "curve.csv",
            lambda text: "a,b\n" + text,
            r"curve.csv: damaged: line 1 must be round_from_0,evaluated_round_from_0",
        ),
        ("curve.csv", lambda text: "", r"curve.csv: damaged: line 1 must be"),
        ("timing.csv", lambda text: text.replace("4.25", "?"), r"timing.csv: damaged: line 3: seconds is '\?'"),
        ("record.json", lambda text: text[:-4], r"record.json: damaged: line \d+"),
        ("record.json", lambda text: "[]", r"record.json: damaged: no 'status'"),
        ("record.json", lambda text: "[" * 100_000, r"record.json: damaged: maximum recursion depth"),
        ("record.json", lambda text: text.replace("cpu", r"\ud83d"), r"damaged: a text in it holds half a character"),
        ("record.json", lambda text: text.replace('"finished"', '"done"'), r"record.json: damaged: no 'status'"),
        ("record.json", lambda text: text.replace("protocol", "protokoll"), r"record.json: damaged: no 'protocol'"),
        ("record.json", lambda text: text.replace(': "finished"', ': "diverged"'), r"damaged: no 'diverged_round'"),
    ],
)
def test_damage_is_named_with_file_and_line(tmp_path, name, damage, message):
    finished(tmp_path)
    file = tmp_path / name
    file.write_text(damage(file.read_text()))
    with pytest.raises(UsageError, match=message) as caught:
        record.read(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_missing_table_is_named(tmp_path):
    finished(tmp_path)
    (tmp_path / "timing.csv").unlink()
    with pytest.raises(UsageError, match=r"timing.csv: cannot be read: No such file"):
        record.read(tmp_path)


def test_what_cannot_be_read_is_not_called_missing(tmp_path):
    (tmp_path / "leaderboard.yaml").mkdir()
    with pytest.raises(UsageError, match=r"cannot read the definition .*leaderboard.yaml: Is a directory"):
        read_runs(tmp_path)
    (tmp_path / "leaderboard.yaml").rmdir()
    rows = {"strategies": {"FTML": {}}, "optimizer": {"name": "SGD"}, "steps": 1, "benchmark": "Sinusoids"}
    (tmp_path / "leaderboard.yaml").write_text(json.dumps({"name": "t", "seeds": [0], "benchmarks": {"b": rows}}))
    (tmp_path / "b/FTML/seed-0/record.json").mkdir(parents=True)
    with pytest.raises(UsageError, match=r"record.json: cannot be read: .*Is a directory"):
        read_runs(tmp_path)


def test_a_folder_without_a_leaderboard_is_refused(tmp_path):
    with pytest.raises(UsageError, match=r"is no leaderboard's folder: there is no leaderboard.yaml in it"):
        read_runs(tmp_path)


def test_a_command_names_no_folder_of_the_machine(monkeypatch):
    given = [
        "/usr/bin/ftml-bench",
        "leaderboard",
        "/home/me/own.yaml",
        "--out=/tmp/x",
        "--seeds",
        "0,1",
        "--set",
        "a=b/c",
    ]
    monkeypatch.setattr("sys.argv", given)
    assert provenance()["command"] == "ftml-bench leaderboard own.yaml --out=x --seeds 0,1 --set a=b/c"
    monkeypatch.setattr("sys.argv", ["/usr/bin/ftml-bench", "--data=/data/\udcff"])  # bytes that are no UTF-8
    assert provenance()["command"] == r"ftml-bench '--data=\udcff'"
