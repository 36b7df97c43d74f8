"""Results of leaderboards as numbers: `load("runs/quick")` gives frames, and functions say how they come about.

Imports no PyTorch. What is asked for is imported then, so that the command line answers at once.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ftml_bench.results.frames import Results, load
    from ftml_bench.results.kaplan_meier import Survival, survival
    from ftml_bench.results.pairs import Pair, holm, paired, sign_flip_p, verdict

__all__ = ["Pair", "Results", "Survival", "holm", "load", "paired", "sign_flip_p", "survival", "verdict"]

_MODULES = {"Results": "frames", "load": "frames", "Survival": "kaplan_meier", "survival": "kaplan_meier"}


def __dir__() -> list[str]:
    return [*globals(), *__all__]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES.get(name, 'pairs')}"), name)
