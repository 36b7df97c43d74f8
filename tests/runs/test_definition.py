"""A leaderboard's definition: what it says, and what is refused."""

from pathlib import Path

import pytest
import yaml

from ftml_bench.errors import UsageError
from ftml_bench.runs import definition as definitions
from ftml_bench.runs.definition import Cell, from_dict
from ftml_bench.runs.values import parse_yaml

TEXT = """
name: small
description: two rows
seeds: [3, 1]
benchmarks:
  digits:
    benchmark: RainbowDigits
    settings: {rounds: 4}
    model: {name: RainbowNet, filters: 16}
    arrivals: [10, 20]
    threshold: [accuracy, 0.8]
    checkpoints: [10, 30]
    steps: 5
    optimizer: {name: Adam, lr: 3e-3}
    strategies:
      FTML: {meta_batch_size: 5, optimizer: {lr: 0.1}}
      FromScratch x10: {strategy: FromScratch, step_factor: 10, optimizer: {name: SGD, lr: 1}}
  sines:
    benchmark: Sinusoids
    steps: 2
    optimizer: {name: Adam}
    strategies:
      FTML:
"""


def content(**changes):
    """The definition above as plain values, changed at "a.b.c" = value (None: taken away)."""
    values = parse_yaml(TEXT, "test")
    for path, value in changes.items():
        *folders, last = path.split("/")
        place = values
        for folder in folders:
            place = place[folder]
        if value is None:
            del place[last]
        else:
            place[last] = value
    return values


def refuse(values):
    with pytest.raises(UsageError) as caught:
        from_dict(values, "test")
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_what_it_says():
    small = from_dict(content(), "test")
    digits, sines = small.benchmarks
    assert (digits.arrivals, digits.threshold, digits.checkpoints) == ((10, 20), ("accuracy", 0.8), (10, 30))
    assert digits.optimizer == {"name": "Adam", "lr": 0.003}  # 3e-3 is a number here, as in YAML 1.2
    assert digits.row("FTML").strategy == "FTML"
    assert digits.row("FTML").optimizer == {"name": "Adam", "lr": 0.1}
    assert digits.row("FTML").settings == {"meta_batch_size": 5}
    assert digits.row("FromScratch x10").strategy == "FromScratch"
    assert digits.row("FromScratch x10").settings == {"step_factor": 10}
    assert digits.row("FromScratch x10").optimizer == {"name": "SGD", "lr": 1}
    assert (sines.model, sines.arrivals, sines.threshold, sines.checkpoints) == (None, None, None, None)
    assert sines.row("FTML").settings == {}


def test_a_row_may_have_a_model_of_its_own():
    small = from_dict(
        content(**{"benchmarks/digits/strategies/FTML/model": {"name": "RainbowNet", "filters": 4}}), "test"
    )
    assert small.benchmarks[0].row("FTML").model == {"name": "RainbowNet", "filters": 4}
    assert small.benchmarks[0].row("FTML").settings == {"meta_batch_size": 5}
    assert small.benchmarks[0].row("FromScratch x10").model is None
    again = from_dict(small.to_dict(), "again")
    assert again == small
    plain = from_dict(content(), "test")
    assert small.hash != plain.hash
    assert "model" not in plain.to_dict()["benchmarks"]["digits"]["strategies"]["FTML"]  # older hashes stay


def test_a_learning_rate_may_change_later():
    then = {"after_steps": 5000, "lr": 0.001}
    small = from_dict(content(**{"benchmarks/digits/optimizer/then": then}), "test")
    rows = small.benchmarks[0].rows
    assert rows[0].optimizer == {"name": "Adam", "lr": 0.1, "then": then}
    assert rows[1].optimizer == {"name": "SGD", "lr": 1}  # a row that names an optimiser says all of it


def test_cells_are_benchmark_by_row_by_seed():
    cells = from_dict(content(), "test").cells()
    assert cells == [
        Cell("digits", "FTML", 3),
        Cell("digits", "FTML", 1),
        Cell("digits", "FromScratch x10", 3),
        Cell("digits", "FromScratch x10", 1),
        Cell("sines", "FTML", 3),
        Cell("sines", "FTML", 1),
    ]
    assert cells[2].folder == Path("digits/FromScratch x10/seed-3")


