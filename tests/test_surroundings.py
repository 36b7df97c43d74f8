"""What a command is started in: where it prints to, the folder that it is in, and texts that a terminal would obey."""

import json
import os
import subprocess
import sys

import pytest

from ftml_bench import report
from ftml_bench.errors import printable
from ftml_bench.report.tables import markdown
from ftml_bench.runs import definition as definitions
from ftml_bench.runs import record, schedule

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
    assert markdown("# <b>[x](y)*_a_ |`") == "\\# &lt;b&gt;\\[x\\](y)\\*\\_a\\_ \\|\\`"
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
    assert written.count("&lt;script&gt;x&lt;/script&gt;\\\\x1b\\[31m!\\[a\\](http://b)") == 2
    assert "<script>" not in written
    assert json.loads((tmp_path / cell.folder / "record.json").read_text())["reason"] == evil
