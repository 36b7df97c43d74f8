"""`ftml-bench verify`: every kind of fault is planted once and has to be named; counts and values by hand."""

import hashlib
import json
import math
import re
import shutil
import subprocess
import sys

import pytest

from ftml_bench import cli, report
from ftml_bench.commands.verifying import faults
from ftml_bench.errors import UsageError
from ftml_bench.runs import record, schedule
from ftml_bench.runs import verify as files  # without tables and figures
from ftml_bench.runs.definition import Cell, from_dict
from ftml_bench.runs.verify import expected_keys
from tests.runs.made import DEFINITION, PROTOCOL, changed, edit, write_all, write_run

FTML_0 = Cell("waves", "FTML", 0)
WARM_UP = {"rounds": 2, "datapoints": 5, "steps": None}
SETTINGS = {"inner_lr": 0.5, "inner_steps": 1, "buffer": {"name": "Reservoir", "points": 8}}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = write_all(tmp_path_factory.mktemp("made") / "small")
    report.write(folder)
    return folder


@pytest.fixture
def root(made, tmp_path):
    return shutil.copytree(made, tmp_path / "small")


def test_what_is_whole_is_verified(root, capsys):
    assert cli.main(["verify", str(root), str(root)]) == 0
    assert capsys.readouterr().out == f"{root}: verified\n" * 2


def hashed(root, change, table="curve.csv"):
    """Changes a table of FTML's seed 0 and mends the record's hash, as a forger would."""
    file = root / FTML_0.folder / table
    lines = change(file.read_text().splitlines())
    file.write_text("\n".join(lines) + "\n")
    held = json.loads((file.parent / "record.json").read_text())["tables"]
    held[table] = {"rows": len(lines) - 1, "sha256": hashlib.sha256(file.read_bytes()).hexdigest()}
    edit(file.parent / "record.json", tables=held)


def replaced(old, new, line):
    return lambda lines: [*lines[:line], lines[line].replace(old, new), *lines[line + 1 :]]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda lines: lines[:-1], "curve.csv: 7 evaluations, expected 8; from line 9 they"),
        (lambda lines: [*lines, lines[-1]], "curve.csv: 9 evaluations, expected 8; from line 10 they"),
        (lambda lines: [lines[0], *lines[:0:-1]], "curve.csv: 8 evaluations, expected 8; from line 2 they"),
        (lambda lines: [lines[0], lines[2], lines[1], *lines[3:]], "curve.csv: line 3: datapoints do not increase"),
        (replaced(",0.5,", ",nan,", 4), "curve.csv: line 5: a loss of nan in a run that finished to its end"),
        (replaced(",0.5,", ",inf,", 2), "curve.csv: line 3: a loss of inf"),
        (replaced(",,", ",1.01,", 1), "curve.csv: line 2: an accuracy of 1.01, expected 0 to 1"),
        (replaced(",,", ",-0.1,", 1), "curve.csv: line 2: an accuracy of -0.1"),
        (replaced(",,", ",nan,", 1), "curve.csv: line 2: an accuracy of nan"),
        (replaced(",5,50", ",-5,50", 1), "curve.csv: line 2: a negative count"),
        (replaced(",10,100", ",4,100", 2), "curve.csv: line 3: steps or gradient evaluations run backwards"),
        (replaced(",40,400", ",41,400", 8), "record.json: 40 steps, curve.csv ends with 41"),
        (replaced("0,0,10", "0,1,10", 1), "from line 2 they"),
    ],
)
def test_a_forged_curve_is_named_though_its_hash_is_right(root, change, message):
    hashed(root, change)
    assert any(fault.where == str(FTML_0) and message in fault.what for fault in files.faults(root))


@pytest.mark.parametrize(
    ("table", "change", "message"),
    [
        ("timing.csv", replaced(",0.5,", ",-0.5,", 2), "timing.csv: seconds that are negative"),
        ("timing.csv", replaced(",3.5,", ",1.5,", 8), "timing.csv: seconds that are negative, not finite or run back"),
        ("timing.csv", lambda lines: lines[:-1], "timing.csv: other evaluations than in curve.csv"),
        ("measures.csv", replaced("Regret", "Regre", 1), "measures.csv: there is no measure 'Regre'"),
        ("measures.csv", replaced("0,R", "4,R", 1), "measures.csv: Regret of a round that there is not"),
        ("measures.csv", replaced(",0.5", ",nan", 1), "measures.csv: Regret is not finite"),
    ],
)
def test_so_are_the_other_tables(root, table, change, message):
    hashed(root, change, table)
    assert any(message in fault.what for fault in files.faults(root))


