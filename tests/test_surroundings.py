"""What a command is started in: where it prints to, the folder that it is in, and texts that a terminal would obey."""

import errno
import json
import os
import subprocess
import sys

import pytest
from matplotlib.figure import Figure

from ftml_bench import cli, report
from ftml_bench.check.contract import Outcome
from ftml_bench.errors import printable
from ftml_bench.files import replacing
from ftml_bench.report.tables import Table, markdown
from ftml_bench.runs import definition as definitions
from ftml_bench.runs import progress, record, schedule
from ftml_bench.speed import engines
from tests.runs.made import edit, write_all

LIST = [sys.executable, "-m", "ftml_bench.cli", "list"]


def said_once(done, text):
    assert done.returncode == 2
    assert done.stderr.startswith("ftml-bench: error: ")
    assert done.stderr.count("\n") == 1
    assert text in done.stderr


def shell(command, cwd):
    here = os.path.dirname(os.path.dirname(os.path.abspath(report.__path__[0])))
    environment = {**os.environ, "PYTHONPATH": here}
    return subprocess.run(command, shell=True, cwd=cwd, capture_output=True, text=True, env=environment)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full on this system")
def test_a_full_output(tmp_path):
    said_once(shell(f"{' '.join(LIST)} > /dev/full", tmp_path), "the standard output cannot be used: No space left")


def test_a_full_disk_is_named_by_the_file_that_does_not_fit(tmp_path, monkeypatch, capsys):
    """The system says which file only of opening one; the output, which has room, is not blamed. The old one stays."""

    def savefig(self, file, **settings):
        file.write(b"<svg")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    write_all(tmp_path / "board")
    figure = tmp_path / "board/figures/waves.svg"
    figure.parent.mkdir()
    figure.write_text("old")
    monkeypatch.setattr(Figure, "savefig", savefig)
    assert cli.main(["report", str(tmp_path / "board")]) == 2
    error = capsys.readouterr().err
    assert error == f"ftml-bench: error: {figure} cannot be used: No space left on device\n"
    assert [(path.name, path.read_text()) for path in figure.parent.iterdir()] == [("waves.svg", "old")]
    with pytest.raises(OSError, match="No space left") as caught, replacing(tmp_path / "file") as file:
        savefig(None, file)
    assert caught.value.filename == str(tmp_path / "file")
    with pytest.raises(OSError, match="No such file") as caught, replacing(tmp_path / "nowhere/file"):
        pass
    assert caught.value.filename == str(tmp_path / "nowhere/file")


@pytest.mark.skipif(os.name != "posix", reason="a shell of POSIX")
def test_a_closed_output(tmp_path):
    said_once(shell(f"{' '.join(LIST)} >&-", tmp_path), "the standard output is closed")
    assert shell(f"{' '.join(LIST)} 2>&-", tmp_path).returncode == 0


@pytest.mark.skipif(os.name != "posix", reason="elsewhere a folder in use cannot be removed")
def test_a_working_folder_that_is_gone(tmp_path):
    command = f"mkdir gone && cd gone && rmdir ../gone && {' '.join(LIST)}"
    said_once(shell(command, tmp_path), "the working folder is gone")


def test_an_output_that_knows_ascii_alone(tmp_path):
    done = shell(f"PYTHONIOENCODING=ascii {' '.join(LIST)}", tmp_path)
    assert (done.returncode, done.stderr) == (0, "")


def test_texts_are_shown_and_do_nothing_else():
    assert printable("a\x1b[31m\nb\u202e\x00") == "a\\x1b[31m b\\u202e\\x00"
    assert printable("γ ± ü") == "γ ± ü"
    assert markdown("# <b>[x](y)*_a_ |`") == "\\# &lt;b>\\[x\\](y)\\*\\_a\\_ \\|\\`"
    assert markdown("two_words, 1.5 (a-b)") == "two_words, 1.5 (a-b)"


def test_descriptions_and_reasons_are_escaped_in_reports(tmp_path):
    evil = "<script>x</script>\x1b[31m![a](http://b)"
    content = {
        "name": "mine",
        "description": evil,
        "seeds": [0],
        "benchmarks": {
            "sines": {"benchmark": "Sinusoids", "steps": 1, "optimizer": {"name": "Adam"}, "strategies": {"FTML": {}}}
        },
    }
    small = definitions.from_dict(content, "test")
    schedule._claim(small, tmp_path)
    cell = small.cells()[0]
    record.mark_failed(tmp_path / cell.folder, small.hash, evil, "")
    text = report.write(tmp_path)
    assert "\x1b" not in text
    written = (tmp_path / "leaderboard.md").read_text(encoding="utf-8")
    assert written.count("&lt;script>x&lt;/script>\\\\x1b\\[31m!\\[a\\](http://b)") == 2
    assert "<script>" not in written
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "\x1b" not in page
    assert page.count("&lt;script&gt;x&lt;/script&gt;\\x1b[31m![a](http://b)") == 2
    assert json.loads((tmp_path / cell.folder / "record.json").read_text())["reason"] == evil


