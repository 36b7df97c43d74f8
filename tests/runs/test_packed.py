"""A result as one archive: packed only if verified, read wherever a folder is, refused if it could do harm."""

import json
import shutil
import zipfile

import pytest

from ftml_bench import cli, report
from ftml_bench.errors import UsageError
from ftml_bench.runs import locking, packed
from ftml_bench.runs.packed import pack, unpacked
from tests.runs.made import DEFINITION, write_all

pytestmark = pytest.mark.usefixtures("undrawn")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = write_all(tmp_path_factory.mktemp("made") / "board")
    report.write(folder)
    (folder / "waves/FTML/seed-0/events.out.tfevents.1").write_text("large")
    return folder


@pytest.fixture
def root(made, tmp_path):
    return shutil.copytree(made, tmp_path / "board")


def files(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_what_is_packed_is_unpacked_byte_for_byte(root, tmp_path):
    (root / "figures/.waves.svg.77.tmp").write_text("of a report that was killed")
    pack(root, tmp_path / "a.zip")
    (root / "figures/.waves.svg.77.tmp").unlink()
    with unpacked(tmp_path / "a.zip") as folder:
        found = files(folder)
        environment = json.loads(found.pop("environment.json"))
    expected = files(root)
    del expected["waves/FTML/seed-0/events.out.tfevents.1"]
    assert found == expected
    assert any(line.startswith("torch ") for line in environment["packages"])
    assert not folder.exists()
    pack(root, tmp_path / "b.zip")
    assert (tmp_path / "a.zip").read_bytes() == (tmp_path / "b.zip").read_bytes()


def test_the_commands_read_an_archive_as_its_folder(root, tmp_path, capsys):
    archive = tmp_path / "small.zip"
    assert cli.main(["submit", str(root), "--out", str(archive)]) == 0
    before = archive.read_bytes()
    capsys.readouterr()
    assert cli.main(["verify", str(archive)]) == 0
    assert capsys.readouterr().out == f"{archive}: verified\n"
    assert cli.main(["compare", str(archive), str(root)]) == 0
    assert "4 of 4 cells of NEW have the curve of OLD" in capsys.readouterr().out
    assert cli.main(["report", str(archive)]) == 0
    of_archive = capsys.readouterr().out
    assert cli.main(["report", str(root)]) == 0
    assert capsys.readouterr().out.startswith(of_archive)
    assert archive.read_bytes() == before


def test_the_name_of_the_archive(root, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["submit", str(root)]) == 0
    assert (tmp_path / "small.zip").is_file()  # the leaderboard's, wherever its folder is
    assert cli.main(["submit", str(root)]) == 2
    assert "small.zip exists" in capsys.readouterr().err
    assert cli.main(["submit", str(root), "--out", "a.tar"]) == 2
    assert "expected a name that ends in .zip" in capsys.readouterr().err


def test_what_is_wrong_is_not_packed(root, tmp_path, capsys):
    curve = root / "waves/FTML/seed-0/curve.csv"
    curve.write_text(curve.read_text().replace("0.5", "0.4"))
    assert cli.main(["submit", str(root), "--out", str(tmp_path / "a.zip")]) == 1
    assert "was changed after the run" in capsys.readouterr().out
    assert not (tmp_path / "a.zip").exists()


def test_nor_is_what_runs_or_is_no_leaderboard(root, tmp_path, capsys):
    with locking.alone(root):
        assert cli.main(["submit", str(root), "--out", str(tmp_path / "a.zip")]) == 2
    for folder in (tmp_path, tmp_path / "none"):
        assert cli.main(["submit", str(folder), "--out", str(tmp_path / "a.zip")]) == 2
    assert capsys.readouterr().err.count("\n") == 3
    assert not list(tmp_path.glob("*.zip*"))


YAML = ("small/leaderboard.yaml", "name: small")


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ([YAML, ("small/../../out", "x")], "a file outside of its folder"),
        ([YAML, ("/out", "x")], "a file outside of its folder"),
        ([YAML, ("C:/out", "x")], "a file outside of its folder"),
        ([YAML, ("small/..\\out", "x")], "a file outside of its folder"),
        ([YAML, (".", "x")], "a file outside of its folder"),
        ([YAML, ("other/file", "x")], "expected one folder with leaderboard.yaml in it"),
        ([("leaderboard.yaml", "name: small")], "expected one folder with leaderboard.yaml in it"),
        ([("small/record.json", "{}")], "expected one folder with leaderboard.yaml in it"),
        ([], "expected one folder with leaderboard.yaml in it"),
        ([YAML, (f"small/{'x' * 300}", "x")], "is no archive of a leaderboard"),
        ([YAML, ("small/a", "x"), ("small/a/b", "x")], "is no archive of a leaderboard"),
    ],
)
def test_archives_of_something_else_are_refused(members, message, tmp_path, capsys):
    archive = tmp_path / "a.zip"
    with zipfile.ZipFile(archive, "w") as zipped:
        for name, content in members:
            zipped.writestr(name, content)
    assert cli.main(["verify", str(archive)]) == 2
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1
    assert not (tmp_path.parent / "out").exists()


@pytest.mark.parametrize("damage", [lambda b: b[:100], lambda b: b"", lambda b: b[:200] + b"\1" * 50 + b[250:]])
def test_damaged_archives_are_refused(root, tmp_path, damage, capsys):
    archive = tmp_path / "a.zip"
    pack(root, archive)
    archive.write_bytes(damage(archive.read_bytes()))
    assert cli.main(["report", str(archive)]) == 2
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize("limit", ["MOST_BYTES", "MOST_FILES"])
def test_archives_that_would_fill_the_disk_are_refused(root, tmp_path, limit, monkeypatch):
    pack(root, tmp_path / "a.zip")
    monkeypatch.setattr(packed, limit, 3)
    with pytest.raises(UsageError, match="no leaderboard's"), unpacked(tmp_path / "a.zip"):
        pass


def test_an_archive_that_is_not_there_is_said(tmp_path, capsys):
    assert cli.main(["verify", str(tmp_path / "a.zip")]) == 2
    assert "a.zip cannot be read: No such file" in capsys.readouterr().err


def test_a_folder_that_is_called_so_is_a_folder(root, tmp_path):
    folder = root.rename(tmp_path / "board.zip")
    with unpacked(folder) as found:
        assert found == folder
    assert DEFINITION.name == "small"


@pytest.mark.parametrize("command", ["report", "verify", "compare"])
def test_what_is_wrong_in_an_archive_is_said_of_it(command, root, tmp_path, capsys):
    """Not of the folder that it lies in for a moment."""
    archive = tmp_path / "a.zip"
    (root / "waves/FTML/seed-0/record.json").write_text("{")
    pack(root, archive)
    assert cli.main([command, str(archive), *([str(root)] if command == "compare" else [])]) in (1, 2)
    said = "".join(capsys.readouterr())
    assert "waves/FTML/seed-0" in said
    assert "/tmp" not in said.replace(str(tmp_path), "")
    if command != "verify":  # which has a table
        assert said.startswith(f"ftml-bench: error: {archive}/waves/FTML/seed-0/record.json: damaged: ")
