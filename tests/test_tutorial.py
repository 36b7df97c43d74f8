"""The tutorial runs as it stands, and comes to what it shows."""

import os
import re
import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).parent.parent / "examples/tutorial.ipynb"


def shape(cell):
    """What a cell puts out, without numbers, which depend on the machine: kinds, and the names in frames."""
    found = []
    for output in cell.get("outputs", []):
        if "application/vnd.jupyter.widget-view+json" in output.get("data", {}):
            continue  # the bar, which is not kept
        names = re.findall(r"[A-Za-z_]{3,}", output.data["text/plain"])[:12] if "data" in output else []
        one = (output.output_type, sorted(output.get("data", {})), names)
        if one != (found[-1] if found else None) or "data" in output:  # a stream comes in pieces
            found.append(one)
    return found


def test_the_tutorial_runs_and_shows_what_it_comes_to(tmp_path, monkeypatch):
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    shown = [shape(cell) for cell in notebook.cells]
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")  # of ftml-bench
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    errors = [out.text for cell in notebook.cells for out in cell.get("outputs", []) if out.get("name") == "stderr"]
    assert errors == []
    assert [shape(cell) for cell in notebook.cells] == shown
    assert (tmp_path / "tutorial/runs/tutorial/report.html").is_file()
