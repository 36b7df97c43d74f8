"""Models, criteria and data that a learner cannot take: one line, which says what it is about."""

import threading

import pytest
import torch
import torch.nn.functional as F
from avalanche.core import SupervisedPlugin
from avalanche.training import Naive
from torch import nn
from torch.utils.data import TensorDataset

from ftml_bench.errors import UsageError
from ftml_bench.strategies import (
    FOML,
    FTML,
    FTMLVS,
    IMAML,
    MOML,
    FollowTheLeader,
    FromScratch,
    Reptile,
    TaskAverages,
    TrainOnEverything,
)
from tests.strategies.avalanche.scripts import stream, tensors, train

SETTINGS = {
    FTML: {"meta_batch_size": 2, "support_size": 3, "query_size": 3},
    Reptile: {"meta_batch_size": 2, "support_size": 3},
}


def built(cls, model, **settings):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    given = {"train_mb_size": 8, "steps": 2, "evaluator": None, **SETTINGS.get(cls, {}), **settings}
    return cls(model=model, optimizer=optimizer, **given)


def rounds(change=lambda x, y: (x, y), sizes=(20, 20)):
    return stream(*(TensorDataset(*change(*tensors(n, seed=k))) for k, n in enumerate(sizes)))


def stack():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 6))


def refused(call):
    with pytest.raises(UsageError) as found:
        call()
    assert "\n" not in str(found.value)
    return str(found.value)


class Around(nn.Module):
    """A model and something beside it."""

    def __init__(self):
        super().__init__()
        self.inner = stack()

    def forward(self, x):
        return self.inner(x)


@pytest.mark.parametrize("cls", [FTML, FollowTheLeader, Reptile])
def test_a_model_that_cannot_be_copied(cls):
    model = Around()
    model.inner[1].lock = threading.Lock()
    learner, benchmark = built(cls, model), rounds()

    def run():
        train(learner, benchmark)
        learner.eval(benchmark.test_stream)

    line = "Around cannot be copied, as evaluations do: its attribute inner.1.lock: cannot pickle '_thread.lock' object"
    assert refused(run) == line


def test_outputs_of_several_tasks_that_are_no_tensor():
    class Pair(Around):
        def forward(self, x):
            return self.inner(x), x

    learner = built(Reptile, Pair(), criterion=lambda outputs, y: F.cross_entropy(outputs[0], y))
    line = "the model gives a tuple: expected one tensor of outputs in a meta-batch of several tasks"
    assert refused(lambda: train(learner, rounds())) == line


class Complex(nn.Module):
    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.randn(6, 6, dtype=torch.complex64))

    def forward(self, x):
        return (x.to(torch.complex64) @ self.w).abs()


@pytest.mark.parametrize("cls", [Reptile, TaskAverages, MOML, FOML, IMAML, FTMLVS])
def test_complex_parameters(cls):
    assert refused(lambda: built(cls, Complex())).startswith(f"{cls.__name__} takes real parameters, and w is complex")


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (
            lambda x, y: (x.double(), y),
            "RuntimeError: mat1 and mat2 must have the same dtype, but got Double",
        ),
        (lambda x, y: (x.long(), y), "RuntimeError: mat1 and mat2 must have the same dtype, but got Long"),
        (lambda x, y: (x, y.int()), "RuntimeError: expected "),
        (lambda x, y: (x, y + 1), "IndexError: Target 6 is out of bounds."),
    ],
    ids=["double", "whole numbers", "classes of 32 bits", "a class too many"],
)
@pytest.mark.parametrize("cls", [FTML, Reptile])
def test_data_of_another_type(cls, change, line):
    found = refused(lambda: train(built(cls, stack()), rounds(change)))
    assert found.startswith(f"no engine can treat Sequential: plainly called it raises {line}")


@pytest.mark.parametrize("cls", [FTML, FollowTheLeader])
def test_torchscript_where_inner_steps_are_taken(cls):
    model = torch.jit.script(stack())
    assert "is TorchScript, which takes no other weights than its own" in refused(lambda: built(cls, model))
    train(built(TrainOnEverything, model), rounds())


class RunningMean(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.tensor(1.0))

    def forward(self, outputs, y):
        loss = F.cross_entropy(outputs, y)
        self.mean.data.mul_(0.9).add_(0.1 * loss.detach())
        return loss / self.mean


class Counting:
    calls = 0

    def __call__(self, outputs, y):
        self.calls += 1
        return F.cross_entropy(outputs, y) / self.calls


@pytest.mark.parametrize("criterion", [RunningMean(), Counting()], ids=["buffer", "attribute"])
def test_a_criterion_that_calls_change(criterion):
    line = refused(lambda: train(built(FTML, stack(), criterion=criterion), rounds()))
    assert line.startswith(f"the criterion {type(criterion).__name__} gives another loss when it is called again")


def test_a_criterion_that_only_counts_is_none():
    class Harmless(Counting):
        def __call__(self, outputs, y):
            self.calls += 1
            return F.cross_entropy(outputs, y)

    train(built(FTML, stack(), criterion=Harmless()), rounds())


LEARNERS = [FTML, Reptile, TrainOnEverything, FromScratch, FollowTheLeader, MOML, TaskAverages, FOML]


@pytest.mark.parametrize("cls", LEARNERS)
def test_a_round_without_data(cls):
    benchmark = rounds(sizes=(20, 0))
    learner = built(cls, stack())
    learner.train(benchmark.train_stream[0], eval_streams=[])
    state = [p.detach().clone() for p in learner.model.parameters()]
    for _ in range(2):  # with Avalanche's attributes the second time is another
        line = refused(lambda: learner.train(benchmark.train_stream[1], eval_streams=[]))
        assert line == "experience 1 has no data to train on: expected at least one point"
    assert all(map(torch.equal, state, learner.model.parameters()))
    assert learner.buffer.rounds.keys() == {0}
    for _ in range(2):  # as with Naive, nothing is evaluated
        learner.eval(benchmark.test_stream)


@pytest.mark.parametrize("cls", [FTML, TrainOnEverything])
def test_training_without_gradients(cls):
    learner, benchmark = built(cls, stack()), rounds()
    for without in (torch.no_grad, torch.inference_mode):
        with without():
            line = refused(lambda: learner.train(benchmark.train_stream[0], eval_streams=[]))
        assert line == "train was called without gradients, as inside torch.no_grad(): expected a call outside"
    learner.train(benchmark.train_stream[0], eval_streams=[])


class GradientPenalty(SupervisedPlugin):
    def before_backward(self, strategy, **kwargs):
        gradients = torch.autograd.grad(strategy.loss, list(strategy.model.parameters()), create_graph=True)
        strategy.loss = strategy.loss + 0.1 * sum(g.square().sum() for g in gradients)


@pytest.mark.parametrize("cls", [FromScratch, TrainOnEverything])
def test_a_penalty_on_gradients_of_joint_learners_is_that_of_naive(cls):
    found = []
    for kind in (cls, Naive):
        model = stack().double()
        settings = {"train_mb_size": 20, "plugins": [GradientPenalty()], "evaluator": None}
        more = {} if kind is Naive else {"steps": 1, "seed": 0}
        learner = kind(model=model, optimizer=torch.optim.SGD(model.parameters(), lr=0.5), **settings, **more)
        learner.train(rounds(lambda x, y: (x.double(), y), sizes=(20,)).train_stream[0], eval_streams=[])
        found.append([p.detach() for p in model.parameters()])
    assert all(torch.allclose(*pair, rtol=1e-9, atol=1e-12) for pair in zip(*found, strict=True))
