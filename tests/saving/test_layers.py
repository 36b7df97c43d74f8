"""What layers, criteria and optimisers hold beside saved tensors comes back, or is refused by name."""

import random
from collections import deque
from functools import partial

import numpy as np
import pytest
import torch
from avalanche.training.plugins import EvaluationPlugin
from torch import nn

from ftml_bench.errors import UsageError
from ftml_bench.saving import load, save
from tests.saving.criteria import Criterion, CriterionThatIsNoModule
from tests.saving.strategies import build, continued, dropout_net, go, outcome


class Net(nn.Module):
    """A linear layer whose inputs something of its own scales, which changes at each call in training."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(588, 10))
        self.start()

    def start(self):
        pass

    def factor(self, x):
        raise NotImplementedError

    def forward(self, x):
        return self.body(x * self.factor(x)) if self.training else self.body(x)


class Counts(Net):
    def start(self):
        self.calls = 0

    def factor(self, x):
        self.calls += 1
        return 1 / self.calls


class CountsInAList(Net):
    def start(self):
        self.calls = {"so far": [0]}

    def factor(self, x):
        self.calls["so far"][0] += 1
        return 1 / self.calls["so far"][0]


class LastMeans(Net):
    def start(self):
        self.means = deque(maxlen=2)

    def factor(self, x):
        self.means.append(float(x.mean()))
        return 1 + sum(self.means)


class UnsavedBuffer(Net):
    def start(self):
        self.register_buffer("mean", torch.zeros(()), persistent=False)

    def factor(self, x):
        self.mean.lerp_(x.mean(), 0.5)
        return 1 + self.mean


class ReadsANumberAtFirst(Net):
    """Its first calls cannot be vectorised, so that the engine is another than the one for later calls."""

    def start(self):
        self.calls = 0

    def factor(self, x):
        self.calls += 1
        return 1 + 0 * x.flatten()[0].item() if self.calls < 4 else 1


class BufferOfLater(Net):
    def start(self):
        self.register_buffer("mean", None, persistent=False)

    def factor(self, x):
        self.mean = x.mean() if self.mean is None else self.mean.lerp(x.mean(), 0.5)
        return 1 + self.mean


class TensorInAnAttribute(Net):
    def start(self):
        self.mean = torch.zeros(())

    def factor(self, x):
        self.mean = self.mean.lerp(x.mean(), 0.5)
        return 1 + self.mean


class SharedTensor(Net):
    """Two layers look at one tensor, which is no buffer and changes in place."""

    def start(self):
        self.mean = torch.zeros(())
        self.seen = self.mean

    def factor(self, x):
        self.mean.lerp_(x.mean(), 0.5)
        return 1 + self.seen


class ArrayInAnAttribute(Net):
    def start(self):
        self.mean = np.zeros(1, np.float32)

    def factor(self, x):
        self.mean += float(x.mean())
        return 1 / (1 + float(self.mean[0]))


class DrawsByTorch(Net):
    def start(self):
        self.rng = torch.Generator().manual_seed(1)

    def factor(self, x):
        return torch.rand((), generator=self.rng)


class DrawsByNumPy(Net):
    def start(self):
        self.rng = np.random.default_rng(1)

    def factor(self, x):
        return self.rng.random()


class DrawsByOldNumPy(Net):
    def start(self):
        self.rng = np.random.RandomState(1)

    def factor(self, x):
        return self.rng.rand()


class DrawsByPython(Net):
    def start(self):
        self.rngs = [random.Random(1)]

    def factor(self, x):
        return self.rngs[0].random()


class HiddenTeacher(Net):
    """A module that follows the model and is none of its layers; and a list of its own layers."""

    def start(self):
        self.teacher = [nn.Linear(588, 10).requires_grad_(False)]
        self.own = [self.body, self.body[1].weight]

    def factor(self, x):
        with torch.no_grad():
            self.teacher[0].weight.lerp_(self.own[1], 0.5)
        return 1 + self.teacher[0].weight.mean()


class HoldsAnotherForm(Net):
    """An attribute that is a weight's own memory when it is built, and a tensor of its own later."""

    def start(self):
        self.weight, self.shape = self.body[1].weight.data, None

    def factor(self, x):
        self.weight = self.body[1].weight.detach() / 2
        self.shape = x.shape
        return 1 + self.weight.mean() * self.shape.numel()


