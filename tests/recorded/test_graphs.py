"""What surrounds a CUDA graph: here on the CPU, with graphs that call what they would replay."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from ftml_bench.recorded import graphs
from ftml_bench.recorded.graphs import Graphs, Recording


class Called:
    """In the place of a CUDA graph."""

    def __init__(self, replay):
        self.replay = replay


class CalledRecording(Recording):
    """Its passes work on tensors of their own; the backward pass uses up what the forward pass kept, as in a graph."""

    def __init__(self, function, inputs, wanted):
        self.inputs = [t.detach().clone().requires_grad_(w) for t, w in zip(inputs, wanted, strict=True)]
        self.wanted, self.turn = wanted, 0
        self.leaves = [t for t in self.inputs if t.requires_grad]
        self.outputs = function(*self.inputs).detach()
        self.cotangent = torch.empty_like(self.outputs)
        self.gradients = [torch.empty_like(t) for t in self.leaves]
        self._forward, self._backward = Called(lambda: self._run(function)), Called(self._run_back)

    def _run(self, function):
        with torch.enable_grad():
            self.kept = function(*self.inputs)
        self.outputs.copy_(self.kept.detach())

    def _run_back(self):
        for target, gradient in zip(
            self.gradients, torch.autograd.grad(self.kept, self.leaves, self.cotangent), strict=True
        ):
            target.copy_(gradient)


@pytest.fixture
def recorded(monkeypatch):
    monkeypatch.setattr(graphs, "Recording", CalledRecording)
    monkeypatch.setattr(graphs, "why_not_recorded", lambda device: "")
    return Graphs()


def loss_of(recorded, weight, x, function=lambda w, x: torch.tanh(x @ w)):
    return recorded.call(function, [weight, x]).square().sum()


def test_two_backward_passes_of_one_forward_pass_give_the_same(recorded):
    weight, x = torch.randn(3, 2, requires_grad=True), torch.randn(4, 3)
    loss = loss_of(recorded, weight, x)
    (first,) = torch.autograd.grad(loss, [weight], retain_graph=True)
    (second,) = torch.autograd.grad(loss, [weight])
    (expected,) = torch.autograd.grad(torch.tanh(x @ weight).square().sum(), [weight])
    assert torch.equal(first, second)
    assert torch.allclose(first, expected)


def test_forward_passes_before_their_backward_passes_do_not_mix(recorded):
    weight, x, other = torch.randn(3, 2, requires_grad=True), torch.randn(4, 3), torch.randn(4, 3)
    (found,) = torch.autograd.grad(loss_of(recorded, weight, x) + 2 * loss_of(recorded, weight, other), [weight])
    plain = torch.tanh(x @ weight).square().sum() + 2 * torch.tanh(other @ weight).square().sum()
    assert torch.allclose(found, torch.autograd.grad(plain, [weight])[0])


def test_a_pass_that_is_taken_once_more_draws_the_same(recorded):
    weight, x = torch.randn(3, 20, requires_grad=True), torch.randn(4, 3)
    dropout = nn.Dropout(0.5)

    def function(w, x):
        return dropout(x @ w)

    loss_of(recorded, weight, x, function)  # recorded
    torch.manual_seed(1)
    loss = loss_of(recorded, weight, x, function)
    loss_of(recorded, weight, x.flip(0), function)
    state = torch.get_rng_state()
    (found,) = torch.autograd.grad(loss, [weight])
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(1)
    (expected,) = torch.autograd.grad(dropout(x @ weight).square().sum(), [weight])
    assert torch.allclose(found, expected)


def test_outputs_and_gradients_that_are_kept_are_not_overwritten(recorded):
    weight, x = torch.randn(3, 2, requires_grad=True), torch.randn(4, 3)
    outputs = recorded.call(torch.matmul, [x, weight])
    (gradient,) = torch.autograd.grad(outputs.square().sum(), [weight])
    copies = outputs.detach().clone(), gradient.clone()
    again = recorded.call(torch.matmul, [x.flip(0), weight])
    torch.autograd.grad(again.square().sum(), [weight])
    assert torch.equal(outputs, copies[0])
    assert torch.equal(gradient, copies[1])


def test_recordings_are_made_for_each_form_and_few_are_kept(recorded):
    for n in (1, 2, 3, 2, 1):
        recorded.call(torch.tanh, [torch.randn(n)])
    assert len(recorded._recorded) == 3
    recorded.call(torch.tanh, [torch.randn(1)], constants=("other",))
    assert len(recorded._recorded) == 4
    for n in range(4, 20):
        recorded.call(torch.tanh, [torch.randn(n)])
    assert len(recorded._recorded) == graphs.MOST_RECORDINGS
    for n in range(20, 20 + graphs.MOST_IN_ALL):
        assert recorded.call(torch.tanh, [torch.zeros(n)]).shape == (n,)
    assert "change all the time" in recorded.note
    assert recorded._recorded == {}


def test_what_cannot_be_recorded_is_called_and_said(monkeypatch, recorded):
    def fail(*_):
        raise RuntimeError("operation not permitted when stream is capturing\nmore")

    monkeypatch.setattr(graphs, "Recording", fail)
    assert torch.equal(recorded.call(torch.tanh, [torch.ones(2)]), torch.ones(2).tanh())
    assert recorded.note == "no CUDA graph (operation not permitted when stream is capturing)"


def test_a_call_that_is_wrong_in_itself_turns_nothing_off(recorded):
    with pytest.raises(RuntimeError):
        recorded.call(torch.matmul, [torch.ones(2, 3), torch.ones(2, 3)])
    assert recorded.note == ""
    recorded.call(torch.tanh, [torch.ones(2)])
    assert len(recorded._recorded) == 1
