"""Online meta-learning (paper, Algorithm 1) as a loop over any Avalanche strategy.

Nothing is hidden: the same, written out, is

    for round in benchmark.train_stream:
        for arrival in arrivals(round, sizes):
            strategy.train(arrival, eval_streams=[])
            strategy.eval([held_out(benchmark, round)])

Two settings make it the protocol of the authors' released code: rounds that are known before the stream begins
(`WarmUp`), and the next arrival as the test (`score="next_arrival"`).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass

from avalanche.benchmarks import CLScenario, DatasetExperience, OnlineCLExperience
from avalanche.core import SupervisedPlugin
from avalanche.training.templates import SupervisedTemplate
from tqdm.auto import tqdm

from ftml_bench.benchmarks.arrivals import arrivals as split_arrivals
from ftml_bench.benchmarks.arrivals import cumulative_sizes
from ftml_bench.benchmarks.checks import check_int
from ftml_bench.benchmarks.experiences import place_of
from ftml_bench.errors import UsageError, unknown
from ftml_bench.metrics.performance import Performance
from ftml_bench.sizes import SCORES, scored
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


@dataclass(frozen=True)
class WarmUp:
    """Rounds that are known before the stream begins: data of the first ones, then training steps on all of them.

    The stream goes on with the round after them; nothing of them is evaluated, and no more of their data arrive.

    :param rounds: how many.
    :param datapoints: of each, the first to arrive; None: all.
    :param steps: training steps in all; None: for each round as many as an arrival's.
    :raises UsageError: for a number below 1.
    """

    rounds: int
    datapoints: int | None = None
    steps: int | None = None

    def __post_init__(self) -> None:
        for name in ("rounds", "datapoints", "steps"):
            value = getattr(self, name)
            if value is not None:
                check_int(f"warmup_{name}", value, least=1)

    def experiences(self, benchmark: CLScenario, seed: int) -> Iterator[OnlineCLExperience]:
        """What arrives of them, an arrival a round.

        :raises UsageError: there are no rounds after them, or fewer datapoints in one of them.
        """
        stream = benchmark.train_stream
        if self.rounds >= len(stream):
            raise UsageError(f"warmup_rounds {self.rounds}: expected fewer than the {len(stream)} rounds of the stream")
        for round in stream[: self.rounds]:
            size = len(round.dataset)
            if self.datapoints is not None and self.datapoints > size:
                raise UsageError(f"warmup_datapoints {self.datapoints}: a round has {size}")
            yield next(split_arrivals(round, self.datapoints or size, seed=seed))


def held_out(benchmark: CLScenario, round: int | DatasetExperience) -> DatasetExperience:
    """The held-out experience of a round, given as its experience or its number."""
    return benchmark.test_stream[getattr(round, "current_experience", round)]


def all_arrivals(
    benchmark: CLScenario,
    arrivals: int | Sequence[int],
    *,
    seed: int = 0,
    warmup: WarmUp | None = None,
    score: str = "held_out",
) -> Iterator[OnlineCLExperience]:
    """Everything that the protocol trains on, in order: what is known before the stream, then the arrivals.

    :param arrivals: sizes, as in `ftml_bench.benchmarks.arrivals`.
    :param seed: of the order in which the data of a round arrive.
    """
    if warmup is not None:
        yield from warmup.experiences(benchmark, seed)
    for arrival, _ in _scored_arrivals(benchmark, arrivals, seed, warmup, score):
        yield arrival


def _scored_arrivals(
    benchmark: CLScenario, arrivals: int | Sequence[int], seed: int, warmup: WarmUp | None, score: str
) -> Iterator[tuple[OnlineCLExperience, DatasetExperience]]:
    """Each arrival of the stream, with the data that score the learner after it."""
    data, tests = len(benchmark.train_stream), len(benchmark.test_stream)
    if tests < data:
        raise UsageError(f"{data} rounds of data, {tests} of held-out data: expected held-out data of each")
    for round in _scored_rounds(benchmark, warmup):
        if not scored(cumulative_sizes(len(round.dataset), arrivals), score):
            raise UsageError(
                f"score {score}: {place_of(round)} comes in one arrival: expected at least two, of which one scores"
            )
    for round in _scored_rounds(benchmark, warmup):
        of_round = split_arrivals(round, arrivals, seed=seed)
        if score == "held_out":
            yield from ((arrival, held_out(benchmark, round)) for arrival in of_round)
        else:
            for arrival, following in itertools.pairwise(of_round):
                arrival.sub_stream_length -= 1
                arrival.is_last_subexp = arrival.arrival_index == arrival.sub_stream_length - 1
                yield arrival, _in_place_of(held_out(benchmark, round), following)


def _scored_rounds(benchmark: CLScenario, warmup: WarmUp | None) -> Sequence[DatasetExperience]:
    return benchmark.train_stream[0 if warmup is None else warmup.rounds :]


def _in_place_of(held_out: DatasetExperience, arrival: OnlineCLExperience) -> DatasetExperience:
    """The held-out experience of a round, with the data of an arrival: for metrics an evaluation like any other."""
    experience = copy(held_out)
    # attributes of Avalanche's kind are shared by copies: vars() sets this one's alone
    own = {"_dataset": arrival.dataset, "stacked": getattr(arrival, "stacked", None)}
    vars(experience).update({name: value for name, value in own.items() if value is not None})
    return experience


def evaluations(
    strategy: SupervisedTemplate,
    benchmark: CLScenario,
    arrivals: int | Sequence[int],
    *,
    seed: int = 0,
    skip: int = 0,
    warmup: WarmUp | None = None,
    score: str = "held_out",
) -> Iterator[Evaluation]:
    """The protocol as a generator: trains on each arrival, evaluates on the round's held-out data, yields.

    :param arrivals: sizes, as in `ftml_bench.benchmarks.arrivals`.
    :param seed: of the order in which the data of a round arrive.
    :param skip: how many arrivals `strategy` has been trained on (after its warm-up); see `ftml_bench.saving`.
    :param warmup: rounds that are known before the stream begins.
    :param score: what a round is scored on after an arrival: "held_out" or "next_arrival", see `ftml_bench.sizes`.
    """
    parts = in_two_parts(strategy, benchmark, arrivals, seed=seed, skip=skip, warmup=warmup, score=score)
    return (evaluation for evaluation in parts if evaluation is not None)


def in_two_parts(
    strategy: SupervisedTemplate,
    benchmark: CLScenario,
    arrivals: int | Sequence[int],
    *,
    seed: int = 0,
    skip: int = 0,
    warmup: WarmUp | None = None,
    score: str = "held_out",
) -> Iterator[Evaluation | None]:
    """`evaluations` with a pause after each training, where it yields None: for learners that train together."""
    if score not in SCORES:
        raise unknown("score", score, SCORES)
    probe = _Probe() if hasattr(strategy, "cost") else _CountingProbe()
    if warmup is not None and skip == 0:
        _warm_up(strategy, warmup, benchmark, seed)
    stream = _scored_arrivals(benchmark, arrivals, seed, warmup, score)
    for arrival, test in itertools.islice(stream, skip, None):
        with probe.attached(strategy):
            strategy.train(arrival, eval_streams=[])
            yield None
            strategy.eval([test])
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


def _warm_up(strategy: SupervisedTemplate, warmup: WarmUp, benchmark: CLScenario, seed: int) -> None:
    """Hand the rounds over one by one without a step, and take all steps with the last."""
    if not hasattr(strategy, "trainable_rounds"):
        raise UsageError(f"{type(strategy).__name__} has no buffer: no rounds can be known to it beforehand")
    given = strategy.steps
    known = list(warmup.experiences(benchmark, seed))
    steps = warmup.steps
    if steps is None:
        steps = sum(given or -(-len(experience.dataset) // strategy.train_mb_size) for experience in known)
    try:
        for experience in known:
            strategy.steps = steps if experience is known[-1] else 0
            strategy.train(experience, eval_streams=[])
    finally:
        strategy.steps = given
    if not strategy.trainable_rounds and not getattr(strategy, "owed_steps", 0):
        raise UsageError(
            f"warmup_rounds {warmup.rounds}: of what is known beforehand {type(strategy).__name__} trains on nothing: "
            f"expected more rounds"
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


def keys(
    benchmark: CLScenario,
    arrivals: int | Sequence[int],
    *,
    warmup: WarmUp | None = None,
    score: str = "held_out",
) -> list[tuple[int, int, int]]:
    """The evaluations that the protocol makes on a benchmark, in order: (round, evaluated round, datapoints)."""
    found = []
    for round in _scored_rounds(benchmark, warmup):
        sizes = scored(cumulative_sizes(len(round.dataset), arrivals), score)
        found += [(round.current_experience, round.current_experience, size) for size in sizes]
    return found


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
    warmup: WarmUp | None = None,
    score: str = "held_out",
    progress: bool = True,
) -> list[Evaluation]:
    """Run the protocol to its end with a progress bar.

    :param arrivals: sizes; None: the benchmark's own.
    :param warmup: rounds that are known before the stream begins.
    :param score: what a round is scored on after an arrival: "held_out" or "next_arrival", see `ftml_bench.sizes`.
    :return: one entry an arrival.
    :raises UsageError: no sizes are given, and the benchmark, as Avalanche's own, has none.
    """
    sizes = getattr(benchmark, "arrivals", None) if arrivals is None else arrivals
    if sizes is None:
        kind = type(benchmark).__name__
        raise UsageError(f"a {kind} says no sizes of arrivals: expected arrivals=, as arrivals=100")
    steps = evaluations(strategy, benchmark, sizes, seed=seed, warmup=warmup, score=score)
    total = len(keys(benchmark, sizes, warmup=warmup, score=score))
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

    def after_eval_exp(self, strategy, *args, **kwargs) -> None:
        self.performance.close(strategy)


class _CountingProbe(_Probe):
    """Also counts the cost of a strategy that does not itself: iterations, and the images that they drew."""

    def __init__(self) -> None:
        super().__init__()
        self.cost = Cost()

    def after_training_iteration(self, strategy, *args, **kwargs) -> None:
        self.cost.steps += 1
        self.cost.images += len(strategy.mb_y)
        self.cost.gradient_evaluations += len(strategy.mb_y)
