"""The contracts of strategies."""

from __future__ import annotations

import inspect
import math
import random
from collections.abc import Callable
from itertools import islice, pairwise
from typing import Any

import numpy as np
import torch
from avalanche.benchmarks import CLScenario
from avalanche.core import SupervisedPlugin
from avalanche.logging import BaseLogger
from avalanche.training.templates import SupervisedTemplate
from torch import Tensor

from ftml_bench import saving
from ftml_bench.benchmarks.arrivals import arrivals
from ftml_bench.check.contract import (
    ARRIVALS,
    BrokenError,
    NotTestedError,
    disturb,
    disturb_host,
    equal,
    keyword_only,
    misspelt_raises,
    small,
)
from ftml_bench.protocol import evaluations, held_out
from ftml_bench.runs import building
from ftml_bench.runs.definition import BenchmarkSpec
from ftml_bench.strategies.avalanche.base import Learner


class _Outputs(SupervisedPlugin):
    """Keeps what was predicted in the latest evaluation, by experience."""

    def __init__(self) -> None:
        super().__init__()
        self.of: dict[int, Tensor] = {}

    def after_eval_forward(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        self.of[strategy.experience.current_experience] = strategy.mb_output.clone()


class _Emitted(BaseLogger):
    def __init__(self) -> None:
        super().__init__()
        self.values: list[tuple[str, Any]] = []

    def log_single_metric(self, name: str, value: Any, x_plot: Any) -> None:
        self.values.append((name, value))


class StrategySubject:
    """A strategy as a row of a leaderboard on a small benchmark."""

    def __init__(
        self,
        name: str,
        cls: type,
        settings: dict[str, Any],
        benchmark: str,
        benchmark_settings: dict[str, Any],
    ) -> None:
        self.cls = cls
        if "train_mb_size" in inspect.signature(cls).parameters:
            settings = {"train_mb_size": 8, **settings}
        self.settings = {"strategy": name, **settings}
        self.on = benchmark, benchmark_settings
        self.build()  # a setting that does not exist is the caller's to mend

    def _spec(self, **changes: Any) -> BenchmarkSpec:
        return small(*self.on, {**self.settings, **changes})

    def benchmark(self) -> CLScenario:
        return building.build_benchmark(self._spec(), 0, None)

    def build(self, benchmark: CLScenario | None = None, **changes: Any) -> SupervisedTemplate:
        spec = self._spec(**changes)
        return building.build_strategy(spec, spec.rows[0], benchmark or self.benchmark(), 0)

    def construct(self, **changes: Any) -> None:
        """By the class itself: a leaderboard would see the keyword before."""
        model = self.benchmark().model()
        given = {key: value for key, value in self.settings.items() if key != "strategy"}
        self.cls(model=model, optimizer=torch.optim.SGD(model.parameters(), lr=0.1), **given, **changes)

    def run(self, **changes: Any) -> tuple[SupervisedTemplate, list[Any]]:
        """After the whole protocol, as often as it is called the same."""
        benchmark = self.benchmark()
        strategy = self.build(benchmark, **changes)
        return strategy, list(evaluations(strategy, benchmark, ARRIVALS))


def _state(strategy: SupervisedTemplate) -> list[Tensor]:
    """Copies of parameters, buffers and the optimiser's state."""
    values: list[Any] = [*strategy.model.state_dict().values()]
    for of_parameter in strategy.optimizer.state_dict()["state"].values():
        values += of_parameter.values()
    return [value.clone() for value in values if isinstance(value, Tensor)]


def _random_states() -> list[Any]:
    return [random.getstate(), str(np.random.get_state(legacy=False)), torch.get_rng_state().tolist()]


def _same_seed_same_result(subject: StrategySubject) -> None:
    first, curve = subject.run()
    disturb()
    benchmark = subject.benchmark()
    second = subject.build(benchmark)
    disturb_host()  # a leaderboard seeds them before, a script need not
    again = list(evaluations(second, benchmark, ARRIVALS))
    if curve != again or not equal(_state(first), _state(second)):
        raise BrokenError("two runs with one seed differ: draw from generators that `seed` seeds")


def _evaluation_changes_nothing(subject: StrategySubject) -> None:
    benchmark, outputs = subject.benchmark(), _Outputs()
    strategy, alone = subject.build(benchmark), subject.build(benchmark)
    strategy.plugins.insert(0, outputs)
    for round in benchmark.train_stream[:2]:
        for arrival in arrivals(round, ARRIVALS):
            strategy.train(arrival, eval_streams=[])
            before, drawn = _state(strategy), _random_states()
            strategy.eval([held_out(benchmark, round)])
            if not equal(before, _state(strategy)):
                raise BrokenError("parameters, buffers or the optimiser's state are others after an evaluation")
            if drawn != _random_states():
                raise BrokenError("an evaluation draws from a global random generator")
    for round in benchmark.train_stream[:2]:
        for arrival in arrivals(round, ARRIVALS):
            alone.train(arrival, eval_streams=[])
    streams = [held_out(benchmark, 0), held_out(benchmark, 1)]
    strategy.eval(streams)
    first, outputs.of = outputs.of, {}
    strategy.eval(streams[::-1])
    if not all(torch.equal(first[t], outputs.of[t]) for t in (0, 1)):
        raise BrokenError("predictions change with the order in which experiences are evaluated")
    if not equal(_state(strategy), _state(alone)):
        raise BrokenError("a run with evaluations ends with other parameters than one without")


def _one_sample_arrivals(subject: StrategySubject) -> None:
    benchmark = subject.benchmark()
    strategy = subject.build(benchmark)
    for evaluation in evaluations(strategy, benchmark, [1, 1, 22]):
        if not math.isfinite(evaluation.loss):
            raise BrokenError(f"after {evaluation.datapoints} datapoints the loss is {evaluation.loss}")


def _empty_arrival(subject: StrategySubject) -> None:
    benchmark = subject.benchmark()
    strategy = subject.build(benchmark)
    first, second, _ = arrivals(benchmark.train_stream[0], ARRIVALS)
    strategy.train(first, eval_streams=[])
    before = _state(strategy)
    second._dataset = second.dataset.subset([])
    if hasattr(second, "stacked"):
        second.stacked = second.stacked.subset(torch.arange(0))
    try:
        strategy.train(second, eval_streams=[])
    except Exception:
        return  # refused
    after = _state(strategy)
    if not all(torch.isfinite(value).all() for value in after if value.is_floating_point()):
        raise BrokenError("an arrival without datapoints leaves parameters that are not finite")
    if len(before) != len(after):
        raise BrokenError("an arrival without datapoints changes the model's shape")


def _finite_metrics(subject: StrategySubject) -> None:
    benchmark, emitted = subject.benchmark(), _Emitted()
    strategy = subject.build(benchmark)
    strategy.evaluator.loggers.append(emitted)
    for evaluation in evaluations(strategy, benchmark, ARRIVALS):
        for what in ("loss", "accuracy"):
            value = getattr(evaluation, what)
            if value is not None and not math.isfinite(value):
                raise BrokenError(f"{what} {value} in round {evaluation.round + 1}")
    if not emitted.values:
        raise BrokenError("no metric was emitted: are the evaluator's hooks called?")
    for name, value in emitted.values:
        if not isinstance(value, int | float) or not math.isfinite(value):
            raise BrokenError(f"{name} is {value!r}")


def _budget(subject: StrategySubject) -> None:
    benchmark = subject.benchmark()
    strategy = subject.build(benchmark)
    steps = [e.steps for e in evaluations(strategy, benchmark, ARRIVALS)]
    if any(after < before for before, after in pairwise(steps)) or steps[-1] == 0:
        raise BrokenError(f"the steps counted after each arrival are {steps}")


def _no_leak(subject: StrategySubject) -> None:
    """After the first round and one arrival more: what is to come and the labels held out must not matter."""
    predictions = []
    for poisoned in (False, True):
        benchmark, outputs = subject.benchmark(), _Outputs()
        if not all(hasattr(e, "stacked") for e in [*benchmark.train_stream, *benchmark.test_stream]):
            raise NotTestedError("the benchmark's experiences have no .stacked to be changed")
        if poisoned:
            _poison(benchmark)
        strategy = subject.build(benchmark)
        strategy.plugins.insert(0, outputs)
        for round, count in ((0, len(ARRIVALS)), (1, 1)):
            for arrival in islice(arrivals(benchmark.train_stream[round], ARRIVALS), count):
                strategy.train(arrival, eval_streams=[])
        strategy.eval([held_out(benchmark, 1), held_out(benchmark, 0)])
        predictions.append(outputs.of)
    if not all(torch.equal(predictions[0][t], predictions[1][t]) for t in (0, 1)):
        raise BrokenError("predictions change with data that have not arrived, or with held-out labels")


def _poison(benchmark: CLScenario) -> None:
    """Spoil, in place, all held-out labels and every datapoint of the later rounds and of round 1's later arrivals."""
    for experience in benchmark.test_stream:
        _spoil(experience.stacked.y)
    first = next(arrivals(benchmark.train_stream[1], ARRIVALS)).stacked.rows
    for experience in benchmark.train_stream[1:]:
        data = experience.stacked
        late = ~torch.isin(data.rows, first) if experience.current_experience == 1 else torch.ones_like(data.rows) > 0
        for values, rows in ((data.x, data.rows[late]), (data.y, late)):
            part = values[rows]
            _spoil(part)
            values[rows] = part


def _spoil(values: Tensor) -> None:
    """Other values of the same kind: bytes inverted, classes exchanged, numbers far away."""
    if values.dtype == torch.uint8:
        values.copy_(255 - values)
    elif values.is_floating_point():
        values += 1000
    else:
        values.copy_(values.max() - values)


def _save_and_resume(subject: StrategySubject) -> None:
    """Stopped in the middle of the second round, and gone on with in a strategy built anew."""
    benchmark = subject.benchmark()
    stream = [arrival for round in benchmark.train_stream[:2] for arrival in arrivals(round, ARRIVALS)]
    whole, resumed = subject.build(benchmark), subject.build(benchmark)
    if not isinstance(whole, Learner):
        raise NotTestedError("it is no Learner: cells with it are done again from their start")
    half = len(ARRIVALS) + 1
    for arrival in stream[:half]:
        whole.train(arrival, eval_streams=[])
    state = saving.state_dict(whole)
    for arrival in stream[half:]:
        whole.train(arrival, eval_streams=[])
    disturb()
    done = saving.load_state_dict(resumed, state, stream)
    for arrival in stream[done:]:
        resumed.train(arrival, eval_streams=[])
    if not equal(_state(whole), _state(resumed)):
        raise BrokenError("saved and gone on with, parameters end differently: extend state_dict and load_state_dict")


def _another_device(subject: StrategySubject) -> None:
    if not torch.cuda.is_available():
        raise NotTestedError("there is no other device here")
    strategy, curve = subject.run(device="cuda")
    if any(p.device.type != "cuda" for p in strategy.model.parameters()):
        raise BrokenError("device='cuda' leaves parameters where they were")
    if not all(math.isfinite(e.loss) for e in curve):
        raise BrokenError("losses are not finite there")


# A contract is added here, and nowhere else.
STRATEGY_CONTRACTS: dict[str, Callable[[Any], None]] = {
    "keyword-only constructor": keyword_only,
    "a misspelt keyword raises": misspelt_raises,
    "same seed, same result": _same_seed_same_result,
    "evaluation changes nothing": _evaluation_changes_nothing,
    "training steps are taken and counted": _budget,
    "an empty arrival is refused or harmless": _empty_arrival,
    "arrivals of one sample": _one_sample_arrivals,
    "metrics are finite numbers": _finite_metrics,
    "no leak of what has not arrived or is held out": _no_leak,
    "save and resume": _save_and_resume,
    "another device": _another_device,
}
