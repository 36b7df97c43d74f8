"""FromScratch: every round anew, from its own data alone."""

import pytest
import torch
import torch.nn.functional as F
from avalanche.core import SupervisedPlugin
from torch import nn

from ftml_bench.benchmarks import arrivals
from ftml_bench.protocol import evaluations
from ftml_bench.strategies import FromScratch
from tests.strategies.learners import build, parameters, small_net


def test_from_scratch_starts_every_round_anew_and_trains_on_through_its_arrivals(digits):
    strategy = build("FromScratch")
    first = parameters(strategy)
    starts = []

    class Starts(SupervisedPlugin):
        def before_training_exp(self, strategy, **kwargs):
            starts.append((parameters(strategy), len(strategy.optimizer.state)))

    strategy.plugins.insert(0, Starts())
    list(evaluations(strategy, digits, 20))
    for i, (start, optimizer_entries) in enumerate(starts):
        assert torch.equal(start, first) == (i % 2 == 0)
        assert (optimizer_entries == 0) == (i % 2 == 0)


def test_from_scratch_draws_from_the_current_round_alone(digits):
    strategy = build("FromScratch")
    labels = set()

    class Labels(SupervisedPlugin):
        def before_forward(self, strategy, **kwargs):
            labels.update((strategy.current_round, int(t)) for t in strategy.mb_task_id)

    strategy.plugins.insert(0, Labels())
    list(evaluations(strategy, digits, 20))
    assert labels == {(0, 0), (1, 1), (2, 2)}


def test_from_scratch_with_a_step_factor_takes_so_many_times_the_steps(digits):
    strategy = build("FromScratch", step_factor=10)
    list(evaluations(strategy, digits, 20))
    assert strategy.cost.steps == 10 * 12


def test_from_scratch_may_draw_its_first_parameters_anew(digits):
    found = []
    for _ in range(2):
        strategy, starts = build("FromScratch", first_parameters="shuffled"), []

        class Starts(SupervisedPlugin):
            def before_training_exp(self, strategy, starts=starts, **kwargs):
                starts.append([p.detach().clone() for p in strategy.model.parameters()])

        strategy.plugins.insert(0, Starts())
        list(evaluations(strategy, digits, 20))
        found.append(starts[::2])  # of the rounds' first arrivals
    first, second, third = found[0]
    for of_first, of_second, of_third in zip(first, second, third, strict=True):
        assert torch.equal(of_first.flatten().sort().values, of_second.flatten().sort().values)
        if of_first.unique().numel() > 8:
            assert not torch.equal(of_first, of_second)
            assert not torch.equal(of_second, of_third)
    for one, again in zip(*found, strict=True):
        assert all(map(torch.equal, one, again))


@pytest.mark.parametrize("persistent", [True, False])
def test_from_scratch_starts_buffers_anew_also_those_that_are_not_saved(persistent, digits):
    class Centred(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = small_net()
            self.register_buffer("mean", torch.full((), 0.5), persistent=persistent)

        def forward(self, x):
            if self.training:
                self.mean.lerp_(x.mean().detach(), 0.1)
            return self.net(x - self.mean)

    strategy = build("FromScratch", model=Centred())
    buffer, starts = strategy.model.mean, []

    class Starts(SupervisedPlugin):
        def before_training_exp(self, strategy, **kwargs):
            starts.append(float(strategy.model.mean))

    strategy.plugins.insert(0, Starts())
    list(evaluations(strategy, digits, 20))
    assert starts[::2] == [0.5] * 3
    assert 0.5 not in starts[1::2]
    assert strategy.model.mean is buffer


def test_from_scratch_starts_a_layers_extra_state_anew(digits):
    class Counts(nn.Module):
        def __init__(self):
            super().__init__()
            self.net, self.calls = small_net(), 0

        def get_extra_state(self):
            return {"calls": self.calls}

        def set_extra_state(self, state):
            self.calls = state["calls"]

        def forward(self, x):
            self.calls += self.training
            return self.net(x)

    strategy = build("FromScratch", model=Counts())
    for round in digits.train_stream:
        strategy.train(round, eval_streams=[])
    assert 0 < strategy.model.calls <= strategy.cost.steps / 3


class Scaled(nn.Module):
    """A loss with a trained temperature and a buffer that counts."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(0.3))
        self.register_buffer("calls", torch.zeros((), dtype=torch.long))

    def forward(self, outputs, y):
        self.calls += 1
        return F.cross_entropy(outputs * self.scale.exp(), y)


@pytest.mark.parametrize("first", ["same", "shuffled"])
def test_from_scratch_starts_a_criterion_anew_too(first, digits):
    model, criterion = small_net(), Scaled()
    optimizer = torch.optim.SGD([*model.parameters(), *criterion.parameters()], lr=0.5)
    strategy = FromScratch(
        model=model, optimizer=optimizer, criterion=criterion, first_parameters=first, steps=2, evaluator=None
    )
    starts = []

    class Starts(SupervisedPlugin):
        def before_training_exp(self, strategy, **kwargs):
            starts.append((float(criterion.scale), int(criterion.calls)))

    strategy.plugins.insert(0, Starts())
    for round in digits.train_stream:
        for arrival in arrivals(round, 20):
            strategy.train(arrival, eval_streams=[])
    assert starts[::2] == [(float(torch.tensor(0.3)), 0)] * 3
    assert all(scale != starts[0][0] and calls == 2 for scale, calls in starts[1::2])


def test_from_scratch_resumed_knows_the_first_values_of_a_criterion(digits):
    def built():
        model, criterion = small_net(), Scaled()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
        return FromScratch(model=model, optimizer=optimizer, criterion=criterion, steps=2, evaluator=None)

    strategy, resumed = built(), built()
    with torch.no_grad():
        resumed._criterion.scale.fill_(7)
    strategy.train(digits.train_stream[0], eval_streams=[])
    resumed.load_state_dict(strategy.state_dict(), digits.train_stream[:1])
    resumed.train(digits.train_stream[1], eval_streams=[])
    assert float(resumed._criterion.scale) == float(torch.tensor(0.3))


def test_from_scratch_leaves_a_model_that_its_criterion_holds_to_itself(digits):
    class Penalised(nn.Module):
        def __init__(self, model):
            super().__init__()
            self.model = model

        def forward(self, outputs, y):
            return F.cross_entropy(outputs, y) + 1e-3 * sum(p.square().sum() for p in self.model.parameters())

    model = small_net()
    with_penalty = build("FromScratch", model=model, criterion=Penalised(model))
    assert not with_penalty.state_dict()["first_criterion"]
