"""An evaluation changes nothing and leaks nothing; the same seed gives the same numbers."""

import random
from copy import deepcopy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from avalanche.core import SupervisedPlugin

from ftml_bench.benchmarks import RainbowDigits, arrivals
from ftml_bench.models import TaskBatchNorm
from ftml_bench.protocol import evaluations, held_out
from tests.strategies.learners import build, every_learner, losses, parameters, small_net

# -- an evaluation changes nothing


@every_learner
def test_evaluating_after_every_arrival_or_never_ends_in_the_same_parameters(name, digits):
    evaluated, plain = build(name), build(name)
    global_state = torch.get_rng_state()
    for round in digits.train_stream:
        for arrival in arrivals(round, 20):
            evaluated.train(arrival, eval_streams=[])
            evaluated.eval(digits.test_stream)
    torch.set_rng_state(global_state)
    for round in digits.train_stream:
        for arrival in arrivals(round, 20):
            plain.train(arrival, eval_streams=[])
    assert torch.equal(parameters(evaluated), parameters(plain))
    for a, b in zip(evaluated.model.buffers(), plain.model.buffers(), strict=True):
        assert torch.equal(a, b)


@every_learner
def test_an_evaluation_leaves_optimiser_random_states_and_the_iteration_as_they_were(name, digits):
    strategy = build(name)
    strategy.train(digits.train_stream[0], eval_streams=[])
    strategy.train(digits.train_stream[1], eval_streams=[])
    strategy.mbatch, strategy.mb_output = [torch.ones(1)], torch.ones(2)
    before = deepcopy((strategy.model.state_dict(), strategy.optimizer.state_dict(), strategy.rng.get_state()))
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()
    iteration = strategy.mbatch, strategy.mb_output, strategy.loss

    strategy.eval(digits.test_stream)

    after = (strategy.model.state_dict(), strategy.optimizer.state_dict(), strategy.rng.get_state())
    torch.testing.assert_close(after, before, rtol=0, atol=0)
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]
    assert (np.random.get_state()[1] == states[2]).all()
    assert (strategy.mbatch, strategy.mb_output, strategy.loss) == iteration


class Changing(torch.nn.Module):
    """A loss with buffers, a counter and a list that change when it is called, and a generator of its own."""

    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.ones(()))
        self.register_buffer("last", torch.ones(()), persistent=False)
        self.calls, self.losses, self.rng = 0, [0.0], torch.Generator().manual_seed(0)

    def forward(self, outputs, y):
        loss = F.cross_entropy(outputs, y)
        self.mean.lerp_(loss.detach(), 0.1)
        self.last = loss.detach() + self.last / 2
        self.calls += 1
        self.losses.append(float(loss) + self.losses[-1] / 2)
        drawn = torch.rand((), generator=self.rng)
        return loss * (self.mean + self.last + 1 / self.calls + self.losses[-1] + drawn)


class ChangingFunction:
    """One that is no module."""

    def __init__(self):
        self.calls, self.rng = 0, torch.Generator().manual_seed(0)

    def __call__(self, outputs, y):
        self.calls += 1
        return F.cross_entropy(outputs, y) * (1 / self.calls + torch.rand((), generator=self.rng))


class ChangingModel(torch.nn.Module):
    """A model with a counter, and a buffer that changes in evaluations, too."""

    def __init__(self):
        super().__init__()
        self.net, self.calls = small_net(), 0
        self.register_buffer("mean", torch.zeros(()))

    def forward(self, x):
        self.calls += 1
        self.mean.lerp_(x.mean(), 0.1)
        return self.net(x - self.mean / self.calls)


@pytest.mark.parametrize("part", [Changing, ChangingFunction, ChangingModel])
@pytest.mark.parametrize("name", ["TrainOnEverything", "FromScratch", "FollowTheLeader", "FollowTheLeader adam"])
def test_evaluations_leave_a_criterion_or_model_that_changes_when_it_is_called(part, name, digits):
    ends = []
    for evaluated in (0, 2):
        model = part() if part is ChangingModel else small_net()
        strategy = build(name, model=model, criterion=F.cross_entropy if part is ChangingModel else part())
        for round in digits.train_stream:
            for arrival in arrivals(round, 20):
                strategy.train(arrival, eval_streams=[])
                for _ in range(evaluated):
                    strategy.eval(digits.test_stream)
        ends.append(parameters(strategy))
    assert torch.equal(*ends)


@pytest.mark.parametrize("name", ["FTML", "FollowTheLeader", "FollowTheLeader adam"])
def test_an_evaluation_leaves_no_gradient_in_what_a_criterion_closes_over(name, digits):
    temperature = torch.nn.Parameter(torch.tensor(0.3))
    criterion = lambda outputs, y: F.cross_entropy(outputs * temperature.exp(), y)  # noqa: E731
    strategy = build(name, criterion=criterion)
    for round in digits.train_stream[:2]:
        strategy.train(round, eval_streams=[])
    temperature.grad = torch.tensor(2.0)
    strategy.eval(digits.test_stream)
    assert float(temperature.grad) == 2


