"""Versions of streams and of the protocol: in every record, and never mixed in a report."""

import json
from pathlib import Path

import pytest
import yaml

from ftml_bench import cli, protocol, registry, report
from ftml_bench.benchmarks import Sinusoids
from ftml_bench.benchmarks.stream import TaskStream
from ftml_bench.errors import UsageError
from ftml_bench.runs import building, record
from ftml_bench.runs import cell as cells
from ftml_bench.runs.definition import Cell, from_dict

pytestmark = pytest.mark.usefixtures("undrawn")

ENTRY = {
    "settings": {"rounds": 2, "images_per_round": 4, "held_out_per_round": 4},
    "steps": 1,
    "optimizer": {"name": "Adam"},
    "strategies": {"FromScratch": {"train_mb_size": 4}},
}


class Unversioned(Sinusoids):
    """Somebody else's stream, which says nothing of versions."""

    version = None


class Second(Sinusoids):
    version = 2


def content(*benchmarks, seeds=(0, 1)):
    entries = {f"waves {i}": {"benchmark": name, **ENTRY} for i, name in enumerate(benchmarks or ["Sinusoids"])}
    return {"name": "tiny", "seeds": list(seeds), "benchmarks": entries}


def run(root, *benchmarks):
    """A leaderboard of two seeds in `root`; gives the files of the records in order."""
    definition = from_dict(content(*benchmarks), "tiny")
    root.mkdir()
    (root / "leaderboard.yaml").write_text(yaml.safe_dump(definition.to_dict(), sort_keys=False))
    for cell in definition.cells():
        cells.run_cell(definition, cell, root / cell.folder, None, lambda done, total: None)
    return [root / cell.folder / "record.json" for cell in definition.cells()]


def rewrite(file, **versions):
    """Makes it the record of other versions; None takes the line out, as records of before have none."""
    content = json.loads(file.read_text())
    for key, value in versions.items():
        if value is None:
            del content["protocol"][key]
        else:
            content["protocol"][key] = value
    file.write_text(json.dumps(content))


@pytest.mark.parametrize("name", registry.BENCHMARKS)
def test_every_registered_benchmark_says_its_own_version(name):
    assert vars(registry.load("benchmark", name))["version"] >= 1


def test_a_stream_that_says_none_has_none():
    assert TaskStream.version is None
    assert building.version_of(lambda: None, "made by a function") is None


@pytest.mark.parametrize("version", ["1.2", 1.0, 0, True, property(lambda self: 1)])
def test_a_version_that_is_no_whole_number_is_refused(version):
    cls = type("Odd", (Sinusoids,), {"version": version})
    with pytest.raises(UsageError, match=r"^waves: Odd: version .*: expected "):
        building.version_of(cls, "waves: Odd")


def test_both_stand_in_a_record(tmp_path):
    for file in run(tmp_path / "a", f"{__name__}:Second", f"{__name__}:Unversioned"):
        found = record.read(file.parent).record["protocol"]
        assert found["version"] == protocol.VERSION
        assert found["benchmark_version"] == {"Second": 2, "Unversioned": None}[found["benchmark"].split(":")[1]]


@pytest.mark.parametrize(
    ("key", "what"), [("version", "the protocol"), ("benchmark_version", "Sinusoids")], ids=["protocol", "stream"]
)
def test_a_report_of_two_versions_is_refused_in_one_line(tmp_path, capsys, key, what):
    root = tmp_path / "a"
    first, second = run(root)
    report.write(root)
    (root / "leaderboard.md").unlink()
    rewrite(second, **{key: 2})
    assert cli.main(["report", str(root)]) == 2
    out, err = capsys.readouterr()
    assert err == (
        f"ftml-bench: error: {second} is of version 2 of {what}, {first} of version 1: a report does not mix them\n"
    )
    assert not out
    assert not (root / "leaderboard.md").exists()
    rewrite(first, **{key: 2})  # all of version 2
    report.write(root)


def test_two_entries_of_one_benchmark_are_not_mixed_either(tmp_path):
    files = run(tmp_path / "a", "Sinusoids", "Sinusoids")
    for file in files[2:]:
        rewrite(file, benchmark_version=2)
    with pytest.raises(UsageError, match=r"waves 1.* is of version 2 of Sinusoids, .*waves 0.* of version 1"):
        report.write(tmp_path / "a")


def test_two_benchmarks_may_have_different_versions(tmp_path):
    run(tmp_path / "a", "Sinusoids", f"{__name__}:Second")
    assert "waves 1" in report.write(tmp_path / "a")


def test_one_that_diverged_is_compared_too_and_one_that_failed_is_not(tmp_path):
    root = tmp_path / "a"
    _, second = run(root)
    rewrite(second, benchmark_version=2)
    ended = second.read_text()
    second.write_text(ended.replace('"status": "finished"', '"status": "failed", "reason": "no"'))
    assert "no" in report.write(root)
    second.write_text(ended.replace('"status": "finished"', '"status": "diverged", "diverged_round": 0'))
    with pytest.raises(UsageError, match="version 2 of Sinusoids"):
        report.write(root)


def test_records_of_before_count_as_version_1(tmp_path):
    root = tmp_path / "a"
    first, second = run(root)
    rewrite(first, version=None, benchmark_version=None)
    report.write(root)
    rewrite(second, benchmark_version=2)
    with pytest.raises(UsageError, match=r"is of version 2 of Sinusoids, .* of version 1"):
        report.write(root)


def test_streams_that_say_nothing_are_not_kept_from_records_of_before(tmp_path):
    root = tmp_path / "a"
    first, second = run(root, f"{__name__}:Unversioned")
    assert '"benchmark_version": null' in second.read_text()
    rewrite(first, version=None, benchmark_version=None)
    report.write(root)


def test_a_leaderboard_does_not_go_on_with_cells_of_another_version(tmp_path, monkeypatch, capsys):
    """It would train, and then its report would be refused."""
    monkeypatch.chdir(tmp_path)
    Path("tiny.yaml").write_text(yaml.safe_dump(content(), sort_keys=False))
    command = ["leaderboard", "tiny.yaml", "--quiet", "--jobs", "1"]
    assert cli.main(command) == 0
    capsys.readouterr()
    root = Path("runs/tiny")
    monkeypatch.setattr(Sinusoids, "version", 2)
    assert cli.main(command) == 0  # nothing is left to be run: the report, as it was
    capsys.readouterr()
    last = root / Cell("waves 0", "FromScratch", 1).folder
    (last / "record.json").unlink()
    files = sorted(root.rglob("*"))
    assert cli.main(command) == 2
    kept = root / Cell("waves 0", "FromScratch", 0).folder
    assert capsys.readouterr().err == (
        f"ftml-bench: error: a new cell is of version 2 of Sinusoids, {kept} of version 1: a report does not mix them: "
        "choose another --out or move it away\n"
    )
    assert sorted(root.rglob("*")) == files


def test_a_stream_of_which_nothing_is_left_to_run_keeps_no_other_from_going_on(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    definition = content("Sinusoids", f"{__name__}:Second", seeds=[0])
    Path("tiny.yaml").write_text(yaml.safe_dump(definition, sort_keys=False))
    command = ["leaderboard", "tiny.yaml", "--quiet", "--jobs", "1"]
    assert cli.main(command) == 0
    (Path("runs/tiny") / Cell("waves 1", "FromScratch", 0).folder / "record.json").unlink()
    monkeypatch.setattr(Sinusoids, "version", 5)
    assert cli.main(command) == 0