def test_a_curve_with_other_numbers_makes_other_tables(root):
    hashed(root, replaced(",0.5,", ",0.3,", 8))
    found = {fault.where: fault.what for fault in faults(root)}
    assert set(found) == {"leaderboard.md", "leaderboard.csv", "seeds.csv", "report.html", "figures/waves.svg"}
    assert "is not what the curves make: line " in found["leaderboard.md"]


def test_a_table_or_figure_that_was_edited_or_is_gone_is_named(root):
    tables = ("leaderboard.md", "leaderboard.csv", "seeds.csv")
    kept = {name: (root / name).read_text() for name in tables}
    for name in tables:
        (root / name).write_text(kept[name].replace("0.5", "0.4", 1))
    assert [fault.where for fault in faults(root)] == list(tables)
    for name in tables:
        (root / name).write_text(kept[name])
    page = (root / "report.html").read_text()
    number = re.search(r'"mean":\[(\d+\.\d+)', page)
    edited = page.replace(">0.500", ">0.400", 1).replace(number[0], '"mean": [0.4321', 1)
    (root / "report.html").write_text(edited.replace("application/zip;base64,UEs", "application/zip;base64,AEs"))
    assert [tuple(fault) for fault in faults(root)] == [
        ("report.html", "its charts do not show what the curves make"),
        ("report.html", "its archive does not hold the data of the runs"),
        ("report.html", "the table 'waves: Sinusoids' is not what the curves make"),
    ]
    (root / "report.html").write_text(page)
    (root / "figures/waves.svg").write_text("<svg/>")
    overview = (root / "figures/overview.svg").read_text()
    (root / "figures/overview.svg").write_text(overview.replace("<path d=", "<path d= ", 1))
    assert [tuple(fault) for fault in faults(root)] == [
        ("report.html", f"its figure is not figures/{name}.svg") for name in ("waves", "overview")
    ]
    for name in ("leaderboard.md", "leaderboard.csv", "figures/waves.png", "figures/overview.pdf"):
        (root / name).unlink()
    assert [fault.what for fault in faults(root)] == ["is missing"] * 4


def test_what_the_runs_did_not_leave_is_named(root):
    hashless = root / "waves/FromScratch/seed-0/record.json"
    edit(hashless, tables=None)
    curve = root / "waves/FromScratch/seed-1/curve.csv"
    curve.write_text(curve.read_text().replace("0.5", "0.4", 1))
    shutil.rmtree(root / FTML_0.folder)
    write_run(root, Cell("waves", "FTML", 2), [0.9, 0.5] * 4)
    found = [tuple(fault) for fault in faults(root)]
    assert (str(FTML_0), "not run") in found
    assert ("waves/FTML/seed-2/record.json", "belongs to no cell of the definition") in found
    assert ("waves/FromScratch/seed-0", "record.json holds no hashes of the tables: they cannot be checked") in found
    assert any(where == "waves/FromScratch/seed-1" and "was changed after the run" in what for where, what in found)
    assert str(root) not in str(found)


def test_cells_that_have_not_ended_are_named(root):
    record.mark_failed(root / FTML_0.folder, DEFINITION.hash, "no data", "")
    edit(root / "waves/FTML/seed-1/record.json", status="running")
    found = [tuple(fault) for fault in faults(root)]
    assert (str(FTML_0), "failed: no data") in found
    assert ("waves/FTML/seed-1", "not finished") in found


