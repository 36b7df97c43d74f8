"""Where modules went: what was imported from an old place until 0.1.0 is found at the new one."""

from __future__ import annotations

import importlib
import sys
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

MOVED = {
    "ftml_bench.adaptation.graphs": "ftml_bench.recorded.graphs",
    "ftml_bench.benchmarks.cifar100": "ftml_bench.benchmarks.data.cifar100",
    "ftml_bench.benchmarks.mnist": "ftml_bench.benchmarks.data.mnist",
    "ftml_bench.cost": "ftml_bench.strategies.avalanche.cost",
    "ftml_bench.curves": "ftml_bench.metrics.curves",
    "ftml_bench.definition": "ftml_bench.runs.definition",
    "ftml_bench.measures": "ftml_bench.metrics.measures",
    "ftml_bench.plain_state": "ftml_bench.saving.plain_state",
    "ftml_bench.record": "ftml_bench.runs.record",
    "ftml_bench.report.statistics": "ftml_bench.results.statistics",
    "ftml_bench.storage": "ftml_bench.buffer.storage",
    "ftml_bench.strategies.base": "ftml_bench.strategies.avalanche.base",
    "ftml_bench.strategies.per_round": "ftml_bench.strategies.avalanche.per_round",
    "ftml_bench.strategies.stock": "ftml_bench.strategies.avalanche.stock",
    "ftml_bench.strategies.together": "ftml_bench.recorded.together",
}


class _AtItsNewPlace(MetaPathFinder, Loader):
    """Finds a module of the table: the very one that stands at the new place."""

    def find_spec(self, fullname, path=None, target=None) -> ModuleSpec | None:
        return ModuleSpec(fullname, self) if fullname in MOVED else None

    def exec_module(self, module: ModuleType) -> None:
        sys.modules[module.__name__] = importlib.import_module(MOVED[module.__name__])


def find() -> None:
    """Let the import system know of the table."""
    sys.meta_path.append(_AtItsNewPlace())
