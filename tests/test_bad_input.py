"""Bad input through the command line: exit code 2, one line that says what is wrong, nothing written."""

import copy
import sys

import pytest
import yaml

from ftml_bench import cli

GOOD = {
    "name": "mine",
    "seeds": [0],
    "benchmarks": {
        "sines": {
            "benchmark": "Sinusoids",
            "settings": {"rounds": 2},
            "arrivals": 4,
            "steps": 1,
            "optimizer": {"name": "Adam", "lr": 0.01},
            "strategies": {"FTML": {"meta_batch_size": 2}},
        }
    },
}
SINES = "benchmarks/sines/"
ROW = f"{SINES}strategies/FTML/"
ADAM = f"{SINES}optimizer/"
FOREIGN = """
import torch
from torch import nn
from ftml_bench.strategies import FTML
from ftml_bench.benchmarks import Sinusoids
number = 5
def function(): pass
class NoSignature:
    __signature__ = 5
class Fails:
    def __init__(self, **keywords): raise RuntimeError("no \\x1b[31m\\nreason")
class FailingModel(nn.Module):
    def __init__(self): raise KeyError("width")
class NoParameters(nn.Module):
    def forward(self, x): return x
class NoModule:
    pass
class NoStreams:
    version = 1
    def __init__(self, seed=0): pass
class EmptyStreams(NoStreams):
    train_stream = test_stream = []
    criterion = threshold = checkpoints = arrivals = inner_lr = update_steps = None
class Sines(Sinusoids):
    def __init__(self, *, seed=0): super().__init__(seed=seed, rounds=2)
class NumberForThreshold(Sines): threshold = property(lambda self: 0.5, lambda self, value: None)
class PercentForThreshold(Sines): threshold = property(lambda self: ("accuracy", 90), lambda self, value: None)
class NoCheckpoints(Sines): checkpoints = property(lambda self: None, lambda self, value: None)
class NoArrivals(Sines): arrivals = property(lambda self: [0], lambda self, value: None)
class Nonsense(Sines): measures = property(lambda self: ("nonsense",), lambda self, value: None)
class NoRate(Sines): inner_lr = property(lambda self: -1, lambda self, value: None)
class NoLoss(Sines): criterion = property(lambda self: None, lambda self, value: None)
class _Private(NoLoss): pass
class NoHeldOut(Sines): test_stream = property(lambda self: self.train_stream[:1], lambda self, value: None)
class NoStream(Sines): test_stream = property(lambda self: None, lambda self, value: None)
class Ends:
    def __init__(self, **keywords): raise SystemExit(0)
"""


@pytest.fixture(autouse=True)
def _folder(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "foreign_bad.py").write_text(FOREIGN)


def changed(path, value):
    """The good definition with another value, or another key, at "a/b/c"."""
    content = copy.deepcopy(GOOD)
    *folders, last = path.split("/")
    place = content
    for folder in folders:
        place = place[folder]
    place[last] = value
    return yaml.safe_dump(content)


GROWING = "a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]\n" for i in range(1, 60))
CHAIN = "a0: &a0 [x]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}]\n" for i in range(1, 60))
TEXTS = {
    "": "got nothing",
    "5": "expected keys with values, got 5",
    "[]": "expected keys with values, got []",
    "text": "expected keys with values",
    "a: [": "line",
    "a: 1\na: 2": "line 2 'a' stands twice",
    "1: 2": "keys must be text",
    "? [a]\n: 2": "keys must be text",
    "null: 2": "keys must be text",
    GROWING: "stands for more than 10000 values",
    CHAIN: "nested deeper than 20",
    f"a: [{', '.join('x' * 10001)}]": "stands for more than 10000 values",
    "a: &a [*a]": "a value is a part of itself",
    "a: &a {b: {c: *a}}": "a value is a part of itself",
    "&a [*a, *a]": "a value is a part of itself",
    "[" * 5000: "nested deeper than 20",
    "{a: " * 5000: "nested deeper than 20",
    "- " * 5000: "nested deeper than 20",
    "a: *b": "undefined alias",
    "a: !!python/object/apply:os.system [ls]": "could not determine a constructor",
    "a: !mine x": "could not determine a constructor",
    "a: 2020-13-45": "not YAML",
    "a: !!bool maybe": "line 1 'maybe' is no bool",
    "a: [!!timestamp foo]": "line 1 'foo' is no timestamp",
    'a: 1\nb: !!float ""': "line 2 '' is no float",
    "!!bool maybe: 1": "line 1 'maybe' is no bool",
    'a: "\\ud83d"': r"line 1 '\ud83d' holds half a character",
    "<<: {a: 1}": "could not determine a constructor",
    f"seeds: [{'9' * 5000}]": "a whole number of 5000 characters",
    f"seeds: [0x{'f' * 5000}]": "a whole number of 5002 characters",
    f"seeds: [-{'9' * 20}]": "a whole number of 21 characters",
    f"seeds: [{2**63}]": "expected less than 2 to the power of 63",
    "a: 1\n---\na: 2": "line 2",
    'a: "\\q"': "unknown escape",
    "\ta: 1": "line 1",
    "a: \x1b[31m": "not YAML",
}