def test_the_plain_form_loads_again_and_has_the_same_hash():
    small = from_dict(content(), "test")
    again = from_dict(parse_yaml(yaml.safe_dump(small.to_dict(), sort_keys=False), "again"), "again")
    assert again == small
    assert again.hash == small.hash


def test_the_hash_changes_with_what_can_change_a_result_and_with_nothing_else():
    small = from_dict(content(), "test")
    assert len(small.hash) == 12
    assert from_dict(content(description="other words"), "test").hash == small.hash
    assert definitions.with_seeds(small, [3]).hash != small.hash
    for path, value in {
        "benchmarks/digits/settings/rounds": 5,
        "benchmarks/digits/steps": 6,
        "benchmarks/digits/strategies/FTML/meta_batch_size": 6,
        "benchmarks/digits/optimizer/lr": 0.004,
        "benchmarks/digits/arrivals": 10,
    }.items():
        assert from_dict(content(**{path: value}), "test").hash != small.hash, path


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("seed", [0], "test: unknown key 'seed': did you mean 'seeds'?"),
        ("benchmarks/digits/checkpoint", [1], "test: digits: unknown key 'checkpoint': did you mean 'checkpoints'?"),
        ("benchmarks/digits/steps", None, "test: digits: 'steps' is missing"),
        ("benchmarks/digits/benchmark", "RainbowDigit", "did you mean 'RainbowDigits'?"),
        (
            "benchmarks/digits/model/name",
            "RainbowNets",
            "test: digits: model: name: unknown model 'RainbowNets': did you mean",
        ),
        ("benchmarks/digits/model/name", None, "test: digits: model: 'name' is missing"),
        (
            "benchmarks/digits/strategies/FTML/model",
            {"name": "RainbowNett"},
            "test: digits: FTML: model: name: unknown model 'RainbowN",
        ),
        ("benchmarks/digits/strategies/FTML/model", {"filters": 3}, "test: digits: FTML: model: 'name' is missing"),
        ("benchmarks/digits/optimizer/then", 5, "test: digits: optimizer: then: expected keys with values, got 5"),
        ("benchmarks/digits/optimizer/then", {"lr": 0.1}, "test: digits: optimizer: then: 'after_steps' is missing"),
        (
            "benchmarks/digits/optimizer/then",
            {"lr": 0.1, "after": 5, "after_steps": 1},
            "then: unknown key 'after': did you mean 'after_steps'?",
        ),
        (
            "benchmarks/digits/optimizer/then",
            {"lr": 0.1, "after_steps": 0},
            "then: after_steps: expected a whole number",
        ),
        (
            "benchmarks/digits/optimizer/clip",
            0,
            "test: digits: optimizer: clip: expected a finite number above 0, got 0",
        ),
        (
            "benchmarks/digits/optimizer/clip",
            "big",
            "test: digits: optimizer: clip: expected a finite number above 0, got 'big'",
        ),
        (
            "benchmarks/digits/optimizer/then",
            {"lr": 0, "after_steps": 1},
            "then: lr: expected a finite number above 0, got 0",
        ),
        ("benchmarks/digits/settings/images_per_class", 0, "settings: images_per_class: expected a whole number"),
        ("benchmarks/digits/strategies/FTLM", {}, "test: digits: FTLM: unknown strategy 'FTLM': did you mean 'FTML'?"),
        ("benchmarks/digits/strategies", {}, "test: digits: strategies: expected keys with values, got {}"),
        ("benchmarks/digits/strategies/a|b", {"strategy": "FTML"}, "'a|b' cannot be the name of a folder"),
        ("benchmarks/digits/strategies/..", {"strategy": "FTML"}, "'..' cannot be the name of a folder"),
        ("benchmarks/digits/strategies/FTML/steps", 3, "FTML: 'steps' cannot be set here"),
        ("benchmarks/digits/settings/seed", 3, "settings: 'seed' cannot be set here"),
        ("name", "a/b", "test: name: 'a/b' cannot be the name of a folder"),
        ("name", 7, "test: name: expected text, got 7"),
        ("benchmarks", [], "test: benchmarks: expected keys with values, got []"),
        ("seeds", [], "test: seeds: expected a list with at least one entry, got []"),
        ("seeds", [0, 1, 0], "test: seeds: 0 stands there more than once"),
        ("seeds", [-1], "test: seeds: expected a whole number of at least 0, got -1"),
        ("seeds", ["0"], "test: seeds: expected a whole number of at least 0, got '0'"),
        ("benchmarks/digits/steps", 0, "steps: expected a whole number of at least 1, got 0"),
        ("benchmarks/digits/steps", True, "steps: expected a whole number of at least 1, got True"),
        ("benchmarks/digits/steps", 2.5, "steps: expected a whole number of at least 1, got 2.5"),
        ("benchmarks/digits/arrivals", [10, -1], "arrivals: expected a whole number of at least 1, got -1"),
        ("benchmarks/digits/arrivals", 0, "arrivals: expected a whole number of at least 1, got 0"),
        ("benchmarks/digits/checkpoints", [30, 10], "checkpoints: expected increasing numbers, got 10 after 30"),
        ("benchmarks/digits/checkpoints", [10, 10], "checkpoints: expected increasing numbers, got 10 after 10"),
        ("benchmarks/digits/checkpoints", [], "checkpoints: expected a list with at least one entry"),
        (
            "benchmarks/digits/threshold",
            ["acuracy", 0.8],
            "threshold: unknown metric 'acuracy': did you mean 'accuracy'",
        ),
        (
            "benchmarks/digits/threshold",
            ["accuracy", 80],
            "threshold: an accuracy lies in (0, 1], got 80 (80 % is 0.8)",
        ),
        ("benchmarks/digits/threshold", ["loss", "low"], "threshold: expected a finite number above 0, got 'low'"),
        ("benchmarks/digits/threshold", 0.8, "threshold: expected [metric, value] such as [accuracy, 0.8], got 0.8"),
        ("benchmarks/digits/settings/images_per_round", -9, "images_per_round: expected a whole number of at least 1"),
        ("benchmarks/digits/strategies/FTML/meta_batch_size", 0, "FTML: meta_batch_size: expected a whole number"),
        (
            "benchmarks/digits/strategies/FTML/inner_lr",
            -0.1,
            "FTML: inner_lr: expected a finite number above 0, got -0.1",
        ),
        (
            "benchmarks/digits/strategies/FTML/inner_lr",
            "fast",
            "FTML: inner_lr: expected a finite number above 0, got 'fast'",
        ),
        ("benchmarks/digits/optimizer/lr", 0, "digits: optimizer: lr: expected a finite number above 0, got 0"),
        ("benchmarks/digits/optimizer", "Adam", "digits: optimizer: expected keys with values, got 'Adam'"),
        ("benchmarks/digits/optimizer/name", None, "digits: optimizer: 'name' is missing"),
        ("benchmarks/digits/strategies/FTML/adapted", {1, 2}, "FTML: adapted: expected text, numbers, true or false"),
    ],
)
def test_what_is_refused(path, value, message):
    assert message in refuse(content(**{path: value}))


