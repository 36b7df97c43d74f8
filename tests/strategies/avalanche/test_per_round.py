"""Rounds in the place of experiences: the hooks of a plugin are called once a round."""

import copy
import random

import pytest
import torch
from avalanche.core import SupervisedPlugin
from avalanche.training.plugins import (
    AGEMPlugin,
    EWCPlugin,
    LwFPlugin,
    MASPlugin,
    MIRPlugin,
    RWalkPlugin,
    SynapticIntelligencePlugin,
)

from ftml_bench.benchmarks import arrivals
from ftml_bench.strategies import per_round
from tests.strategies.avalanche.small import (
    Around,
    assert_penalty,
    fisher,
    flat,
    ftml,
    naive,
    quadratic,
    stacked,
    train,
    values,
)


class Calls(SupervisedPlugin):
    """Remembers each call: the hook, the number of points it sees, and the clock's counts."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def _note(self, hook, strategy):
        clock = strategy.clock
        counts = clock.train_exp_counter, clock.train_exp_iterations, clock.train_exp_epochs
        self.calls.append((hook, strategy.experience.current_experience, len(strategy.experience.dataset), counts))

    def before_training(self, strategy, **kwargs):
        self._note("before_training", strategy)

    def before_training_exp(self, strategy, **kwargs):
        self._note("before", strategy)

    def after_training_iteration(self, strategy, **kwargs):
        self._note("iteration", strategy)

    def after_training_exp(self, strategy, **kwargs):
        self._note("after", strategy)

    def after_training(self, strategy, **kwargs):
        self._note("after_training", strategy)


@pytest.mark.parametrize("make", [ftml, lambda *plugins, **_: naive(*plugins)], ids=["FTML", "Naive"])
def test_experience_hooks_are_called_once_a_round_with_the_rounds_data_so_far(make, stream):
    calls = Calls()
    strategy = make(per_round(calls), steps=2)
    for experience in stream.train_stream[:2]:
        for arrival in arrivals(experience, [6, 4]):
            strategy.train(arrival, eval_streams=[])
    # two steps an arrival (Naive: 2 and 1 minibatches of 4 points)
    second = 2 if make is ftml else 1

    def of(k):
        return [
            ("before_training", k, 6), ("before", k, 6), *[("iteration", k, 6)] * 2,
            *[("iteration", k, 10)] * second, ("after", k, 10), ("after_training", k, 10),
        ]  # fmt: skip

    assert [call[:3] for call in calls.calls] == of(0) + of(1)
    counts = [counts for hook, _, _, counts in calls.calls if hook == "iteration"]
    assert [c[0] for c in counts] == [0] * (2 + second) + [1] * (2 + second)  # rounds
    assert [c[1] for c in counts] == [*range(2 + second)] * 2  # iterations of the round
    assert [c[2] for c in counts] == ([0] * 2 + [1] * second) * 2  # epochs of the round


def test_a_round_that_is_left_unfinished_ends_when_the_next_begins(stream):
    calls = Calls()
    strategy = ftml(per_round(calls), steps=1)
    for experience in stream.train_stream[:2]:
        strategy.train(next(arrivals(experience, [6, 4])), eval_streams=[])
    assert [call[:3] for call in calls.calls if call[0] in ("before", "after")] == [
        ("before", 0, 6), ("after", 0, 6), ("before", 1, 6),
    ]  # fmt: skip


def test_ewc_takes_rounds_for_experiences_and_not_arrivals(stream):
    around = Around()
    plugin = EWCPlugin(ewc_lambda=3.0)
    strategy = ftml(*around.of(per_round(plugin)), steps=2)
    kept, data = [], []
    for experience in stream.train_stream:
        for arrival in arrivals(experience, [4, 4, 2]):
            strategy.train(arrival, eval_streams=[])
            data.append(stacked(arrival.dataset))
        kept.append(copy.deepcopy(strategy.model))
    assert [t for t in plugin.saved_params if plugin.saved_params[t]] == [0, 1, 2]
    fishers = [fisher(kept[k], data[3 * k : 3 * k + 3]) for k in (0, 1)]  # minibatches of 4, 4, and 2 points
    parts = [quadratic(f, values(net), around.before.steps[-1][0]) for f, net in zip(fishers, kept, strict=False)]
    gradient = [g0 + g1 for g0, g1 in zip(parts[0][1], parts[1][1], strict=True)]
    assert_penalty(around, -1, parts[0][0] + parts[1][0], gradient, 3.0)


@pytest.mark.parametrize(
    "build",
    [
        lambda: EWCPlugin(ewc_lambda=5.0, mode="online", decay_factor=0.9),
        lambda: SynapticIntelligencePlugin(si_lambda=1e5),
        lambda: RWalkPlugin(ewc_lambda=1.0, delta_t=3),
        lambda: MASPlugin(),
        lambda: LwFPlugin(alpha=5.0),
        lambda: MIRPlugin(batch_size_mem=2, mem_size=30, subsample=8),
        lambda: AGEMPlugin(patterns_per_experience=10, sample_size=1),
    ],
)
def test_on_whole_experiences_per_round_changes_nothing_and_on_arrivals_the_plugins_run(build, stream):
    ends = []
    for plugins in ([build()], [per_round(build())], []):
        torch.manual_seed(0)
        random.seed(0)
        strategy = ftml(*plugins)
        torch.manual_seed(1)
        train(strategy, stream)
        ends.append(flat(values(strategy.model)))
    assert torch.equal(ends[0], ends[1])
    assert isinstance(build(), AGEMPlugin) or not torch.equal(ends[0], ends[2])
    strategy, free = ftml(per_round(build())), ftml()
    for experience in stream.train_stream:
        for arrival in arrivals(experience, [6, 4]):
            for s in (strategy, free):
                s.train(arrival, eval_streams=[])
    assert flat(values(strategy.model)).isfinite().all()
    assert isinstance(build(), AGEMPlugin) or not torch.equal(flat(values(strategy.model)), flat(values(free.model)))
