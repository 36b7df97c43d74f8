"""The plugin metrics of measures, by their names."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from avalanche.benchmarks import CLScenario

from ftml_bench.metrics.measures import MEASURES
from ftml_bench.metrics.online import online_metrics
from ftml_bench.metrics.only_class import only_class_metrics
from ftml_bench.metrics.performance import RoundMetric
from ftml_bench.metrics.regret import regret_metrics
from ftml_bench.metrics.shots import shots_metrics
from ftml_bench.metrics.terms import term_metrics


def _metric_of(benchmark: CLScenario) -> str:
    return "accuracy" if hasattr(benchmark.train_stream[0].dataset, "targets") else "loss"


_BUILDERS: dict[str, Callable[[CLScenario], list[RoundMetric]]] = {
    "regret": lambda benchmark: regret_metrics(benchmark=benchmark),
    "only_class": lambda benchmark: only_class_metrics(),
    "online": lambda benchmark: online_metrics(metric=_metric_of(benchmark)),
    "shots": lambda benchmark: shots_metrics(),
    "terms": lambda benchmark: term_metrics(benchmark=benchmark, metric=_metric_of(benchmark)),
}
assert set(_BUILDERS) == set(MEASURES)


def measure_metrics(names: Sequence[str], benchmark: CLScenario) -> list[RoundMetric]:
    """The plugin metrics of measures, by their names in `ftml_bench.metrics.measures.MEASURES`."""
    return [metric for name in names for metric in _BUILDERS[name](benchmark)]
