"""The audit notices what it is there for. (`tox -e audit` runs all of it; here a few scenarios are run.)"""

import configparser
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from ftml_bench import protocol, registry
from ftml_bench.adaptation import ENGINES, TRIED
from ftml_bench.adaptation.auto import TriedEngine
from ftml_bench.adaptation.batched import BatchedEngine
from ftml_bench.adaptation.native import NativeEngine
from ftml_bench.benchmarks import LinearRegression
from ftml_bench.seeding import derive
from ftml_bench.strategies import FTML

from . import __main__ as command
from . import committed, running
from . import scenarios as tables
from .outcome import compute
from .scenarios import Scenario

WAVES = Scenario("Sinusoids", "FTML", "batched", "adjoint")
COMMITTED = committed.read()
BEFORE = {**committed.table({})["counted with"], "torch": "1.0"}


@pytest.fixture(scope="module")
def present():
    """The values as the code gives them now, before a test breaks it."""
    return compute([WAVES]).values


@pytest.fixture
def audit(present, monkeypatch, capsys, tmp_path):
    """Runs the audit of some scenarios, by default one, against a table that holds these alone: (status, output)."""

    def run(*arguments, of=(WAVES,), **changes):
        names = [str(scenario) for scenario in of]
        values = {name: v for name, v in {**COMMITTED["values"], **present}.items() if name in names}
        monkeypatch.setattr(command, "scenarios", lambda: iter(of))
        monkeypatch.setattr(committed, "FILE", tmp_path / "values.json")
        committed.write({**committed.table(values), **changes})
        status = command.main(list(arguments))
        return status, capsys.readouterr().out

    threads = torch.get_num_threads()
    yield run
    torch.set_num_threads(threads)


def differing(output):
    """The rows of the table: (where, quantity, expected, found)."""
    rows = [line.split("  ") for line in output.splitlines()]
    return [tuple(cell.strip() for cell in row if cell.strip()) for row in rows if len(row) > 3][1:]


# -- mistakes in the code


def test_nothing_has_changed(audit):
    status, output = audit()
    assert (status, differing(output)) == (0, [])
    assert output == "audit: 1 scenarios computed, 0 refused as they should be, 0 differences\n"


def test_an_inner_learning_rate_that_is_off_by_a_percent(audit, present, monkeypatch):
    build = TriedEngine.__init__

    def off(self, candidates, model, criterion, settings):
        build(self, candidates, model, criterion, {**settings, "inner_lr": 1.01 * settings["inner_lr"]})

    monkeypatch.setattr(TriedEngine, "__init__", off)
    status, output = audit()
    assert status == 1
    losses = [f"loss after arrival {number}" for number in (1, 2, 3, 4)]
    assert [row[:2] for row in differing(output)] == [(str(WAVES), q) for q in (*losses, "gradient norm")]
    expected, found = map(float, differing(output)[0][2:])
    assert expected == pytest.approx(present[str(WAVES)]["loss"][0])
    assert 1e-5 < abs(found / expected - 1) < 0.01


def test_one_more_forward_pass(audit, monkeypatch):
    forward = BatchedEngine._outputs

    def twice(self, *args):
        forward(self, *args)
        return forward(self, *args)

    monkeypatch.setattr(BatchedEngine, "_outputs", twice)
    status, output = audit()
    assert status == 1
    counted = ["operators of training", "tensors allocated", "bytes allocated"]
    assert [row[:2] for row in differing(output)] == [(str(WAVES), quantity) for quantity in counted]
    assert all(int(found) > int(expected) for *_, expected, found in differing(output))


def test_a_copy_that_nobody_needs(audit, monkeypatch):
    own = BatchedEngine._own
    monkeypatch.setattr(BatchedEngine, "_own", lambda self, x: own(self, x).clone())
    _, output = audit()
    assert {row[1] for row in differing(output)} == {"operators of training", "tensors allocated", "bytes allocated"}


def test_an_engine_that_auto_no_longer_takes(audit, monkeypatch):
    outputs = NativeEngine._outputs_of
    monkeypatch.setattr(NativeEngine, "_outputs_of", lambda *a, **k: 2 * outputs(*a, **k))  # which its trial finds out
    of = Scenario("Sinusoids", "FTML", "auto", "adjoint")
    _, output = audit(of=[of])
    assert (str(of), "chosen", "native/adjoint", "batched/adjoint") in differing(output)
    assert not any(row[1] in running.NUMBERS for row in differing(output))


