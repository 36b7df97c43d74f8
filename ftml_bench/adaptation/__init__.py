"""The inner loop: "adapt, then predict", differentiable in the meta-parameters. One file an engine."""

from __future__ import annotations

from torch import nn

from ftml_bench.adaptation.auto import TriedEngine
from ftml_bench.adaptation.batched import BatchedEngine
from ftml_bench.adaptation.engine import Criterion, Engine
from ftml_bench.adaptation.higher_engine import HigherEngine
from ftml_bench.adaptation.inner_loop import InnerLoop, adapted_names, update_procedure
from ftml_bench.adaptation.loop import LoopEngine
from ftml_bench.adaptation.native import NativeEngine, see_that_it_is_built
from ftml_bench.adaptation.rule import InnerRule
from ftml_bench.adaptation.vmap import VmapEngine
from ftml_bench.errors import unknown

ENGINES: dict[str, type[InnerLoop]] = {
    "higher": HigherEngine,
    "loop": LoopEngine,
    "vmap": VmapEngine,
    "batched": BatchedEngine,
    "native": NativeEngine,
}


# In the order in which "auto" tries them.
AUTO: list[type[InnerLoop]] = [NativeEngine, BatchedEngine, VmapEngine, LoopEngine]
# What is asked for by name, and what takes the models that it does not.
TRIED: dict[str, list[type[InnerLoop]]] = {
    **{name: [engine] for name, engine in ENGINES.items()},
    "native": [NativeEngine, BatchedEngine],
    "auto": AUTO,
}


def make_engine(name: str, model: nn.Module, criterion: Criterion, **settings) -> Engine:
    """An engine by name: one of `ENGINES`, or "auto", the fastest that is exact for `model`.

    What "native" does not take, "batched" does; the record says why (`Engine.chosen`).

    At the first meta-batch an engine is compared with plain copies of the model, by finite differences (see `trial`).

    :param settings: those of `InnerLoop`: inner_lr, inner_steps, second_order, adapted, batch_norm, inner_clip, memory,
        memory_budget.
    :raises UsageError: for an unknown name, "native" where it has not been built, or a model that the named engine
        cannot treat exactly; what cannot be known before, at the first `predict`.

    >>> make_engine("vmap", nn.Linear(2, 1), nn.MSELoss(), inner_lr=0.1, inner_steps=1).name
    'vmap'
    """
    if name not in TRIED:
        raise unknown("engine", name, [*TRIED])
    if name == "native":
        see_that_it_is_built()
    return TriedEngine(TRIED[name], model, criterion, settings)


__all__ = ["ENGINES", "Engine", "InnerLoop", "InnerRule", "adapted_names", "make_engine", "update_procedure"]