@pytest.mark.parametrize("name", ["FollowTheLeader", "TrainOnEverything"])
def test_an_evaluation_leaves_generators_of_the_model_as_they_were(name, digits):
    class Noisy(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.generator = torch.Generator().manual_seed(3)

        def forward(self, x):
            return x + 0.01 * torch.randn(x.shape, generator=self.generator)

    model = torch.nn.Sequential(small_net(), Noisy())
    strategy = build(name, model=model)
    strategy.train(digits.train_stream[0], eval_streams=[])
    before = model[1].generator.get_state()
    strategy.eval(digits.test_stream)
    assert torch.equal(model[1].generator.get_state(), before)


def test_an_error_inside_an_evaluation_leaves_the_strategy_in_training_order(digits):
    class Breaks(SupervisedPlugin):
        def after_eval_forward(self, strategy, **kwargs):
            raise RuntimeError("as plugins do")

    strategy = build("FTML")
    strategy.train(digits.train_stream[0], eval_streams=[])
    model = strategy.model.train()
    strategy.is_training = True
    strategy.plugins.insert(0, Breaks())
    with pytest.raises(RuntimeError, match="as plugins do"):
        strategy.eval(digits.test_stream)
    assert strategy.model is model
    assert strategy.model.training
    assert strategy.is_training


@every_learner
def test_a_plugin_that_evaluates_inside_an_iteration_does_no_harm(name, digits):
    class Evaluates(SupervisedPlugin):
        def after_training_iteration(self, strategy, **kwargs):
            strategy.eval([digits.test_stream[0]])

    disturbed, plain = build(name, plugins=[Evaluates()]), build(name)
    for strategy in (disturbed, plain):
        for round in digits.train_stream[:2]:
            strategy.train(round, eval_streams=[])
    assert torch.equal(parameters(disturbed), parameters(plain))


# -- no leaks


@every_learner
def test_poisoned_future_data_and_held_out_labels_change_no_prediction(name):
    class Outputs(SupervisedPlugin):
        def __init__(self):
            super().__init__()
            self.seen = []

        def after_eval_forward(self, strategy, **kwargs):
            self.seen.append(strategy.mb_output.clone())

    seen = []
    for poison in (False, True):
        digits = RainbowDigits(rounds=3, images_per_round=40, held_out_per_round=30)
        outputs = Outputs()
        strategy = build(name, plugins=[outputs])
        for t, round in enumerate(digits.train_stream):
            pieces = list(arrivals(round, 20))
            for i, arrival in enumerate(pieces):
                if poison:
                    coming = [p.stacked for p in pieces[i + 1 :]] + [e.stacked for e in digits.train_stream[t + 1 :]]
                    kept = [(s, s.x[s.rows].clone(), s.y.clone()) for s in coming]
                    for s in coming:
                        s.x[s.rows] = 255
                        s.y.zero_()
                    held_out(digits, round).stacked.y.fill_(0)
                strategy.train(arrival, eval_streams=[])
                strategy.eval([held_out(digits, round)])
                if poison:
                    for s, x, y in kept:
                        s.x[s.rows] = x
                        s.y.copy_(y)
        seen.append(torch.cat(outputs.seen))
    assert torch.equal(*seen)


@every_learner
def test_the_order_of_evaluations_changes_nothing(name, digits):
    strategy = build(name)
    for round in digits.train_stream:
        strategy.train(round, eval_streams=[])

    def outputs(order):
        found = {}

        class Outputs(SupervisedPlugin):
            def after_eval_forward(self, strategy, **kwargs):
                found[strategy.experience.current_experience] = strategy.mb_output.clone()

        strategy.plugins.insert(0, Outputs())
        strategy.eval([digits.test_stream[t] for t in order])
        strategy.plugins.pop(0)
        return found

    first, second = outputs([0, 1, 2]), outputs([2, 0, 1, 2])
    assert all(torch.equal(first[t], second[t]) for t in first)


def test_the_support_rule_gives_the_same_result_for_any_evaluation_batch_size(digits):
    results = []
    for size in (1, 7, 100):
        strategy = build("FTML", eval_mb_size=size)
        results.append([e.accuracy for e in evaluations(strategy, digits, 20)])
    assert results[0] == results[1] == results[2]


def test_an_unseen_task_is_predicted_without_adaptation_by_statistics_of_past_supports(digits):
    strategy = build("FTML")
    strategy.train(digits.train_stream[0], eval_streams=[])
    norm = next(m for m in strategy.model.modules() if isinstance(m, TaskBatchNorm))
    assert not torch.equal(norm.running_mean, torch.zeros_like(norm.running_mean))

    outputs = []

    class Outputs(SupervisedPlugin):
        def after_eval_forward(self, strategy, **kwargs):
            outputs.append(strategy.mb_output.clone())

    strategy.plugins.insert(0, Outputs())
    strategy.eval([digits.test_stream[2]])
    stacked = digits.test_stream[2].stacked
    model = deepcopy(strategy.model).eval()
    expected = model(stacked.take(torch.arange(len(stacked)))[0].float() / 255)
    assert torch.allclose(outputs[0], expected, atol=1e-6)


# -- one seed, one result; all start from the same


@every_learner
def test_the_same_seed_gives_the_same_numbers_and_another_seed_others(name, digits):
    assert losses(build(name, seed=1), digits) == losses(build(name, seed=1), digits)
    assert losses(build(name, seed=1), digits) != losses(build(name, seed=2), digits)
