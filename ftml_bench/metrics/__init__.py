"""Plugin metrics of online meta-learning, to be used beside Avalanche's own in an `EvaluationPlugin`."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ftml_bench.metrics.by_name import measure_metrics
    from ftml_bench.metrics.online import online_metrics
    from ftml_bench.metrics.only_class import only_class_metrics
    from ftml_bench.metrics.regret import regret_metrics
    from ftml_bench.metrics.rounds import (
        checkpoint_metrics,
        efficiency_metrics,
        final_performance_metrics,
        learning_curve_metrics,
    )
    from ftml_bench.metrics.shots import shots_metrics
    from ftml_bench.metrics.terms import term_metrics

__all__ = [
    "checkpoint_metrics",
    "efficiency_metrics",
    "final_performance_metrics",
    "learning_curve_metrics",
    "measure_metrics",
    "online_metrics",
    "only_class_metrics",
    "regret_metrics",
    "shots_metrics",
    "term_metrics",
]

_MODULES = {
    "measure_metrics": "by_name",
    "online_metrics": "online",
    "only_class_metrics": "only_class",
    "regret_metrics": "regret",
    "shots_metrics": "shots",
    "term_metrics": "terms",
}


def __dir__() -> list[str]:
    return [*globals(), *__all__]


def __getattr__(name: str) -> Any:
    # Imported when it is asked for: reports read `curves` and `measures`, and do without PyTorch.
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES.get(name, 'rounds')}"), name)