def test_gradient_evaluations_that_are_counted_twice(audit, monkeypatch):
    count = FTML._step_cost
    monkeypatch.setattr(FTML, "_step_cost", lambda self: (count(self)[0], 2 * count(self)[1]))
    _, output = audit()
    [(name, quantity, expected, found)] = differing(output)
    assert (name, quantity) == (str(WAVES), "gradient evaluations")
    # eight steps of two tasks: two points, and three in two steps of second order; updates by 6 and 12 points, twice
    steps, updates = 8 * 2 * (2 + 2 * 2 * 3), 2 * 2 * (6 + 12)
    assert (int(expected), int(found)) == (steps + updates, 2 * steps + updates)


def test_an_engine_that_fails(audit, monkeypatch):
    def outputs(self, *args):
        raise RuntimeError("broken")

    monkeypatch.setattr(BatchedEngine, "_outputs", outputs)
    _, output = audit()
    [(name, quantity, expected, found)] = differing(output)
    assert (name, quantity, expected) == (str(WAVES), "refusal", "none")
    assert "broken" in found


# -- names


def test_the_tables_hold_what_is_registered():
    assert list(tables.missing()) == []
    names = [str(scenario) for scenario in tables.scenarios() if not tables.refusal(scenario)]
    assert sorted(names) == list(COMMITTED["values"])
    assert len(names) > len(registry.BENCHMARKS) * (len(registry.STRATEGIES) + len(ENGINES))


def test_names_that_stand_nowhere(audit, monkeypatch):
    monkeypatch.setitem(registry.BENCHMARKS, "Waves", registry.BENCHMARKS["Sinusoids"])
    monkeypatch.setitem(registry.STRATEGIES, "Meta", registry.STRATEGIES["FTML"])
    monkeypatch.setitem(tables.EXCEPTIONS, "Sinusoids Meta *", "it cannot")
    status, output = audit(of=[Scenario("Sinusoids", "TrainOnEverything")])
    assert status == 1
    assert output.splitlines()[:3] == [
        "stream Waves is registered and not in STREAMS",
        "learner Meta is registered and in no row of ROWS for all streams",
        "exception 'Sinusoids Meta *' is of no scenario",
    ]


def test_names_that_are_gone(audit, monkeypatch):
    monkeypatch.delitem(registry.BENCHMARKS, "ObjectPose")
    monkeypatch.delitem(registry.STRATEGIES, "FromScratch")
    status, output = audit()
    assert status == 1
    assert output.splitlines()[:2] == [
        "stream ObjectPose is in STREAMS and not registered",
        "learner FromScratch is in ROWS and not registered",
    ]
    assert not {scenario.row for scenario in tables.scenarios()} & {"FromScratch"}


def test_a_new_engine_has_no_value(audit, monkeypatch):
    monkeypatch.setitem(ENGINES, "faster", BatchedEngine)
    monkeypatch.setitem(TRIED, "faster", [BatchedEngine])
    new = [s for s in tables.scenarios() if s.stream == "Sinusoids" and s.engine == "faster"]
    assert [s.memory for s in new] == ["unroll", "adjoint"]
    status, output = audit(of=new)
    assert status == 1
    assert differing(output) == [(str(scenario), "all", "no value is committed", "computed") for scenario in new]


def test_a_value_that_nobody_computes(audit, present):
    status, output = audit(values={"Sinusoids Removed": {"steps": 8}, **present})
    assert status == 1
    assert differing(output) == [("Sinusoids Removed", "all", "committed", "no scenario computes it")]


def test_exceptions_are_refused_by_their_line(audit, monkeypatch):
    of = [Scenario("Sinusoids", "FTML", "vmap", "unroll"), Scenario("Sinusoids", "Replay")]
    assert audit(of=of) == (0, "audit: 0 scenarios computed, 2 refused as they should be, 0 differences\n")
    monkeypatch.setitem(tables.EXCEPTIONS, "* FTML vmap/unroll", "another line")
    monkeypatch.setitem(tables.EXCEPTIONS, "Sinusoids FTML batched/adjoint", "it runs all the same")
    status, output = audit(of=[of[0], WAVES])
    assert status == 1
    assert [(row[0], *row[2:]) for row in differing(output)] == [
        (str(of[0]), "another line", tables._ADJOINT_ALONE),
        (str(WAVES), "it runs all the same", "none: it runs"),
    ]


