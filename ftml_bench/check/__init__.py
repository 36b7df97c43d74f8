"""What every strategy, benchmark and model has to hold, as tests that run on any of them: `ftml-bench check NAME`.

Everything is tried in small: a few rounds of a few datapoints, two training steps an arrival, as a leaderboard would
build it. A contract is a function that returns if it holds and raises `BrokenError` or `NotTestedError` if not; any
other error of the class that is checked breaks the contract too.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from typing import Any

from avalanche.benchmarks import CLScenario
from avalanche.training.templates.base_sgd import BaseSGDTemplate
from torch import nn

from ftml_bench import registry
from ftml_bench.check.benchmarks import BENCHMARK_CONTRACTS, BenchmarkSubject
from ftml_bench.check.contract import Outcome, outcome_of
from ftml_bench.check.models import MODEL_CONTRACTS, ModelSubject
from ftml_bench.check.strategies import STRATEGY_CONTRACTS, StrategySubject
from ftml_bench.errors import UsageError, unknown


def check(
    name: str,
    settings: dict[str, Any] | None = None,
    *,
    benchmark: str = "RainbowDigits",
    benchmark_settings: dict[str, Any] | None = None,
) -> Iterator[Outcome]:
    """Try all contracts of a strategy, benchmark or model, one after the other.

    :param name: a name that `registry.resolve` knows, or "module:Class".
    :param settings: keywords of its constructor.
    :param benchmark: what strategies and models are tried on.
    :param benchmark_settings: keywords of that benchmark's constructor; sizes are small by default.
    :raises UsageError: for a name or setting that does not exist, before anything is tried.
    """
    kind, cls = _find(name)
    settings = dict(settings or {})
    subject: Any
    contracts: dict[str, Callable[[Any], None]]
    if kind == "benchmark":
        subject, contracts = BenchmarkSubject(cls, settings), BENCHMARK_CONTRACTS
    elif kind == "strategy":
        subject = StrategySubject(name, cls, settings, benchmark, dict(benchmark_settings or {}))
        contracts = STRATEGY_CONTRACTS
    else:
        subject = ModelSubject(cls, settings, benchmark, dict(benchmark_settings or {}))
        contracts = MODEL_CONTRACTS
    return (outcome_of(title, contract, subject) for title, contract in contracts.items())


def _find(name: str) -> tuple[str, type]:
    kinds = ("strategy", "benchmark", "model")
    if ":" in name:
        cls = registry.load("class", name)
        bases = {"strategy": BaseSGDTemplate, "benchmark": CLScenario, "model": nn.Module}
        for kind, base in bases.items():
            if inspect.isclass(cls) and issubclass(cls, base):
                return kind, cls
        raise UsageError(f"{name} is no strategy (SupervisedTemplate), benchmark (CLScenario) or model (nn.Module)")
    for kind in kinds:
        if name in registry.entries(kind):
            return kind, registry.load(kind, name)
    raise unknown("strategy, benchmark or model", name, [n for kind in kinds for n in registry.entries(kind)])


__all__ = ["Outcome", "check"]
