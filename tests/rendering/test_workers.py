"""The processes that render, and MuJoCo where it is not."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import pytest

from ftml_bench import bars
from ftml_bench.errors import UsageError
from ftml_bench.rendering import workers


def test_a_process_that_dies_is_one_line(task):
    broken = replace(task, mesh=None)
    with pytest.raises(UsageError, match="AttributeError") as error:
        workers.render_tasks([broken, task])
    assert "\n" not in str(error.value)
    process = workers._Process(task.file.parents[1], "zbuffer")
    process.kill()
    with pytest.raises(UsageError, match=r"a process that renders with 'zbuffer' has ended \(signal 9\)"), process:
        process.ask("zbuffer")


def test_in_a_log_what_takes_long_says_how_far_it_is(task, monkeypatch, capsys):
    workers.render_tasks([task])
    assert capsys.readouterr().err == ""  # it took less than the time between two lines
    monkeypatch.setattr(bars, "SECONDS_IN_A_LOG", 0)
    workers.render_tasks([task])
    lines = capsys.readouterr().err.split("\n")
    n = len(task.poses)
    assert lines[-3].startswith("rendering: 100%|")
    assert f"| {n}/{n} [" in lines[-3]
    assert not any("\r" in line or len(line) > bars.COLUMNS_IN_A_LOG for line in lines)


def test_the_processes_import_neither_torch_nor_avalanche():
    code = (
        "import sys; import ftml_bench.rendering.worker, ftml_bench.rendering.zbuffer;"
        "print([m for m in ('torch', 'avalanche', 'mujoco') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_mujoco_that_is_not_installed_is_one_line(tmp_path, monkeypatch):
    code = (
        "import sys; sys.modules['mujoco'] = None; from ftml_bench.rendering import mujoco_renderer as m\n"
        "try: m.version()\nexcept Exception as e: print(type(e).__name__, e)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "UsageError renderer 'mujoco' is not installed: pip install 'ftml-bench[mujoco]'\n"


def test_mujoco_that_cannot_draw_is_one_line(monkeypatch):
    pytest.importorskip("mujoco", reason="the extra 'mujoco' is not installed")
    monkeypatch.setenv("MUJOCO_GL", "osmesa")
    monkeypatch.setenv("PYOPENGL_PLATFORM", "osmesa")
    monkeypatch.setenv("LD_LIBRARY_PATH", "")
    # As if there were no OSMesa: the name under which PyOpenGL looks for it leads nowhere.
    code = (
        "import ctypes.util\n"
        "find = ctypes.util.find_library\n"
        "ctypes.util.find_library = lambda name: None if 'OSMesa' in name else find(name)\n"
        "load = ctypes.CDLL.__init__\n"
        "def refuse(self, name, *a, **k):\n"
        "    if name and 'OSMesa' in str(name): raise OSError(f'{name}: cannot open shared object file')\n"
        "    load(self, name, *a, **k)\n"
        "ctypes.CDLL.__init__ = refuse\n"
        "from ftml_bench.errors import UsageError\n"
        "from ftml_bench.rendering import mujoco_renderer as m\n"
        "try: m.version()\n"
        "except UsageError as e: print(e)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("MuJoCo cannot open a context to draw in (MUJOCO_GL=osmesa; ")
    assert "apt-get install libosmesa6" in done.stdout
    assert done.stdout.count("\n") == 1
