"""Plugin metrics of online meta-learning, to be used beside Avalanche's own in an `EvaluationPlugin`."""

from ftml_bench.metrics.only_class import only_class_metrics
from ftml_bench.metrics.regret import regret_metrics
from ftml_bench.metrics.rounds import (
    checkpoint_metrics,
    efficiency_metrics,
    final_performance_metrics,
    learning_curve_metrics,
)

__all__ = [
    "checkpoint_metrics",
    "efficiency_metrics",
    "final_performance_metrics",
    "learning_curve_metrics",
    "only_class_metrics",
    "regret_metrics",
]
