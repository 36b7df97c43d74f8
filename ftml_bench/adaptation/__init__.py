"""The inner loop: "adapt, then predict", differentiable in the meta-parameters. One file an engine."""

from __future__ import annotations

from torch import nn

from ftml_bench.adaptation.auto import TriedEngine
from ftml_bench.adaptation.batched import BatchedEngine
from ftml_bench.adaptation.higher_engine import HigherEngine
from ftml_bench.adaptation.inner_loop import Criterion, Engine, InnerLoop, adapted_names, update_procedure
from ftml_bench.adaptation.loop import LoopEngine
from ftml_bench.adaptation.native import NativeEngine
from ftml_bench.adaptation.vmap import VmapEngine
from ftml_bench.errors import unknown

ENGINES: dict[str, type[InnerLoop]] = {
    "higher": HigherEngine,
    "loop": LoopEngine,
    "vmap": VmapEngine,
    "batched": BatchedEngine,
    "native": NativeEngine,
}


# in the order in which "auto" tries them
AUTO: list[type[InnerLoop]] = [BatchedEngine, VmapEngine, LoopEngine]


def make_engine(name: str, model: nn.Module, criterion: Criterion, **settings) -> Engine:
    """An engine by name: "higher", "loop", "vmap", "batched", or "auto", the fastest that is exact for `model`.

    At the first meta-batch an engine is compared with plain copies of the model, by finite differences (see `trial`).

    :param settings: those of `InnerLoop`: inner_lr, inner_steps, second_order, adapted, batch_norm, inner_clip, memory,
        memory_budget.
    :raises UsageError: for an unknown name, or a model that the named engine cannot treat exactly; what cannot be known
        before, at the first `predict`.

    >>> make_engine("auto", nn.Linear(2, 1), nn.MSELoss(), inner_lr=0.1, inner_steps=1).name
    'batched'
    """
    if name != "auto" and name not in ENGINES:
        raise unknown("engine", name, [*ENGINES, "auto"])
    return TriedEngine(AUTO if name == "auto" else [ENGINES[name]], model, criterion, settings)


__all__ = ["ENGINES", "Engine", "InnerLoop", "adapted_names", "make_engine", "update_procedure"]
