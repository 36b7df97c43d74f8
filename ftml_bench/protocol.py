"""Online meta-learning (paper, Algorithm 1) as a loop over any Avalanche strategy.

Nothing is hidden: the same, written out, is

    for round in benchmark.train_stream:
        for arrival in arrivals(round, sizes):
            strategy.train(arrival, eval_streams=[])
            strategy.eval([held_out(benchmark, round)])
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from avalanche.benchmarks import CLScenario, DatasetExperience, OnlineCLExperience
from avalanche.core import SupervisedPlugin
from avalanche.training.templates import SupervisedTemplate
from tqdm.auto import tqdm

from ftml_bench.benchmarks.arrivals import arrivals as split_arrivals
from ftml_bench.benchmarks.arrivals import cumulative_sizes
from ftml_bench.errors import UsageError
from ftml_bench.metrics.performance import Performance
from ftml_bench.strategies.avalanche.cost import Cost

#: Raised whenever the same learner on the same stream could come to other numbers: in what order data arrive, what is
#: trained on and evaluated when, what is counted. It stands in every record; a report does not mix two of them.
VERSION = 1


@dataclass(frozen=True)
class Evaluation:
    """One evaluation on held-out data, after an arrival."""

    round: int  # the round that is arriving
    evaluated_round: int  # the round whose held-out data were tested
    datapoints: int  # of the arriving round, so far
    loss: float
    accuracy: float | None  # share of targets; None where they are no classes
    steps: int  # training steps since the start
    gradient_evaluations: int  # since the start, update procedures included


def held_out(benchmark: CLScenario, round: int | DatasetExperience) -> DatasetExperience:
    """The held-out experience of a round, given as its experience or its number."""
    return benchmark.test_stream[getattr(round, "current_experience", round)]


def all_arrivals(
    benchmark: CLScenario, arrivals: int | Sequence[int], *, seed: int = 0
) -> Iterator[OnlineCLExperience]:
    """The arrivals of every round, in the order in which the protocol trains on them.

    :param arrivals: sizes, as in `ftml_bench.benchmarks.arrivals`.
    :param seed: of the order in which the data of a round arrive.
    """
    return (arrival for round in benchmark.train_stream for arrival in split_arrivals(round, arrivals, seed=seed))


def evaluations(
    strategy: SupervisedTemplate,
    benchmark: CLScenario,
    arrivals: int | Sequence[int],
    *,
    seed: int = 0,
    skip: int = 0,
) -> Iterator[Evaluation]:
    """The protocol as a generator: trains on each arrival, evaluates on the round's held-out data, yields.

    :param arrivals: sizes, as in `ftml_bench.benchmarks.arrivals`.
    :param seed: of the order in which the data of a round arrive.
    :param skip: how many arrivals `strategy` has been trained on; see `ftml_bench.saving`.
    """
    parts = in_two_parts(strategy, benchmark, arrivals, seed=seed, skip=skip)
    return (evaluation for evaluation in parts if evaluation is not None)


def in_two_parts(
    strategy: SupervisedTemplate,
    benchmark: CLScenario,
    arrivals: int | Sequence[int],
    *,
    seed: int = 0,
    skip: int = 0,
) -> Iterator[Evaluation | None]:
    """`evaluations` with a pause after each training, where it yields None: for learners that train together."""
    probe = _Probe() if hasattr(strategy, "cost") else _CountingProbe()
    for arrival in itertools.islice(all_arrivals(benchmark, arrivals, seed=seed), skip, None):
        with probe.attached(strategy):
            strategy.train(arrival, eval_streams=[])
            yield None
            strategy.eval([held_out(benchmark, arrival)])
        cost = probe.cost if isinstance(probe, _CountingProbe) else strategy.cost
        yield Evaluation(
            round=arrival.current_experience,
            evaluated_round=arrival.current_experience,
            datapoints=arrival.n_seen_in_round,
            loss=probe.performance.loss,
            accuracy=probe.performance.accuracy,
            steps=cost.steps,
            gradient_evaluations=cost.gradient_evaluations,
        )


def in_hindsight(strategy: SupervisedTemplate, benchmark: CLScenario, *, steps: int) -> Iterator[Evaluation]:
    """Trains on all rounds at once, then evaluates every round: about min_w Σ f_t(U_t(w)), the comparator of regret.

    :param strategy: a learner that trains on every round in its buffer, as FTML does.
    :param steps: training steps in all.
    :raises UsageError: for any other strategy.
    """
    if not hasattr(strategy, "trainable_rounds"):
        raise UsageError(f"{type(strategy).__name__} has no buffer: it cannot be a comparator")
    *earlier, last = benchmark.train_stream
    for round in earlier:
        strategy.buffer.add(round)
    given = strategy.steps
    probe = _Probe()
    strategy.plugins.insert(0, probe)
    try:
        strategy.steps = steps
        strategy.train(last, eval_streams=[])
        if strategy.trainable_rounds != list(range(len(benchmark.train_stream))):
            raise UsageError(f"{type(strategy).__name__} does not train on all rounds: it cannot be a comparator")
        for round in benchmark.train_stream:
            strategy.eval([held_out(benchmark, round)])
            yield Evaluation(
                round=round.current_experience,
                evaluated_round=round.current_experience,
                datapoints=len(round.dataset),
                loss=probe.performance.loss,
                accuracy=probe.performance.accuracy,
                steps=strategy.cost.steps,
                gradient_evaluations=strategy.cost.gradient_evaluations,
            )
    finally:
        strategy.steps = given
        strategy.plugins.remove(probe)


def keys(benchmark: CLScenario, arrivals: int | Sequence[int]) -> list[tuple[int, int, int]]:
    """The evaluations that the protocol makes on a benchmark, in order: (round, evaluated round, datapoints)."""
    return [
        (round.current_experience, round.current_experience, size)
        for round in benchmark.train_stream
        for size in cumulative_sizes(len(round.dataset), arrivals)
    ]


def keys_in_hindsight(benchmark: CLScenario) -> list[tuple[int, int, int]]:
    """The same of `in_hindsight`."""
    rounds = benchmark.train_stream
    return [(round.current_experience, round.current_experience, len(round.dataset)) for round in rounds]


def total_evaluations(benchmark: CLScenario, arrivals: int | Sequence[int]) -> int:
    """How many evaluations the protocol makes on a benchmark."""
    return len(keys(benchmark, arrivals))


def run(
    strategy: SupervisedTemplate,
    benchmark: CLScenario,
    *,
    arrivals: int | Sequence[int] | None = None,
    seed: int = 0,
    progress: bool = True,
) -> list[Evaluation]:
    """Run the protocol to its end with a progress bar.

    :param arrivals: sizes; None: the benchmark's own.
    :return: one entry an arrival.
    """
    sizes = benchmark.arrivals if arrivals is None else arrivals
    steps = evaluations(strategy, benchmark, sizes, seed=seed)
    total = total_evaluations(benchmark, sizes)
    return list(tqdm(steps, total=total, desc=type(strategy).__name__, unit="arrival", disable=not progress))


class _Probe(SupervisedPlugin):
    """Measures the performance of each evaluated experience, whatever metrics the strategy has."""

    def __init__(self) -> None:
        super().__init__()
        self.performance = Performance()

    @contextmanager
    def attached(self, strategy: SupervisedTemplate) -> Iterator[None]:
        """Inside, it is one of the strategy's plugins; outside, the strategy is as it was built and can be saved."""
        strategy.plugins.insert(0, self)
        try:
            yield
        finally:
            strategy.plugins.remove(self)

    def before_eval_exp(self, strategy, *args, **kwargs) -> None:
        self.performance = Performance()

    def after_eval_iteration(self, strategy, *args, **kwargs) -> None:
        self.performance.update(strategy)


class _CountingProbe(_Probe):
    """Also counts the cost of a strategy that does not itself: iterations, and the images that they drew."""

    def __init__(self) -> None:
        super().__init__()
        self.cost = Cost()

    def after_training_iteration(self, strategy, *args, **kwargs) -> None:
        self.cost.steps += 1
        self.cost.images += len(strategy.mb_y)
        self.cost.gradient_evaluations += len(strategy.mb_y)