def test_the_remarks_below_a_table_are_escaped():
    """A row's say why a seed failed, in the words of foreign code."""
    table = Table("t", ["strategy"], [["FTML"]], ["FTML: 1 of 2 seeds failed (seed 0, <b>\x1b[31m![a](http://b)\n|x)"])
    shown = "FTML: 1 of 2 seeds failed (seed 0, {}\\x1b{}31m!{}a{}(http://b) {}x)\n"
    assert table.markdown().endswith("- " + shown.format("&lt;b>\\", "\\[", "\\[", "\\]", "\\|"))
    assert table.text().endswith("* " + shown.format("<b>", "[", "[", "]", "|"))


EVIL = "<b>\x1b[31m![a](http://b)\n|_x_"
AS_MARKDOWN = "&lt;b>\\\\x1b\\[31m!\\[a\\](http://b) \\|\\_x\\_"
ON_A_TERMINAL = "<b>\\x1b[31m![a](http://b) |_x_"


def test_whatever_stands_in_a_table_is_escaped():
    """Records, which may be a stranger's, say what stands in its cells."""
    table = Table(EVIL, ["strategy", EVIL], [[EVIL, "-1.5"]], [], bold=frozenset({(0, 0)}))
    assert table.markdown().splitlines() == [
        f"### {AS_MARKDOWN}",
        "",
        f"| strategy | {AS_MARKDOWN} |",
        "| --- | --: |",
        f"| **{AS_MARKDOWN}** | -1.5 |",
    ]
    title, _, columns, row = table.text().splitlines()
    assert title == ON_A_TERMINAL
    assert columns.split("  ")[-1] == row.split("  ")[0] == ON_A_TERMINAL


def test_what_cells_were_run_with_is_escaped(tmp_path):
    root = write_all(tmp_path / "small")
    edit(next(root.rglob("record.json")), device=EVIL)
    assert f"device: cpu in 3; {ON_A_TERMINAL.partition(':')[0]} in 1 " in report.write(root)
    written = (root / "leaderboard.md").read_text(encoding="utf-8")
    assert f"device: cpu in 3; {AS_MARKDOWN.partition(':')[0]} in 1 " in written


def test_what_is_said_of_a_cell_and_of_a_contract_is_escaped(capsys):
    progress.say(EVIL)
    assert capsys.readouterr().err == f"ftml-bench: {ON_A_TERMINAL}\n"
    assert str(Outcome("it holds", "broken", EVIL)).endswith(f"it holds: {ON_A_TERMINAL}")


@pytest.mark.parametrize("command", [["data"], ["data", "mnist"], ["data", "pose"]])
def test_a_system_that_does_not_know_the_user(command, tmp_path, monkeypatch, capsys):
    """As in a container: no HOME, and nothing in the list of users."""
    for name in ("HOME", "XDG_CACHE_HOME", "FTML_BENCH_DATA", "FTML_BENCH_CACHE"):
        monkeypatch.delenv(name, raising=False)

    def nobody(number):
        raise KeyError(number)

    monkeypatch.setattr("pwd.getpwuid", nobody)
    assert cli.main(command) == 2
    said = capsys.readouterr().err
    assert said == "ftml-bench: error: ~/.cache: there is no home folder: set HOME, XDG_CACHE_HOME or FTML_BENCH_DATA\n"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cli.main(command) in (0, 2)
    assert "no home folder" not in capsys.readouterr().err


@pytest.mark.parametrize("options", [[], ["--dry-run"], ["--status"]])
@pytest.mark.parametrize("out", ["loop", "loop/inside", "nowhere"])
def test_a_link_that_leads_nowhere_is_no_folder(out, options, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    os.symlink("loop", "loop")
    os.symlink("gone", "nowhere")
    assert cli.main(["leaderboard", "quick", "--out", out, *options]) == 2
    said = "exists and is no leaderboard's folder: choose another --out or move it away"
    assert capsys.readouterr().err == f"ftml-bench: error: {out} {said}\n"
    assert sorted(os.listdir()) == ["loop", "nowhere"]


@pytest.mark.parametrize("out", ["loop", "file", "/proc/none", "taken"])
def test_what_is_timed_has_a_file_to_go_to_before_it_takes_minutes(out, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    os.symlink("loop", "loop")
    (tmp_path / "file").touch()
    (tmp_path / "taken/engines.md").mkdir(parents=True)
    monkeypatch.setattr(engines, "report", lambda **_: pytest.fail("it was begun"))
    assert cli.main(["speed", "--out", out]) == 2
    assert capsys.readouterr().err.startswith(f"ftml-bench: error: {out}/engines.md cannot be written: ")
    monkeypatch.setattr(engines, "report", lambda **_: iter(["one", "two"]))
    assert cli.main(["speed", "--out", "good/inner"]) == 0
    assert (tmp_path / "good/inner/engines.md").read_text() == "one\ntwo\n"
    assert len(os.listdir("good/inner")) == 1