@pytest.mark.parametrize("text", TEXTS, ids=range(len(TEXTS)))
def test_texts(text, refused, tmp_path):
    (tmp_path / "bad.yaml").write_text(text)
    assert TEXTS[text] in refused("leaderboard", "bad.yaml")


INF, NAN = float("inf"), float("nan")
NO_MAPPING = [[], 0, "x", False, [1]]
NO_SIZE = ["1:30", None, [], {}, 0, -1, 2.5, True, INF, NAN, "x"]
NO_RATE = ["1:30", [], {}, 0, -1, True, INF, -INF, NAN, "x"]
NO_NAME = [None, 5, [], {}, "", "x" * 300, "a/b", "..", "aux", "a\x1b[31m", "a\nb"]
VALUES = {
    "name": NO_NAME,
    "seeds": [None, 0, [], {}, "x", [None], [-1], [0.5], [True], [0, 0], ["1:30"], [[0]]],
    "description": [5, [], {}],
    "benchmarks": [None, *NO_MAPPING, {}, {"report.html": {}}, {"figures": {}}, {"a" * 256: {}}],
    "sedes": [1],
    f"{SINES}benchmark": [None, 5, [], "Sinusoid", "a:", ":b", "a b:c"],
    f"{SINES}settings": NO_MAPPING,
    f"{SINES}settings/rounds": [v for v in NO_SIZE if v is not None],
    f"{SINES}settings/seed": [1],
    f"{SINES}steps": NO_SIZE,
    f"{SINES}arrivals": [v for v in NO_SIZE if v is not None] + [[0], [None], ["1:30"]],
    f"{SINES}checkpoints": [5, [], {}, [0], [8, 4], [4, 4], ["x"], [True], [INF]],
    f"{SINES}threshold": [
        5,
        [],
        {},
        ["loss"],
        ["loss", INF],
        ["loss", NAN],
        ["loss", 0],
        ["loss", "1:30"],
        [1, 2],
        ["accuracy", 2],
        ["los", 1],
        [None, 1],
        ["loss", True],
    ],
    f"{SINES}measures": [5, [], {}, ["x"], [5]],
    f"{SINES}model": [*NO_MAPPING, {}, {"name": None}, {"name": 5}, {"name": "X"}],
    f"{SINES}optimizer": [None, *NO_MAPPING, {}, {"name": None}, {"lr": 1}],
    f"{ADAM}lr": NO_RATE,
    f"{ADAM}params": [1, []],
    f"{ADAM}clip": [None, [], 0, INF, NAN, "x", True],
    f"{ADAM}then": [None, [], 5, {}, {"lr": 1}, {"lr": INF, "after_steps": 1}, {"lr": 1, "after_steps": INF}],
    f"{SINES}strategies": [None, *NO_MAPPING, {}, {"x" * 300: {}}, {"a/b": {}}],
    f"{SINES}strategies/FTML": NO_MAPPING,
    f"{ROW}strategy": [None, 5, [], "FTLM"],
    f"{ROW}comparator": [None, 1, "x", []],
    f"{ROW}optimizer": NO_MAPPING,
    f"{ROW}model": NO_MAPPING,
    f"{ROW}meta_batch_size": [v for v in NO_SIZE if v is not None],
    f"{ROW}inner_lr": NO_RATE,
    f"{ROW}inner_clip": [INF, NAN, [[INF]], {"a": NAN}],
}
VALUES |= {
    ROW + key: [1, "x", None]
    for key in ("criterion", "plugins", "eval_mb_size", "evaluator", "device", "seed", "steps")
}
CASES = [(path, value) for path, found in VALUES.items() for value in found]


