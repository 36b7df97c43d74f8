"""The inner loop task by task, by calls of the model with other weights: for every model that can be called so."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from copy import copy
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ftml_bench.adaptation.inner_loop import Criterion, Input, Parameters
from ftml_bench.adaptation.rule import PLAIN, InnerRule, weights_among
from ftml_bench.adaptation.steps import Weights, WrittenSteps
from ftml_bench.adaptation.weights import call_with, while_holding
from ftml_bench.models.norm import batch_statistics


class LoopEngine(WrittenSteps):
    """One task at a time.

    By the adjoint the model holds the adapted weights until a derivative has been taken, which makes it exact for
    models that compute a part of themselves once more on the way back (`torch.utils.checkpoint`).
    """

    name = "loop"

    def __init__(self, model: nn.Module, criterion: Criterion, **settings: Any) -> None:
        super().__init__(model, criterion, **settings)
        self._label: Tensor | None = None  # of the task at hand, for a model that takes task labels
        self._last_weights: Weights = {}  # that a query was predicted with

    def predict(
        self,
        parameters: Parameters,
        support: tuple[Input, Tensor],
        query_x: Input,
        *,
        rule: InnerRule = PLAIN,
        every_step: bool = False,
    ) -> Tensor:
        """See `Engine.predict`; of a model that takes task labels each task has one, that of its first point."""
        self._rule, self._every_step = rule, every_step
        fast = {**parameters, **rule.tensors(parameters, self.adapted)}
        outputs, weights = [], []
        keeps = self.criterion_sees_weights and not every_step
        for engine, x, y, query in self._tasks(*support, query_x):
            memory = engine._memory_for(len(support[1]), partial(lambda *task: task, dict(parameters), x, y))
            outputs.append(engine._adapted_outputs(fast, x, y, query, memory))
            keeps = keeps and memory == "unroll" and not rule.implicit
            weights.append(engine._last_weights)
            self.chosen_memory, self.memory_note = engine.chosen_memory, engine.memory_note
        self.adapted_weights = weights if keeps else None
        return torch.stack(outputs, dim=1 if every_step else 0)

    def _tasks(self, x: Input, y: Tensor, query_x: Input) -> Iterator[tuple[LoopEngine, Tensor, Tensor, Tensor]]:
        """What takes each task, and its data."""
        if isinstance(x, Tensor):
            yield from ((self, *task) for task in zip(x, y, query_x, strict=True))
            return
        for label, *task in zip(x[1][:, 0], x[0], y, query_x[0], strict=True):
            engine = copy(self)
            engine._label = label
            yield engine, *task

    def _loss(self, fast: Weights, x: Tensor, y: Tensor) -> Tensor:
        # a criterion may look at the model's weights, too: a penalty on them, for one
        return while_holding(self.model, weights_among(fast), lambda: self._support_loss(self._call_as_it_is, x, y))

    def _outputs(self, fast: Weights, support_x: Tensor, query_x: Tensor) -> Tensor:
        if self.criterion_sees_weights:
            self._last_weights = weights_among(fast)
        return self._query_outputs(partial(self._call, fast), support_x, query_x)

    def _held(self, fast: Weights, function: Callable[[], list], first: int | None = None) -> list:
        with batch_statistics(first=first):
            return while_holding(self.model, weights_among(fast), function)

    def _call(self, fast: Weights, x: Tensor) -> Tensor:
        return call_with(self.model, weights_among(fast), x, *self._labels(x))

    def _call_as_it_is(self, x: Tensor) -> Tensor:
        return self.model(x, *self._labels(x))

    def _labels(self, x: Tensor) -> tuple[Tensor, ...]:
        return () if self._label is None else (self._label.expand(len(x)),)