DEVICES = ["con", "NUL", "Aux", "prn", "com1", "LPT9", "com0", "nul.", "con.txt", "lpt1.tar.gz", "NUL .txt"]
NO_DEVICES = [
    "CONIN$",
    "com¹",
    "LPT³",
    "a ",
    "a.",
    " a",
    ".a",
    "",
    "a/b",
    "a\\b",
    "a:b",
    "a*",
    "a?",
    'a"',
    "a<",
    "a>",
    "~1",
]
NO_LETTERS = ["a\n", "a\tb", "a\0b", "a\x7f", "é", "e\u0301", "ﬁle", "Ａ", "a\u200b", "x" * 201]


@pytest.mark.parametrize("name", [*DEVICES, *NO_DEVICES, *NO_LETTERS])
def test_names_that_some_disk_cannot_hold_are_refused_everywhere(name):
    row = {"strategy": "FTML"}
    for values in (
        content(name=name),
        {**content(), "benchmarks": {name: content()["benchmarks"]["sines"]}},
        {**content(), "benchmarks": {"sines": {**content()["benchmarks"]["sines"], "strategies": {name: row}}}},
    ):
        assert "cannot be the name of a folder" in refuse(values)


@pytest.mark.parametrize("name", ["console", "com", "com10", "lpt", "nul2", "a.con", "x" * 200, "FTML (1.5)"])
def test_names_that_every_disk_can_hold_are_taken(name):
    rows = {name: {"strategy": "FTML"}}
    taken = from_dict(content(**{"name": name, "benchmarks/digits/strategies": rows}), "test")
    assert (taken.name, taken.benchmarks[0].rows[0].name) == (name, name)


