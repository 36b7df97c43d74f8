"""What was imported from an old place is the very module at the new one."""

import importlib
import subprocess
import sys

import pytest

from ftml_bench.moved import MOVED


@pytest.mark.parametrize(("old", "new"), MOVED.items())
def test_an_old_place_leads_to_the_new_one(old, new):
    module = importlib.import_module(old)
    assert module is importlib.import_module(new)
    assert module.__name__ == module.__spec__.name == new
    parent, name = old.rsplit(".", 1)
    assert getattr(importlib.import_module(parent), name) is module


def test_the_table_costs_no_import():
    code = "import sys, ftml_bench.metrics.curves, ftml_bench.measures; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "False"
