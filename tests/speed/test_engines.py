"""What is timed gives the right gradient, and what cannot be had is said. Nothing here depends on how fast it is."""

from __future__ import annotations

import copy
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType

import pytest
import torch
from torch import nn
from torch.func import functional_call

from ftml_bench.speed import engines, peers, processes
from ftml_bench.speed.measuring import at, interleaved
from ftml_bench.speed.peers import ALONE, PEERS, Peer
from ftml_bench.speed.subjects import Subject, subject


def small(name):
    """Without what takes long to compile."""
    return peers.peers_of(name, subject(name), compiled=False)


@pytest.mark.parametrize("name", ["SinusoidMLP", "RainbowNet"])
def test_every_way_gives_the_gradient_of_higher(name, monkeypatch):
    monkeypatch.setattr(engines, "subject", lambda name, tasks: subject(name, tasks, inner_steps=2, support=4, query=3))
    found, missing = small(name)
    differences, notes = engines.differences(name, found)
    assert notes == []
    assert set(found) <= set(differences)
    assert max(differences.values()) < 1e-9
    assert {"batched", "vmap", "loop"} <= set(differences)
    named = {line.split(":")[0] for line in missing} | set(found)
    assert named == {title for title, peer in PEERS.items() if not peer.compiles}


def test_a_library_that_is_missing_or_fails_is_a_line(monkeypatch):
    def fails(it):
        raise ImportError("no module\nnamed gym")

    for title in list(PEERS)[1:]:
        monkeypatch.delitem(PEERS, title)
    monkeypatch.setitem(PEERS, "Absent", Peer("no_such_package", fails))
    monkeypatch.setitem(PEERS, "Broken", Peer("torch", fails))
    monkeypatch.setitem(PEERS, "Slow", Peer("torch", fails, on=("RainbowNet",)))
    found, missing = peers.peers_of("SinusoidMLP", subject("SinusoidMLP"))
    assert list(found) == [ALONE]
    assert missing == [
        "Absent: no_such_package is not installed.",
        "Broken: ImportError: no module named gym",
        "Slow: takes minutes to compile, timed with RainbowNet only.",
    ]


def test_a_gradient_that_is_wrong_is_seen(monkeypatch):
    def doubled(it):
        right = peers.higher_alone(it)
        return lambda x, y: [2 * g for g in right(x, y)]

    def raises(it):
        def gradient(x, y):
            raise RuntimeError("not differentiable")

        return gradient

    monkeypatch.setitem(PEERS, "Doubled", Peer("torch", doubled))
    monkeypatch.setitem(PEERS, "Raises", Peer("torch", raises))
    found, notes = engines.differences("SinusoidMLP", {"Doubled": doubled, "Raises": raises})
    assert found["Doubled"] == pytest.approx(1.0)
    assert "Raises" not in found
    assert notes == ["Raises: RuntimeError: not differentiable"]
    by_engines = Subject.by_engines

    def one_wrong(self):
        ways = by_engines(self)
        return ways | {"batched": lambda: [1.001 * g for g in ways["batched"]()]}

    monkeypatch.setattr(Subject, "by_engines", one_wrong)
    with pytest.raises(RuntimeError, match=r"SinusoidMLP: the gradient of 'batched' differs .* by 1\.0e-03"):
        engines.differences("SinusoidMLP", {})


class MAML(nn.Module):
    """What learn2learn's does, in a few lines."""

    def __init__(self, module, lr, weights=None):
        super().__init__()
        self.module, self.lr, self.weights = module, lr, weights

    def clone(self):
        return MAML(copy.copy(self.module), self.lr, dict(self.module.named_parameters()))

    def forward(self, x):
        return functional_call(self.module, self.weights, (x,))

    def adapt(self, loss):
        gradients = torch.autograd.grad(loss, list(self.weights.values()), create_graph=True)
        self.weights = {n: w - self.lr * g for (n, w), g in zip(self.weights.items(), gradients, strict=True)}


def test_learn2learn_is_called_as_it_documents(monkeypatch):
    stand_in = ModuleType("learn2learn")
    stand_in.__spec__ = ModuleSpec("learn2learn", None)
    stand_in.algorithms = ModuleType("algorithms")
    stand_in.algorithms.MAML = MAML
    monkeypatch.setitem(sys.modules, "learn2learn", stand_in)
    it = subject("SinusoidMLP", 3).double()
    ours = torch.cat([g.flatten() for g in it.by_engine("loop")()])
    theirs = torch.cat([g.flatten() for g in peers.learn2learn_alone(it)(it.x, it.y)])
    torch.testing.assert_close(theirs, ours, rtol=1e-9, atol=1e-12)


def test_a_compiled_gradient_is_put_together_rightly(monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda function, dynamic: function)  # minutes
    it = subject("SinusoidMLP", 3).double()
    ours = torch.cat([g.flatten() for g in it.by_engine("loop")()])
    theirs = torch.cat([g.flatten() for g in peers.torch_compile(it)(it.x, it.y)])
    torch.testing.assert_close(theirs, ours, rtol=1e-9, atol=1e-12)


def test_ways_take_turns_and_warm_ups_do_not_count():
    calls, ticks = [], iter(range(100))
    ways = {name: lambda name=name: calls.append(name) for name in "ab"}
    seconds = interleaved(ways, 2, lambda: float(next(ticks)), "here", warm_ups=1)
    assert "".join(calls) == "ababab"
    assert seconds == {"a": [1.0, 1.0], "b": [1.0, 1.0]}


def test_the_report_has_a_row_for_each_way_and_says_load_and_machine(monkeypatch):
    monkeypatch.setattr(engines, "SUBJECTS", ("SinusoidMLP",))
    monkeypatch.setattr(engines, "TASKS", 2)
    monkeypatch.setattr(engines, "TASK_COUNTS", (1, 2))
    monkeypatch.setattr(engines, "peak_memory", lambda way, sizes: [12.0 for _ in sizes])
    monkeypatch.setattr(engines, "matmul_rate", lambda clock, device: 1e11)
    monkeypatch.setattr(engines, "load", lambda: "3.5")
    monkeypatch.setattr(engines, "peers_of", lambda name, it, compiled: ({ALONE: small(name)[0][ALONE]}, ["JAX: no."]))
    lines = list(engines.report(repeats=1, threads=[1]))
    rows = {line.split(" | ")[0].strip("| "): line.count("|") for line in lines if line.startswith("|")}
    assert {ALONE, "batched", "batched, 3 seeds in one pass", "higher", "loop", "vmap"} <= set(rows)
    assert rows["batched"] == 8  # its name, two columns for each T, share and difference
    assert "JAX: no." in lines
    assert any("end of these timings: 3.5." in line for line in lines)
    assert any(line.startswith("Machine: ") and "torch" in line for line in lines)


def numbers(count):
    return lambda: torch.ones(count)


def test_memory_is_what_a_call_adds_at_most():
    assert processes.peaks(numbers, [{"count": 16 * 2**20}]) == [pytest.approx(64, abs=4)]


def test_where_it_is_is_said_a_line_a_place(capsys, monkeypatch):
    monkeypatch.setattr("ftml_bench.speed.measuring._place", "")
    ways = dict.fromkeys(("a", "b"), lambda: None)
    for place in ("here", "there"):
        interleaved(ways, 3, lambda: 0.0, place)
        at("")  # a line of the table is printed
    assert capsys.readouterr().err == "here\nthere\n"
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    at("here", ": a, repeat 1 of 3")
    at("")
    assert capsys.readouterr().err == "\r\x1b[Khere: a, repeat 1 of 3\r\x1b[K"