def test_a_run_that_diverged_ends_with_its_only_infinite_loss(root):
    write_run(root, FTML_0, [0.9, 0.5, 0.9, math.inf], "diverged", diverged_round=1)
    assert files.faults(root) == []
    write_run(root, FTML_0, [0.9, math.nan, 0.9, math.inf], "diverged", diverged_round=1)
    assert [fault.what for fault in files.faults(root)] == [
        "curve.csv: line 3: a loss of nan in a run that diverged in round 2"
    ]
    write_run(root, FTML_0, [0.9, 0.5, 0.9], "diverged", diverged_round=1)
    assert [fault.what for fault in files.faults(root)] == ["curve.csv: the run diverged, but its last loss is finite"]


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("steps", 6, "'steps' is 6, the definition's 5"),
        ("strategy", "FTML", "'strategy' is FTML, the definition's FromScratch"),
        ("optimizer", {"name": "SGD"}, "'optimizer' is {'name': 'SGD'}"),
        ("benchmark_version", 2, "is of version"),
        ("version", 2, "is of version"),
        ("rounds", 10**12, "does not say which evaluations a run makes"),
        ("arrivals", "x", "does not say which evaluations a run makes"),
        ("arrivals", [0], "does not say which evaluations a run makes"),
        ("arrivals", [], "does not say which evaluations a run makes"),
        ("rounds", None, "does not say which evaluations a run makes"),
    ],
)
def test_a_record_that_says_it_ran_something_else_is_named(root, key, value, message):
    file = root / "waves/FromScratch/seed-0/record.json"
    edit(file, protocol=json.loads(file.read_text())["protocol"] | {key: value})
    assert any(message in fault.what for fault in files.faults(root))


@pytest.mark.parametrize(
    ("key", "recorded", "message"),
    [
        ("warmup", None, "'warmup' is None, the definition's {'rounds': 2, 'datapoints': 5, 'steps': None}"),
        ("warmup", WARM_UP | {"steps": 3}, "'warmup' is {'rounds': 2, 'datapoints': 5, 'steps': 3}"),
        ("settings", {}, "'inner_lr' of its protocol's 'settings' is missing, the definition's 0.5"),
        ("settings", SETTINGS | {"inner_lr": 0.1}, "'inner_lr' of its protocol's 'settings' is 0.1"),
        (
            "settings",
            SETTINGS | {"buffer": {"name": "Reservoir", "points": 9}},
            "'buffer' of its protocol's 'settings'",
        ),
        ("settings", [], "settings: expected keys with values, got []"),
        ("benchmark_settings", {"rounds": 99}, "'rounds' of its protocol's 'benchmark_settings' is 99"),
    ],
)
def test_what_the_definition_says_of_settings_and_warm_up_is_in_the_record(tmp_path, key, recorded, message):
    row = {"inner_lr": 0.5, "buffer": {"name": "Reservoir", "points": 8}}
    warmed = {"warmup_rounds": 2, "warmup_datapoints": 5}
    definition = changed(
        warmed | {"settings": {"rounds": 6}, "strategies": {"FTML": row, "FromScratch": row | {"buffer": None}}}
    )
    root = write_all(tmp_path / "small", definition=definition)
    protocol = PROTOCOL | {"warmup": WARM_UP, "settings": SETTINGS, "benchmark_settings": {"rounds": 6, "points": 3}}
    file = root / FTML_0.folder / "record.json"
    edit(file, protocol=protocol | {"strategy": "FTML"})
    whole = [fault.what for fault in files.faults(root) if fault.where == str(FTML_0)]
    assert not [what for what in whole if "definition" in what]
    edit(file, protocol=protocol | {"strategy": "FTML", "settings": {"inner_lr": 0.5}})  # as records of before
    assert [fault.what for fault in files.faults(root) if fault.where == str(FTML_0)] == whole
    edit(file, protocol=protocol | {"strategy": "FTML", key: recorded})
    assert any(message in fault.what for fault in files.faults(root) if fault.where == str(FTML_0))


def test_a_warm_up_that_no_definition_asked_for_is_named(root):
    file = root / FTML_0.folder / "record.json"
    edit(file, protocol=json.loads(file.read_text())["protocol"] | {"warmup": WARM_UP})
    assert any("the definition's None" in fault.what for fault in files.faults(root))


def test_measures_that_are_asked_for_are_there(tmp_path):
    definition = changed({"measures": ["regret", "shots", "only_class"]})
    root = write_all(tmp_path / "small", definition=definition)  # its cells have a regret, and no class
    write_run(root, FTML_0, [0.9, math.inf], "diverged", definition=definition, measures=(), diverged_round=0)
    missing = "measures.csv: there is no shots, which the definition asks for"
    assert [tuple(fault) for fault in files.faults(root)] == [
        (str(cell), missing) for cell in definition.cells() if cell != FTML_0
    ]