def test_names_that_differ_by_case_alone_are_refused():
    rows = {"FTML": {}, "other": {"strategy": "FTML"}, "ftml": {"strategy": "FTML"}}
    assert refuse(content(**{"benchmarks/digits/strategies": rows})) == (
        "test: digits: strategies: 'FTML' and 'ftml' are one folder on a disk that does not tell case apart"
    )
    both = {name: content()["benchmarks"]["sines"] for name in ("sines", "Sines")}
    assert "test: benchmarks: 'sines' and 'Sines' are one folder" in refuse(content(benchmarks=both))
    twice = {name: content()["benchmarks"]["sines"] for name in ("a", "b")}  # rows of two benchmarks are apart
    assert len(from_dict(content(benchmarks=twice), "test").cells()) == 4


@pytest.mark.parametrize("name", ["figures", "Figures", "leaderboard.csv", "REPORT.html", "sines-measures"])
def test_a_benchmark_is_not_called_what_its_results_are(name):
    both = {key: content()["benchmarks"]["sines"] for key in ("sines", name)}
    assert f"test: benchmarks: {name!r} is the name of what the results are" in refuse(content(benchmarks=both))


def test_a_row_is_not_called_what_tensorboard_reads_of_its_benchmark():
    rows = {"Results.tfevents": {"strategy": "FTML"}}
    assert "'Results.tfevents' is the name of what the results are" in refuse(
        content(**{"benchmarks/digits/strategies": rows})
    )


def test_none_is_a_value_that_constructors_may_take():
    row = (
        from_dict(content(**{"benchmarks/digits/strategies/FTML": {"support_size": None}}), "test")
        .benchmarks[0]
        .rows[0]
    )
    assert row.settings == {"support_size": None}


def test_a_repeated_key_is_refused_with_its_line(tmp_path):
    file = tmp_path / "twice.yaml"
    file.write_text("name: a\nseeds: [0]\nname: b\n")
    with pytest.raises(UsageError, match=r"twice.yaml: line 3 'name' stands twice"):
        definitions.load(str(file))


def test_bad_yaml_is_refused_with_its_line(tmp_path):
    file = tmp_path / "bad.yaml"
    file.write_text("name: a\nseeds: [0\nbenchmarks: 1\n")
    with pytest.raises(UsageError, match=r"bad.yaml: line 3"):
        definitions.load(str(file))


def test_a_file_that_is_no_mapping_is_refused(tmp_path):
    (tmp_path / "empty.yaml").write_text("")
    with pytest.raises(UsageError, match=r"empty.yaml: expected keys with values, got nothing"):
        definitions.load(str(tmp_path / "empty.yaml"))


def test_unknown_leaderboards_and_missing_files():
    with pytest.raises(
        UsageError, match=r"unknown leaderboard 'quik': did you mean 'quick'\? .* or the path of a .yaml"
    ):
        definitions.load("quik")
    with pytest.raises(UsageError, match=r"cannot read the definition no/such.yaml: No such file"):
        definitions.load("no/such.yaml")
    with pytest.raises(UsageError, match=r"cannot read the definition \0.yaml: embedded null byte"):
        definitions.load("\0.yaml")


def test_with_seeds_checks_them():
    small = from_dict(content(), "test")
    assert definitions.with_seeds(small, [5]).seeds == (5,)
    with pytest.raises(UsageError, match="seeds: 5 stands there more than once"):
        definitions.with_seeds(small, [5, 5])