@pytest.mark.parametrize(("path", "value"), CASES, ids=[f"{p}={v!r:.20}" for p, v in CASES])
def test_values_are_refused_by_the_path_of_their_key(path, value, refused, tmp_path):
    (tmp_path / "bad.yaml").write_text(changed(path, value))
    line = refused("leaderboard", "bad.yaml")
    assert "bad.yaml: " in line
    key = path.split("/")[-1]
    assert key in line or str(value) in line


TYPES = [
    (ROW, "inner_lr", None, "expected a number, got nothing"),
    (ROW, "engine", [], "expected text, got []"),
    (ROW, "engine", 5, "expected text, got 5"),
    (ROW, "second_order", "x", "expected true or false, got 'x'"),
    (ROW, "second_order", 1, "expected true or false, got 1"),
    (ROW, "second_order", None, "expected true or false, got nothing"),
    (ROW, "memory", "x", "expected 'auto' or 'unroll' or 'adjoint'"),
    (ROW, "batch_norm", [], "expected 'support' or 'transductive'"),
    (ROW, "adapted", 5, "expected"),
    (ROW, "inner_clip", "x", "expected a number or null"),
    (ROW, "class_balanced", "yes", "expected true or false"),
    (ROW, "class_balanced", [], "expected true or false"),
    (ROW, "permute_labels", 0, "expected true or false"),
    (ROW, "task_sampler", "x", "expected"),
    (
        ROW,
        "buffer",
        "Reservoir",
        "as {name: Reservoir, points: 1000}, got 'Reservoir'",
    ),
    (ROW, "buffer", {"name": [1]}, "expected a rule with its keywords"),
    (ROW, "buffer", {"points": 5}, "expected a rule with its keywords"),
    (ROW, "buffer_folder", 5, "expected text"),
    (ROW, "train_mb_size", None, "expected a whole number"),
    (ROW, "train_mb_size", [1], "expected a whole number"),
    (ROW, "update_size", None, "expected a whole number"),
    (ROW, "eval_every", "x", "expected a whole number"),
    (ROW, "peval_mode", 5, "expected text"),
    (ROW, "inner_stps", 5, "did you mean 'inner_steps'"),
    (ADAM, "betas", [], "expected a list of 2 values"),
    (ADAM, "betas", 0.9, "expected a list of 2 values"),
    (ADAM, "betas", ["a", "b"], "expected a list of 2 values"),
    (ADAM, "eps", None, "expected a number"),
    (ADAM, "eps", [], "expected a number"),
    (ADAM, "amsgrad", "x", "expected true or false"),
    (ADAM, "weight_decay", {}, "expected a number"),
    (ADAM, "lr", None, "expected a number"),
    (ADAM, "name", "Adm", "did you mean 'Adam'"),
    (ADAM, "name", "LBFGS", "it cannot take a step here"),
    (ADAM, "name", "SparseAdam", "it cannot take a step here"),
    (ADAM, "name", "Optimizer", "Optimizer"),
    (ADAM, "name", "lr_scheduler", "unknown optimizer"),
    (f"{SINES}settings/", "rounds", None, "expected a whole number"),
    (f"{SINES}settings/", "round", 1, "did you mean 'rounds'"),
    (SINES, "threshold", ["accuracy", 0.5], "accuracy of a regression stream"),
    (SINES, "checkpoints", [5], "no arrival ends at checkpoint 5"),
    (SINES, "model", {"name": "foreign_bad:NoParameters"}, "expected a model with parameters"),
    (SINES, "model", {"name": "foreign_bad:NoModule"}, "expected a model (nn.Module)"),
    (SINES, "model", {"name": "foreign_bad:FailingModel"}, "KeyError: 'width'"),
    (SINES, "model", {"name": "foreign_bad:number"}, "expected a class with a signature, got 5"),
    (SINES, "model", {"name": "foreign_bad:Ends"}, "ended the command by SystemExit"),
    (SINES, "model", {"name": "SinusoidMLP", "hidden": "x"}, "hidden"),
    (SINES, "benchmark", "foreign_bad:number", "expected a class with a signature, got 5"),
    (SINES, "benchmark", "foreign_bad:Fails", "RuntimeError: no \\x1b[31m reason"),
    (SINES, "benchmark", "foreign_bad:NoSignature", "expected a class with a signature"),
    (SINES, "benchmark", "foreign_bad:missing", "unknown class of foreign_bad"),
    (SINES, "benchmark", "no_such_module:A", "cannot import no_such_module"),
    (ROW, "strategy", "foreign_bad:number", "expected a class, got 5"),
    (ROW, "strategy", "foreign_bad:function", "expected a class, got <function"),
    (ROW, "strategy", "foreign_bad:NoModule", "it is no strategy of Avalanche's kind"),
    (ROW, "strategy", "foreign_bad:NoSignature", "expected a class with a signature"),
    (ROW, "strategy", "foreign_bad:missing", "unknown class of foreign_bad"),
]


