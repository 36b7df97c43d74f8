"""The fastest engine that is exact for a model, with the reasons against the others."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from ftml_bench.adaptation.batched import BatchedEngine
from ftml_bench.adaptation.inner_loop import Criterion, Engine, InnerLoop, Input, Parameters, UntreatableError
from ftml_bench.adaptation.loop import LoopEngine
from ftml_bench.adaptation.vmap import VmapEngine


def fastest(model: nn.Module, criterion: Criterion, **settings: Any) -> Engine:
    """`batched` where the model is a plain stack, else `vmap` until it refuses the model, else `loop`."""
    try:
        return BatchedEngine(model, criterion, **settings)
    except UntreatableError as reason:
        return VmapOrLoop(model, criterion, reason.note, **settings)


class VmapOrLoop:
    """`vmap`, which finds out at its first `predict` whether it can treat a model, and `loop` from then on if not."""

    def __init__(self, model: nn.Module, criterion: Criterion, note: str, **settings: Any) -> None:
        self._loop = LoopEngine(model, criterion, **settings)
        self._notes = [note]
        self._engine: InnerLoop = self._loop
        try:
            self._engine = VmapEngine(model, criterion, **settings)
        except UntreatableError as reason:
            self._notes.append(reason.note)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    @property
    def chosen(self) -> dict[str, str]:
        """See `Engine.chosen`."""
        chosen = self._engine.chosen
        return {**chosen, "engine_note": "; ".join([*self._notes, *filter(None, [chosen.get("engine_note")])])}

    def predict(self, parameters: Parameters, support: tuple[Input, Tensor], query_x: Input) -> Tensor:
        """See `Engine.predict`."""
        if self._engine is not self._loop:
            try:
                return self._engine.predict(parameters, support, query_x)
            except UntreatableError as reason:
                self._notes.append(reason.note)
                self._engine = self._loop
        return self._loop.predict(parameters, support, query_x)
