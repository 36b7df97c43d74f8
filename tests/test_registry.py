"""Names -> classes, without importing them."""

import importlib.metadata
import inspect
import subprocess
import sys

import pytest

from ftml_bench import registry
from ftml_bench.errors import UsageError


@pytest.fixture
def third_party(monkeypatch):
    """An installed package that declares a strategy of its own, and one that takes a name of ours."""
    points = [
        importlib.metadata.EntryPoint("Mine", "colorsys:rgb_to_hsv", "ftml_bench.strategies"),
        importlib.metadata.EntryPoint("FTML", "other:FTML", "ftml_bench.strategies"),
    ]
    monkeypatch.setattr(registry, "_added", lambda group, path: [point for point in points if point.group == group])


def test_resolve_names_the_target_without_importing_it():
    code = (
        "import sys; from ftml_bench import registry; print(registry.resolve('strategy', 'FTML'));"
        "print(registry.resolve('model', 'no.such:Thing')); print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["ftml_bench.strategies:FTML", "no.such:Thing", "False"]


@pytest.mark.parametrize(
    ("kind", "name", "nearest"),
    [("strategy", "ftml", "FTML"), ("benchmark", "Sinusoid", "Sinusoids"), ("model", "RainbowNett", "RainbowNet")],
)
def test_an_unknown_name_is_answered_with_the_nearest(kind, name, nearest):
    with pytest.raises(UsageError, match=f"unknown {kind} '{name}': did you mean '{nearest}'"):
        registry.resolve(kind, name)


def test_entry_points_add_names_and_cannot_take_ours(third_party):
    assert registry.resolve("strategy", "Mine") == "colorsys:rgb_to_hsv"
    assert registry.resolve("strategy", "FTML") == "ftml_bench.strategies:FTML"
    assert "Mine" not in registry.entries("benchmark")


def test_load_gives_the_class():
    assert registry.load("strategy", "fractions:Fraction").__name__ == "Fraction"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "no_such_module:Thing",
            r"strategy 'no_such_module:Thing': cannot import no_such_module \(ModuleNotFoundError",
        ),
        ("fractions:Fractoin", r"unknown class of fractions for strategy 'Fractoin': did you mean 'Fraction'"),
    ],
)
def test_load_says_in_one_line_what_is_wrong(name, message):
    with pytest.raises(UsageError, match=message) as caught:
        registry.load("strategy", name)
    assert "\n" not in str(caught.value)


def test_a_module_that_fails_on_import_is_one_line(tmp_path, monkeypatch):
    (tmp_path / "broken_contribution.py").write_text("raise RuntimeError('two\\nlines')")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UsageError, match=r"cannot import broken_contribution \(RuntimeError: two lines\)"):
        registry.load("model", "broken_contribution:Net")


@pytest.mark.parametrize(
    ("kind", "name", "written"),
    [
        ("strategy", "Replay", "avalanche.training:Replay"),
        ("strategy", "ewc", "avalanche.training:EWC"),
        ("strategy", "Synaptic", "avalanche.training:SynapticIntelligence"),
        ("model", "SimpleMLP", "avalanche.models:SimpleMLP"),
    ],
)
def test_avalanches_own_are_suggested_as_they_are_written_here(kind, name, written):
    with pytest.raises(UsageError, match=f"unknown {kind} '{name}': did you mean '{written}'. .expected one of: "):
        registry.resolve(kind, name)


def test_what_is_suggested_of_avalanches_own_is_what_it_has_and_can_be_run():
    import avalanche.models
    import avalanche.training
    from avalanche.training.templates.base_sgd import BaseSGDTemplate
    from torch import nn

    from ftml_bench.strategies.avalanche.stock_repairs import REFUSED

    named = {kind: set(names.split()) for kind, (_, names) in registry.AVALANCHE.items()}
    strategies = {
        name
        for name, cls in vars(avalanche.training).items()
        if inspect.isclass(cls) and issubclass(cls, BaseSGDTemplate)
    }
    assert named["strategy"] == strategies - set(REFUSED)
    assert all(issubclass(getattr(avalanche.models, name), nn.Module) for name in named["model"])