@pytest.mark.parametrize(("place", "key", "value", "message"), TYPES, ids=[f"{k}={v!r:.30}" for _, k, v, _ in TYPES])
def test_types_and_foreign_classes_are_refused_before_anything_runs(place, key, value, message, refused, tmp_path):
    (tmp_path / "bad.yaml").write_text(changed(place + key, value))
    line = refused("leaderboard", "bad.yaml", "--jobs", "1", "--quiet")
    assert message in line
    assert line.startswith("ftml-bench: error: bad.yaml: ") or "ended the command by" in line
    if place == ROW and "strategy" not in key:
        assert f"sines: FTML: {key}: " in line or repr(key) in line


DRY = [
    ("Adma", ADAM + "name", "unknown optimizer"),
    ([5, 40], SINES + "checkpoints", "no arrival ends at checkpoint 5"),
    ("no", ROW + "second_order", "expected true or false, got 'no'"),
    (["accuracy", 0.5], SINES + "threshold", "accuracy of a regression stream"),
]


@pytest.mark.parametrize(("value", "path", "message"), DRY, ids=[path for _, path, _ in DRY])
def test_a_dry_run_refuses_what_the_run_refuses_in_the_same_words(value, path, message, refused, tmp_path):
    (tmp_path / "bad.yaml").write_text(changed(path, value))
    line = refused("leaderboard", "bad.yaml", "--dry-run")
    assert message in line
    assert line == refused("leaderboard", "bad.yaml", "--jobs", "1", "--quiet")


@pytest.mark.parametrize("options", [("--device", "cuda:7"), ("--data", "nowhere"), ("--ray", "a b")])
def test_a_dry_run_refuses_places_that_the_run_refuses(options, refused, tmp_path):
    (tmp_path / "good.yaml").write_text(yaml.safe_dump(GOOD))
    assert refused("leaderboard", "good.yaml", "--dry-run", *options) == refused("leaderboard", "good.yaml", *options)


BENCHMARKS = [
    ("NoStreams", "a NoStreams has no 'train_stream': expected a benchmark"),
    ("EmptyStreams", "its train_stream has no rounds"),
    ("NumberForThreshold", "its threshold: expected [metric, value] such as [accuracy, 0.8], got 0.5"),
    ("PercentForThreshold", "its threshold: an accuracy lies in (0, 1], got 90 (80 % is 0.8)"),
    ("NoCheckpoints", "its checkpoints: expected a list of numbers of datapoints, got nothing"),
    ("Nonsense", "its measures: unknown measure 'nonsense': did you mean 'online'? (expected one of: "),
    ("NoRate", "its inner_lr: expected a finite number above 0, got -1"),
    ("NoLoss", "its criterion: expected a loss, got nothing"),
    ("NoHeldOut", "2 rounds of data, 1 of held-out data: expected as many"),
    ("NoStream", "its test_stream: expected a stream of rounds, got nothing"),
]


@pytest.mark.parametrize(("name", "message"), BENCHMARKS, ids=[name for name, _ in BENCHMARKS])
def test_benchmarks_whose_streams_or_defaults_cannot_be_used(name, message, refused, tmp_path):
    content = copy.deepcopy(GOOD)
    content["benchmarks"]["sines"] |= {"benchmark": f"foreign_bad:{name}", "settings": {}}
    (tmp_path / "bad.yaml").write_text(yaml.safe_dump(content))
    assert f"sines: foreign_bad:{name}: {message}" in refused("leaderboard", "bad.yaml")


def test_defaults_of_a_benchmark_that_a_definition_replaces_are_not_looked_at(refused, tmp_path):
    line = refused("run", "foreign_bad:NoArrivals", "FTML")
    assert "NoArrivals: foreign_bad:NoArrivals: its arrivals: expected a whole number of at least 1, got 0" in line
    assert "got nothing" in refused("check", "SinusoidMLP", "--benchmark", "foreign_bad:NoLoss")
    content = copy.deepcopy(GOOD)
    content["benchmarks"]["sines"] |= {"benchmark": "foreign_bad:NoArrivals", "settings": {}}  # it says arrivals
    (tmp_path / "good.yaml").write_text(yaml.safe_dump(content))
    assert cli.main(["leaderboard", "good.yaml", "--dry-run"]) == 0


