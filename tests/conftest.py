"""What all tests share: one thread (cores are shared with others), and quiet imports of Avalanche."""

from __future__ import annotations

import pytest
import torch
from avalanche.logging import BaseLogger

from ftml_bench import cli
from ftml_bench.benchmarks import RainbowDigits, Sinusoids
from ftml_bench.report import figures, overview

torch.set_num_threads(1)


# Files of few tests that take long: begun last, one of them would keep a process busy when the other has done all.
FIRST = ("tests/test_tutorial.py", "tests/runs/test_kills.py", "tests/runs/test_on_ray.py")


def pytest_collection_modifyitems(items):
    """Longest first, as far as it is known."""
    items.sort(key=lambda item: not item.nodeid.startswith(FIRST))


def pytest_configure(config):
    # Said by Avalanche and by what it imports; nothing that a user of ours can mend.
    for noise in (
        "ignore::SyntaxWarning",
        "ignore::DeprecationWarning:avalanche",
        "ignore:No loggers specified:UserWarning:avalanche",
    ):
        config.addinivalue_line("filterwarnings", noise)


class Recorder(BaseLogger):
    """A logger that remembers: (name, value, x) of everything that was emitted, in order."""

    def __init__(self):
        super().__init__()
        self.emitted = []

    def log_single_metric(self, name, value, x_plot):
        self.emitted.append((name, value, x_plot))

    def curves(self):
        """{name: [(x, value), ...]}."""
        curves = {}
        for name, value, x in self.emitted:
            curves.setdefault(name, []).append((x, value))
        return curves


@pytest.fixture
def recorder():
    return Recorder()


@pytest.fixture(scope="session")
def tiny_sinusoids():
    """Three rounds of ten points."""
    return Sinusoids(rounds=3, images_per_round=10, held_out_per_round=25)


@pytest.fixture(scope="session")
def tiny_digits():
    """Two rounds of thirty digits."""
    return RainbowDigits(rounds=2, images_per_round=30, held_out_per_round=50)


@pytest.fixture
def double_precision():
    """Double precision everywhere: in single precision two right ways differ by what training makes of rounding."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture
def undrawn(monkeypatch):
    """Reports with empty figures, for tests that look at tables: drawing is what takes long."""

    def save(figure, path, kinds=figures.KINDS):
        path.parent.mkdir(parents=True, exist_ok=True)
        for kind in kinds:
            path.with_name(f"{path.name}.{kind}").write_text('<svg xmlns="http://www.w3.org/2000/svg"/>')

    for module in (figures, overview):
        monkeypatch.setattr(module, "save", save)


@pytest.fixture
def refused(capsys, tmp_path):
    """A command that must be refused: exit code 2, one line, nothing changed in `tmp_path`. Gives the line."""

    def files():
        found = (path for path in tmp_path.rglob("*") if "__pycache__" not in path.parts)
        return {path: path.read_bytes() if path.is_file() else None for path in found}

    def run(*arguments):
        before = files()
        assert cli.main(arguments) == 2
        out, err = capsys.readouterr()
        assert files() == before
        assert not out
        assert err.startswith("ftml-bench: error: ")
        assert err.count("\n") == 1
        assert err[:-1].isprintable()
        return err

    return run