def test_two_seeds_with_one_curve_are_named_where_records_do_not_say_their_cell(root):
    shutil.rmtree(root / FTML_0.folder)
    shutil.copytree(root / "waves/FTML/seed-1", root / FTML_0.folder)
    for seed in (0, 1):
        edit(root / f"waves/FTML/seed-{seed}/record.json", cell=None)
    assert ("waves/FTML/seed-1", "the same curve as waves/FTML/seed-0") in [
        tuple(fault) for fault in files.faults(root)
    ]


def test_the_keys_of_a_protocol_by_hand():
    protocol = PROTOCOL | {"rounds": 2, "datapoints_per_round": 10, "arrivals": [3, 4]}
    assert expected_keys(protocol, comparator=False) == [
        (0, 0, 3),
        (0, 0, 7),
        (0, 0, 10),
        (1, 1, 3),
        (1, 1, 7),
        (1, 1, 10),
    ]
    assert expected_keys(protocol, comparator=True) == [(0, 0, 10), (1, 1, 10)]


def test_faults_are_a_table_and_exit_1_misuse_is_exit_2(root, tmp_path, capsys):
    (root / "leaderboard.csv").unlink()
    assert cli.main(["verify", str(root)]) == 1
    out = capsys.readouterr().out
    assert out.splitlines()[:2] == [f"{root}: 1 wrong", ""]
    assert out.splitlines()[3].split(maxsplit=1) == ["leaderboard.csv", "is missing"]
    for arguments in ([str(tmp_path)], [str(tmp_path / "none")], [], [str(root), "--rerun", "-1"]):
        assert cli.main(["verify", *arguments]) == 2
        assert capsys.readouterr().err.count("\n") == 1


def test_an_edited_definition_is_the_one_fault_that_is_seen(root):
    file = root / "leaderboard.yaml"
    file.write_text(file.read_text().replace("steps: 5", "steps: 6"))
    first, second = faults(root)
    assert (first.where, second.where) == ("leaderboard.yaml", "report")
    assert first.what.startswith("leaderboard.yaml was changed after the run")


def test_without_torch(root):
    code = f"import sys; from ftml_bench import cli; assert cli.main(['verify', {str(root)!r}]) == 0"
    code += "; assert not {'torch', 'avalanche'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)


RUN = {
    "name": "tiny",
    "seeds": [0, 1],
    "benchmarks": {
        "waves": {
            "benchmark": "Sinusoids",
            "settings": {"rounds": 2},
            "arrivals": 20,
            "steps": 1,
            "optimizer": {"name": "Adam"},
            "checkpoints": [20],
            "strategies": {"FromScratch": {"train_mb_size": 4}},
        }
    },
}


def test_cells_that_are_run_again_come_to_the_same_bytes_or_are_named(tmp_path):
    root = tmp_path / "tiny"
    definition = from_dict(RUN, "tiny")
    schedule.run_cells(definition, root, jobs=1, data=None, quiet=True)
    report.write(root)
    assert faults(root, rerun=5) == []
    folder = root / "waves/FromScratch/seed-1"
    lines = (folder / "curve.csv").read_text().splitlines()
    number = lines[3].split(",")[3]
    lines[3] = lines[3].replace(number, number[:-1] + ("1" if number[-1] != "1" else "2"))
    (folder / "curve.csv").write_text("\n".join(lines) + "\n")
    held = json.loads((folder / "record.json").read_text())
    held["tables"]["curve.csv"]["sha256"] = hashlib.sha256((folder / "curve.csv").read_bytes()).hexdigest()
    edit(folder / "record.json", tables=held["tables"], versions=held["versions"] | {"torch": "1.0"})
    report.write(root)
    assert faults(root) == []  # nothing shows it but to run it
    assert faults(root, rerun=1) == []  # of the first cell
    ((where, what),) = faults(root, rerun=2)
    assert where == "waves/FromScratch/seed-1"
    assert what.startswith("run again, curve.csv is another from line 4 of 5; other versions: torch 1.0, here ")


def test_what_cannot_be_run_again_is_named(root):
    edit(root / FTML_0.folder / "record.json", device="nowhere")
    found = [fault for fault in faults(root, rerun=1) if "cannot be run again" in fault.what]
    assert [fault.where for fault in found] == [str(FTML_0)]


def test_a_folder_without_a_leaderboard_raises(tmp_path):
    with pytest.raises(UsageError, match="is no leaderboard's folder"):
        faults(tmp_path)