NETS = [
    *(Counts, CountsInAList, LastMeans, UnsavedBuffer, BufferOfLater, TensorInAnAttribute, SharedTensor),
    *(ArrayInAnAttribute, DrawsByTorch, DrawsByNumPy, DrawsByOldNumPy, DrawsByPython, HiddenTeacher, HoldsAnotherForm),
]


def trained(net, digits, stream, tmp_path, learner="TrainOnEverything", **parts):
    """The end of a run not stopped, and of one that was saved after three arrivals."""

    def built():
        made = {name: make() for name, make in parts.items()}
        return build(learner, model=net(), optimizer="momentum", evaluator=EvaluationPlugin(), **made)

    whole = go(built(), digits, stream[:3])
    save(whole, tmp_path / "state.pt")
    go(whole, digits, stream[3:5])
    return outcome(continued(tmp_path / "state.pt", built, digits, stream[:5])), outcome(whole)


@pytest.mark.parametrize("net", NETS)
def test_what_a_layer_holds_beside_saved_tensors_comes_back(net, digits, stream, tmp_path):
    again, whole = trained(net, digits, stream, tmp_path)
    assert again == whole


class Tempered(nn.CrossEntropyLoss):
    """A criterion that learns."""

    def __init__(self):
        super().__init__()
        self.temperature = nn.Parameter(torch.ones(()))

    def forward(self, outputs, targets):
        return super().forward(outputs / self.temperature, targets)


@pytest.mark.parametrize("learner", ["FTML", "TrainOnEverything"])
def test_a_criterion_that_learns_goes_on(learner, digits, stream, tmp_path):
    def built():
        criterion, model = Tempered(), dropout_net()
        strategy = build(learner, model=model, optimizer="momentum", evaluator=EvaluationPlugin(), criterion=criterion)
        strategy.optimizer.add_param_group({"params": [criterion.temperature], "lr": 0.5})
        return strategy

    whole = go(built(), digits, stream[:3])
    save(whole, tmp_path / "state.pt")
    go(whole, digits, stream[3:5])
    again = continued(tmp_path / "state.pt", built, digits, stream[:5])
    assert again._criterion.temperature != 1
    assert outcome(again) == outcome(whole)


@pytest.mark.parametrize("criterion", [Criterion, CriterionThatIsNoModule])
def test_what_a_criterion_holds_comes_back(criterion, digits, stream, tmp_path):
    again, whole = trained(dropout_net, digits, stream, tmp_path, criterion=criterion)
    assert again == whole


class Noisy(torch.optim.SGD):
    """Steps that shrink and are disturbed, with weights that follow slowly."""

    def __init__(self, parameters, lr, bound=1.0):
        super().__init__(parameters, lr)
        self.taken, self.bound, self.rng = 0, bound, torch.Generator().manual_seed(1)
        self.slow = [p.detach().clone() for p in self.param_groups[0]["params"]]

    @torch.no_grad()
    def step(self, closure=None):
        super().step(closure)
        self.taken += 1
        for p, slow in zip(self.param_groups[0]["params"], self.slow, strict=True):
            slow.lerp_(p, 0.5)
            p.copy_(slow + torch.randn(p.shape, generator=self.rng) / self.taken)


class Wraps(torch.optim.SGD):
    """Steps by another optimiser, with a state of its own."""

    def __init__(self, parameters, lr):
        super().__init__(parameters, lr)
        self.inner = torch.optim.SGD(self.param_groups[0]["params"], lr, momentum=0.9)

    def step(self, closure=None):
        self.inner.step()


def with_optimizer(make):
    model = dropout_net()
    learner = build("TrainOnEverything", model=model, evaluator=EvaluationPlugin())
    return type(learner)(
        model=model, optimizer=make(model.parameters(), lr=0.05), train_mb_size=20, steps=2, eval_mb_size=50
    )