def test_a_class_with_an_underscore_has_a_folder_without_one(refused):
    for command in (("run", "foreign_bad:_Private", "FTML"), ("check", "FTML", "--benchmark", "foreign_bad:_Private")):
        assert ": Private: foreign_bad:_Private: its criterion" in refused(*command)


LONG = "x" * 300
COMMANDS = [
    ["leaderboard", "no.yaml"], ["leaderboard", "a\0.yaml"], ["leaderboard", f"{LONG}.yaml"], ["leaderboard", "quik"],
    ["leaderboard", "folder.yaml"], ["leaderboard", "good.yaml", "--out", LONG],
    ["leaderboard", "good.yaml", "--out", "good.yaml"], ["leaderboard", "good.yaml", "--out", "good.yaml/below"],
    ["leaderboard", "good.yaml", "--out", "filled"], ["leaderboard", "good.yaml", "--seeds", "x"],
    ["leaderboard", "good.yaml", "--seeds", "0,0"], ["leaderboard", "good.yaml", "--seeds", "-1"],
    ["leaderboard", "good.yaml", "--seeds", "9" * 5000], ["leaderboard", "good.yaml", "--jobs", "0"],
    ["leaderboard", "good.yaml", "--data", LONG], ["leaderboard", "good.yaml", "--device", "x\x1b"],
    ["report", LONG], ["report", "filled"], ["report", "good.yaml"], ["report", "no"], ["report"],
    ["run", "Sinusoids", "FTML", "--lr", "nan"], ["run", "Sinusoids", "FTML", "--lr", "inf"],
    ["run", "Sinusoids", "FTML", "--steps", "0"], ["run", "Sinusoids", "FTML", "--seed", "9" * 5000],
    ["run", "Sinusoids", "FTML", "--set", "strategy=FromScratch"], ["run", "Sinusoids", "FTML", "--set", "device=cpu"],
    ["run", "Sinusoids", "FTML", "--set", "plugins=[]"], ["run", "Sinusoids", "FTML", "--set", "inner_lr=.inf"],
    ["run", "Sinusoids", "FTML", "--set", "inner_lr=[["], ["run", "Sinusoids", "FTML", "--set", "x"],
    ["run", "Sinusoids", "FTML", "--benchmark-set", "seed=3"], ["run", "Sinusoids", "FTML", "--set", "a=&a [*a]"],
    ["data", "Sinusoids"], ["data", "\x1b[31m"], ["data", "RainbowDigits", "--sheet", "no/such.png"],
    ["data", "RainbowDigits", "--sheet", f"{LONG}.png"], ["data", "RainbowDigits", "--sheet", "filled"],
    ["data", "RainbowDigits", "--sheet", "a.png", "--set", "rounds=x"],
    ["data", "RainbowDigits", "--sheet", "a.png", "--set", "seed=1"], ["lst"], ["\x1b[31m"], ["list", "more"],
]  # fmt: skip


@pytest.mark.parametrize("arguments", COMMANDS, ids=[" ".join(a)[:60].replace("\0", "0") for a in COMMANDS])
def test_commands(arguments, refused, tmp_path):
    (tmp_path / "good.yaml").write_text(yaml.safe_dump(GOOD))
    (tmp_path / "folder.yaml").mkdir()
    (tmp_path / "filled").mkdir()
    (tmp_path / "filled" / "letter.txt").write_text("mine")
    refused(*arguments)


def test_a_record_stays_json():
    from ftml_bench.runs.cell import _plain

    found = _plain({"a": INF, "b": NAN, "c": 1.5, "d": None, "e": object()})
    assert found == {"a": "inf", "b": "nan", "c": 1.5, "d": None}


def test_a_missing_argument_is_named_as_it_is_given(refused, tmp_path):
    line = refused("run", "RainbowDigits", "avalanche.training:EWC", "--benchmark-set", "rounds=2", "--jobs", "1")
    assert "RainbowDigits: EWC: it needs 'ewc_lambda': expected --set ewc_lambda=…" in line
    (tmp_path / "needs.py").write_text(
        "from ftml_bench.benchmarks import Sinusoids\n"
        "class Needs(Sinusoids):\n"
        "    def __init__(self, *, width, seed=0): super().__init__(seed=seed, rounds=width)\n"
    )
    line = refused("run", "needs:Needs", "FTML", "--jobs", "1")
    assert "Needs: needs:Needs: it needs 'width': expected --benchmark-set width=…" in line
