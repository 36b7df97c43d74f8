"""FromScratch: every round anew, from its own data alone."""

import torch
from avalanche.core import SupervisedPlugin

from ftml_bench.protocol import evaluations
from tests.strategies.learners import build, parameters


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