def test_what_an_optimiser_holds_comes_back(digits, stream, tmp_path):
    whole = go(with_optimizer(Noisy), digits, stream[:3])
    save(whole, tmp_path / "state.pt")
    go(whole, digits, stream[3:5])
    again = continued(tmp_path / "state.pt", lambda: with_optimizer(Noisy), digits, stream[:5])
    assert outcome(again) == outcome(whole)
    with pytest.raises(UsageError, match=r"^optimiser Noisy was saved with bound=1\.0; here it is 2\.0$"):
        load(with_optimizer(partial(Noisy, bound=2.0)), tmp_path / "state.pt", stream)


# -- what cannot be saved


class Clock:
    def __init__(self):
        self.time = 0


class HoldsAClock(Net):
    def start(self):
        self.clock = Clock()

    def factor(self, x):
        self.clock.time += 1
        return 1 / self.clock.time


class HoldsANewClock(Net):
    def factor(self, x):
        self.clock = Clock()
        return 1


class HoldsAnIterator(Net):
    def start(self):
        self.numbers = None

    def factor(self, x):
        self.numbers = self.numbers or iter(range(1, 100))
        return 1 / next(self.numbers)


class ExchangesAFunction(Net):
    def start(self):
        self.activation = torch.tanh

    def factor(self, x):
        self.activation = torch.relu
        return 1


@pytest.mark.parametrize(
    ("net", "message"),
    [
        (HoldsAClock, r"HoldsAClock cannot be saved: its clock \(Clock\) has changed since the strategy was built"),
        (HoldsANewClock, r"HoldsANewClock cannot be saved: its clock \(Clock\) has changed since"),
        (HoldsAnIterator, r"HoldsAnIterator cannot be saved: its numbers \(range_iterator\) has changed since"),
        (ExchangesAFunction, r"ExchangesAFunction cannot be saved: its activation \(builtin_function_or_method\) has"),
    ],
)
def test_a_layer_that_holds_what_changes_and_cannot_be_saved_is_refused(net, message, digits, stream, tmp_path):
    strategy = build("TrainOnEverything", model=net(), evaluator=EvaluationPlugin())
    save(strategy, tmp_path / "state.pt")  # it has not changed yet
    go(strategy, digits, stream[:2])
    with pytest.raises(UsageError, match=f"^{message}") as error:
        save(strategy, tmp_path / "state.pt")
    assert "\n" not in str(error.value)


def test_an_optimiser_round_one_with_a_state_is_refused(digits, stream, tmp_path):
    strategy = go(with_optimizer(Wraps), digits, stream[:2])
    with pytest.raises(UsageError, match=r"^Wraps cannot be saved: its inner \(SGD\) has changed since"):
        save(strategy, tmp_path / "state.pt")


def test_tensors_that_are_one_only_at_first_are_refused(digits, stream, tmp_path):
    class Two(Net):
        def start(self):
            self.mean = self.before = torch.zeros(())

        def factor(self, x):
            self.before, self.mean = self.mean, self.mean.lerp(x.mean(), 0.5)
            return 1 + self.before

    save(go(build("TrainOnEverything", model=Two()), digits, stream[:2]), tmp_path / "state.pt")
    with pytest.raises(UsageError, match=r"^Two cannot be restored: its \w+ is a tensor that it held twice"):
        load(build("TrainOnEverything", model=Two()), tmp_path / "state.pt", stream)


def test_a_compiled_model_comes_back(digits, stream, tmp_path):
    def built():
        return build("TrainOnEverything", model=torch.compile(dropout_net(), backend="eager"))

    save(built(), tmp_path / "state.pt")
    assert load(built(), tmp_path / "state.pt", stream) == 0


def test_the_engine_that_was_found_goes_on(digits, stream, tmp_path):
    whole = go(build(model=ReadsANumberAtFirst()), digits, stream[:2])
    found = whole.chosen
    assert found["engine"] == "loop"
    save(whole, tmp_path / "state.pt")
    go(whole, digits, stream[2:])
    again = continued(tmp_path / "state.pt", lambda: build(model=ReadsANumberAtFirst()), digits, stream)
    assert again.chosen == whole.chosen == found
    assert outcome(again) == outcome(whole)
    anew = go(build(model=ReadsANumberAtFirst()), digits, stream[:1])
    anew.engine.go_on_with("of a later version", [])
    assert anew.chosen == found