def test_streams_without_data_are_named(audit, monkeypatch, tmp_path):
    monkeypatch.setenv("FTML_BENCH_DATA", str(tmp_path))
    status, output = audit(of=[WAVES, Scenario("RainbowMNIST", "FromScratch"), Scenario("ColoredMNIST", "FromScratch")])
    assert status == 0
    assert output.splitlines()[0] == (
        f"left out, since their data are not in {tmp_path} (FTML_BENCH_DATA names the folder): "
        f"ColoredMNIST, RainbowMNIST"
    )


# -- versions


def test_counts_of_another_torch_are_left_out_and_nothing_else(audit, present):
    values = {str(WAVES): {**present[str(WAVES)], "operators of training": 1, "gradient evaluations": 1}}
    status, output = audit(values=values, **{"counted with": BEFORE})
    assert status == 1
    here = ".".join(torch.__version__.split(".")[:2])
    assert output.startswith(f"counts of operators and tensors left out: they were made with torch 1.0, here {here}\n")
    assert [row[1] for row in differing(output)] == ["gradient evaluations"]


def test_tox_installs_the_versions_that_counts_were_made_with():
    parser = configparser.ConfigParser(interpolation=None)
    parser.read(Path(__file__).parents[2] / "tox.ini", encoding="utf-8")
    pinned = {line for line in parser["testenv:audit"]["deps"].split() if "==" in line}
    assert pinned == {f"{package}=={version}.*" for package, version in COMMITTED["counted with"].items()}


def test_a_setting_that_has_changed(audit, monkeypatch):
    before = committed.table({})["streams"]
    monkeypatch.setitem(tables.STREAMS, "Sinusoids", replace(tables.STREAMS["Sinusoids"], lr=0.02))
    _, output = audit(streams=before)
    assert ("streams: Sinusoids", "lr", "0.01", "0.02") in differing(output)


# -- writing


def test_what_is_the_same_is_written_as_it_was(audit, present):
    values = {str(WAVES): {**present[str(WAVES)], "gradient norm": present[str(WAVES)]["gradient norm"] * (1 + 1e-9)}}
    assert audit("--write", values=values)[0] == 0
    assert committed.read() == committed.table(values)


def test_a_number_changes_with_a_version_only(audit, present, monkeypatch):
    values = {str(WAVES): {**present[str(WAVES)], "gradient norm": 7.0}}
    status, output = audit("--write", values=values)
    assert status == 1
    assert "nothing was written: Sinusoids FTML batched/adjoint: gradient norm is 2.46" in output
    assert committed.read()["values"] == values
    before = committed.read()["protocol"]
    monkeypatch.setattr(protocol, "VERSION", protocol.VERSION + 1)
    assert audit("--write", values=values, protocol=before)[0] == 0
    assert committed.read() == committed.table(present)
    assert committed.read()["protocol"]["version"] == before["version"] + 1


def test_counts_are_written_as_they_are(audit, present):
    values = {str(WAVES): {**present[str(WAVES)], "tensors allocated": 1}}
    status, output = audit("--write", values=values)
    assert status == 0
    assert [row[1] for row in differing(output)] == ["tensors allocated"]
    assert committed.read()["values"] == present


def test_no_number_that_is_not_finite(audit, monkeypatch):
    monkeypatch.setitem(tables.STREAMS, "Sinusoids", replace(tables.STREAMS["Sinusoids"], lr=1e200))
    status, output = audit("--write")
    assert status == 1
    assert "loss is no finite number" in output


def test_counts_of_two_versions_do_not_stand_side_by_side(audit, monkeypatch, tmp_path):
    monkeypatch.setenv("FTML_BENCH_DATA", str(tmp_path))
    of = [WAVES, Scenario("RainbowMNIST", "FromScratch")]
    status, output = audit("--write", of=of, **{"counted with": BEFORE})
    assert status == 1
    assert "and 1 scenarios would keep theirs" in output
    assert audit("--write", of=of)[0] == 0
    assert list(committed.read()["values"]) == sorted(map(str, of))


# -- numbers that rounding decides

POSE = Scenario("ObjectPose", "IMAML", "auto", "auto")  # each arrival magnifies a change ten thousand times


def test_what_rounding_decides_is_not_written(audit):
    status, output = audit("--write", of=[POSE], values={})
    assert status == 0
    assert f"left out, since rounding decides them: 4 numbers of {POSE}\n" in output
    values = committed.read()["values"][str(POSE)]
    assert values["loss"] == [pytest.approx(0.63701862, rel=1e-7), *["undecided"] * 3]
    assert (values["gradient norm"], values["steps"]) == ("undecided", 8)


