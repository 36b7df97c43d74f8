"""Plugin metrics of online meta-learning, to be used beside Avalanche's own in an `EvaluationPlugin`."""

from collections.abc import Callable, Sequence

from avalanche.benchmarks import CLScenario

from ftml_bench.measures import MEASURES
from ftml_bench.metrics.only_class import only_class_metrics
from ftml_bench.metrics.performance import RoundMetric
from ftml_bench.metrics.regret import regret_metrics
from ftml_bench.metrics.rounds import (
    checkpoint_metrics,
    efficiency_metrics,
    final_performance_metrics,
    learning_curve_metrics,
)

_BUILDERS: dict[str, Callable[[CLScenario], list[RoundMetric]]] = {
    "regret": lambda benchmark: regret_metrics(benchmark=benchmark),
    "only_class": lambda benchmark: only_class_metrics(),
}
assert set(_BUILDERS) == set(MEASURES)


def measure_metrics(names: Sequence[str], benchmark: CLScenario) -> list[RoundMetric]:
    """The plugin metrics of measures, by their names in `ftml_bench.measures.MEASURES`."""
    return [metric for name in names for metric in _BUILDERS[name](benchmark)]


__all__ = [
    "checkpoint_metrics",
    "efficiency_metrics",
    "final_performance_metrics",
    "learning_curve_metrics",
    "measure_metrics",
    "only_class_metrics",
    "regret_metrics",
]
