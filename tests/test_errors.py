"""The nearest valid name, and what is said where none is near."""

import pytest

from ftml_bench.errors import unknown

OPTIMIZERS = ["ASGD", "Adadelta", "Adafactor", "Adagrad", "Adam", "AdamW", "Adamax", "LBFGS", "NAdam", "RAdam", "SGD"]


@pytest.mark.parametrize(
    ("name", "names", "nearest"),
    [
        ("Adma", OPTIMIZERS, "Adam"),  # two letters have changed places; Adamax has all four in order
        ("adamw", OPTIMIZERS, "AdamW"),
        ("SDG", OPTIMIZERS, "SGD"),
        ("Adamx", OPTIMIZERS, "Adamax"),
        ("Nadam", OPTIMIZERS, "NAdam"),
        ("FTLM", ["FTML", "FTMLVS", "FOML"], "FTML"),
        ("FollowLeader", ["FOML", "FTML", "FollowTheLeader"], "FollowTheLeader"),
        ("--overal", ["--help", "--overall"], "--overall"),
        ("cuda:2", ["cpu", "cuda:1"], "cuda:1"),
        ("--dry", ["--ray", "--data", "--device", "--dry-run", "--redo"], "--dry-run"),
        ("--baseline", ["--baselines", "--buffer", "--device"], "--baselines"),
    ],
)
def test_the_nearest_name(name, names, nearest):
    assert f"unknown thing '{name}': did you mean '{nearest}'? (expected one of: " in str(unknown("thing", name, names))


@pytest.mark.parametrize("name", [".", "", "xyz", 5])
def test_where_no_name_is_near_those_that_there_are_are_said(name):
    assert str(unknown("thing", name, ["quick", "avalanche"])) == (
        f"unknown thing '{name}': expected one of: avalanche, quick"
    )


def test_where_there_is_no_name_that_is_said():
    assert str(unknown("thing", "x", [])) == "unknown thing 'x': there is none"


def test_what_is_called_otherwise_here_is_suggested_by_its_name_here():
    said = str(unknown("--device", "gpu", ["cpu", "cuda"], {"gpu": "cuda"}))
    assert said == "unknown --device 'gpu': did you mean 'cuda'? (expected one of: cpu, cuda)"