def test_what_rounding_decides_is_not_compared_and_all_else_is(audit, present):
    loss = present[str(WAVES)]["loss"]
    values = {**present[str(WAVES)], "loss": [loss[0], loss[1] * 1.001, "undecided", "undecided"]}
    status, output = audit(values={str(WAVES): values})
    assert status == 1
    assert [row[1] for row in differing(output)] == ["loss after arrival 2"]


def test_a_number_is_decided_if_it_moves_by_less_than_a_tenth_of_the_tolerance():
    values = {"a": {"loss": [1.0, 2.0, 3.0], "gradient norm": 4.0, "steps": 5}}
    changed = {"a": {"loss": [1 + 9e-7, 2 + 3e-6, 3.0], "gradient norm": 4.1, "steps": 6}}
    decided = committed.decided(values, changed)
    # what follows a number that rounding decides was computed from the same weights
    assert decided == {"a": {"loss": [1.0, "undecided", "undecided"], "gradient norm": "undecided", "steps": 5}}
    assert committed.undecided({"values": {**decided, "b": values["a"]}}) == {"a": 3}


def test_a_number_that_rounding_no_longer_decides_is_written(audit, present):
    values = {str(WAVES): {**present[str(WAVES)], "loss": ["undecided"] * 4}}
    assert audit("--write", values=values)[0] == 0
    assert committed.read()["values"] == present


def test_the_change_is_one_of_the_first_weights():
    loss, change = running.run(WAVES)["loss"], 1e-6
    moved = [abs(b / a - 1) for a, b in zip(loss, running.run(WAVES, change)["loss"], strict=True)]
    assert all(change / 100 < m < change * 100 for m in moved)


def test_rounding_decides_few_numbers():
    """None of FTML, whatever the engine; of no learner more than on two streams."""
    streams = {}
    for name in committed.undecided(COMMITTED):
        stream, learner, *_ = name.split()
        streams.setdefault(learner, set()).add(stream)
    assert not {"FTML", "FTML-exact", "FTML-heads", "TrainOnEverything", "FollowTheLeader"} & set(streams)
    assert all(len(of) <= 2 for of in streams.values())


# -- the values themselves


def test_engines_agree_on_every_stream():
    of_learner = {}
    for name, values in COMMITTED["values"].items():
        of_learner.setdefault(tuple(name.split()[:2]), []).append(values)
    assert {len(each) for each in of_learner.values()} >= {1, 11}
    for each in of_learner.values():
        for values in each[1:]:
            for quantity in {*each[0], *values} - {*running.COUNTS, "chosen"}:
                assert values[quantity] == pytest.approx(each[0][quantity], rel=1e-8), quantity


def test_linear_regression_is_as_the_closed_forms_say():
    """Steps down Σ f_k(U_k(w)) of the rounds so far, by its gradient (I − αA)(A U(w) + b) (paper, appendix A)."""
    settings = tables.STREAMS["LinearRegression"]
    stream = LinearRegression(seed=running.SEED, **settings.settings)
    torch.manual_seed(derive(running.SEED, "init"))
    w = next(stream.model().parameters())[0].detach().clone()
    shrink = torch.eye(len(w), dtype=w.dtype) - stream.inner_lr * stream.A
    losses = []
    for t in range(len(stream.A)):
        for _ in range(tables.STEPS):
            slopes = torch.einsum("tij,tj->ti", stream.A, stream.updated(w)) + stream.b
            gradient = torch.einsum("tij,tj->ti", shrink, slopes)[: t + 1].mean(0)
            w -= settings.lr * gradient
        losses.append(float(stream.losses(stream.updated(w))[t]))
    values = COMMITTED["values"]["LinearRegression FTML-exact batched/unroll"]
    assert values["loss"] == pytest.approx(losses, rel=1e-9)
    assert values["gradient norm"] == pytest.approx(float(gradient.norm()), rel=1e-9)


def test_what_engines_are_chosen():
    for name, values in COMMITTED["values"].items():
        way = name.split()[2:]
        rules = {"FTML-heads": "loop", "FOML": "batched", "IMAML": "batched", "MAMLPlusPlus": "batched"}
        engine = rules.get(name.split()[1], "native")
        chosen = [part.replace("auto/", f"{engine}/").replace("/auto", "/unroll") for part in way]
        assert [values[q] for q in values if q == "chosen"] == chosen


def test_a_scenario_changes_no_default():
    before = torch.get_default_dtype()
    assert compute([WAVES]).values
    assert torch.get_default_dtype() is before is torch.float32
