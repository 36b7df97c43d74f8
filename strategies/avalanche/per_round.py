"""Plugins that count experiences, on streams whose rounds arrive in pieces."""

from __future__ import annotations

from collections.abc import Iterable
from copy import copy
from types import SimpleNamespace

from avalanche.benchmarks import DatasetExperience, OnlineCLExperience
from avalanche.core import BasePlugin, SupervisedPlugin

from ftml_bench.benchmarks.experiences import identity_of

HOOKS = [name for name in dir(SupervisedPlugin) if name.startswith(("before_", "after_"))]


def per_round(plugin: BasePlugin) -> PerRound:
    """The plugin, for which a round is one experience however many arrivals it comes in.

    EWC, SI, MAS, LwF and the like do their work at the end of an experience. On a stream cut into arrivals Avalanche
    calls that every arrival; wrapped, the plugin is called once a round: `before_training` and `before_training_exp` at
    the round's first arrival, `after_training_exp` and `after_training` at its last one (or when another round begins).
    What it sees then is the round: `strategy.experience.dataset` holds all data that have arrived, and `strategy.clock`
    counts rounds for experiences. All other hooks are passed on as they come; an evaluation between two arrivals is
    for the plugin one in the middle of an experience. On whole experiences nothing changes.

    >>> from avalanche.training.plugins import EWCPlugin
    >>> per_round(EWCPlugin(ewc_lambda=1)).plugin.mode
    'separate'
    """
    return PerRound(plugin)


class PerRound(SupervisedPlugin):
    """What `per_round` makes; the wrapped plugin is `plugin`."""

    saved_attributes = ("plugin", "rounds", "round", "_iterations", "_epochs")

    def __init__(self, plugin: BasePlugin) -> None:
        super().__init__()
        self.plugin = plugin
        self.rounds = 0  # finished
        self.round: int | None = None  # the one that is arriving
        self._experience = None
        self._iterations = self._epochs = 0  # of the round's earlier arrivals

    def _fire(self, hook: str, strategy, *args, **kwargs):
        own = getattr(self.plugin, hook, None)
        return None if own is None else own(_View(strategy, self), *args, **kwargs)

    def before_training(self, strategy, *args, **kwargs) -> None:
        """Nothing yet: which round comes is known with its experience."""

    def before_training_exp(self, strategy, *args, **kwargs) -> None:
        """Begin a round, or add an arrival to it."""
        arrival = strategy.experience
        if self.round is not None and not self._continues(arrival):
            self._end(strategy, *args, **kwargs)
        first = self.round is None
        self._experience = _whole(None if first else self._experience, arrival)
        if first:
            self.round = arrival.current_experience
            self._fire("before_training", strategy, *args, **kwargs)
            self._fire("before_training_exp", strategy, *args, **kwargs)

    def after_training_exp(self, strategy, *args, **kwargs) -> None:
        """End the round with its last arrival."""
        if not isinstance(strategy.experience, OnlineCLExperience) or strategy.experience.is_last_subexp:
            self._end(strategy, *args, **kwargs)
        else:
            self._iterations += strategy.clock.train_exp_iterations
            self._epochs += strategy.clock.train_exp_epochs

    def after_training(self, strategy, *args, **kwargs) -> None:
        """Nothing: comes with the end of the round."""

    def take_up(self, arrived: Iterable[DatasetExperience]) -> None:
        """Once its saved state is loaded: the round that is arriving, from what was trained on until then."""
        self._experience = None
        for arrival in arrived:
            if arrival.current_experience == self.round:
                self._experience = _whole(self._experience if self._continues(arrival) else None, arrival)

    def _continues(self, arrival) -> bool:
        """Whether an arrival is of the round that is arriving."""
        return self._experience is not None and identity_of(self._experience) == identity_of(arrival)

    def _end(self, strategy, *args, **kwargs) -> None:
        self._fire("after_training_exp", strategy, *args, **kwargs)
        self._fire("after_training", strategy, *args, **kwargs)
        self.rounds += 1
        self.round = None
        self._iterations = self._epochs = 0


def _whole(so_far, arrival):
    """The arrival as an experience that holds the round's data so far."""
    experience = copy(arrival)
    if so_far is not None:
        experience._dataset = so_far.dataset.concat(arrival.dataset)
    return experience


def _passed_on(hook: str):
    def call(self, strategy, *args, **kwargs):
        return self._fire(hook, strategy, *args, **kwargs)

    return call


for _hook in HOOKS:
    if _hook not in vars(PerRound):
        setattr(PerRound, _hook, _passed_on(_hook))


class _View:
    """The strategy as a wrapped plugin sees it: rounds for experiences; everything else is the strategy's own."""

    def __init__(self, strategy, of: PerRound) -> None:
        object.__setattr__(self, "_strategy", strategy)
        object.__setattr__(self, "_of", of)

    def __getattr__(self, name):
        if name == "experience" and self._strategy.is_training:
            return self._of._experience
        if name == "clock":
            clock = self._strategy.clock
            return SimpleNamespace(
                train_exp_counter=self._of.rounds,
                train_exp_iterations=self._of._iterations + clock.train_exp_iterations,
                train_exp_epochs=self._of._epochs + clock.train_exp_epochs,
                train_iterations=clock.train_iterations,
                total_iterations=clock.total_iterations,
            )
        return getattr(self._strategy, name)

    def __setattr__(self, name, value) -> None:
        setattr(self._strategy, name, value)
