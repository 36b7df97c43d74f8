"""What an engine is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

from torch import Tensor

from ftml_bench.adaptation.rule import PLAIN, InnerRule
from ftml_bench.models.norm import Moments
from ftml_bench.recorded.graphs import Graphs

Criterion = Callable[[Tensor, Tensor], Tensor]
Parameters = Mapping[str, Tensor]
Outputs = Callable[[Parameters], Tensor | None]
Input = Tensor | tuple[Tensor, Tensor]  # a model that takes task labels: (inputs, labels), a label a point


class Engine(Protocol):
    """What computes "adapt, then predict" and its exact derivative."""

    name: str
    inner_lr: float
    inner_steps: int
    second_order: bool
    adapted: list[str]  # the parameters that inner steps change, by name
    criterion: Criterion
    graphs: Graphs
    takes_each: bool  # whether there are `choose_memory` and `predict_each`
    criterion_sees_weights: bool  # whether the criterion looks at them, beside outputs, as far as a trial has shown
    adapted_weights: list[dict[str, Tensor]] | None  # then: what the last call of `predict` adapted to each task

    @property
    def settings(self) -> dict[str, Any]:
        """Those of `InnerLoop` that it was made with or that were set since, by name."""
        ...

    @property
    def built(self) -> int:
        """How often it has been built: what was recorded before does not hold for a model that has changed since."""
        ...

    @property
    def chosen(self) -> dict[str, str]:
        """What was chosen and why, for a record: "engine", "engine_memory", "engine_note"."""
        ...

    @property
    def found_out(self) -> dict[str, Any]:
        """What a saved run goes on with: keywords of `go_on_with`."""
        ...

    def go_on_with(self, engine: str, notes: list[str]) -> None:
        """Use the engine that a saved run had found out to be exact, without trying others before it."""
        ...

    @property
    def moments(self) -> dict[str, Moments] | None:
        """What norm layers normalised the support sets by, before the first step of the last call, by layer.

        None where the engine cannot tell.
        """
        ...

    def predict(
        self,
        parameters: Parameters,
        support: tuple[Input, Tensor],
        query_x: Input,
        *,
        rule: InnerRule = PLAIN,
        every_step: bool = False,
    ) -> Tensor:
        """Post-adaptation outputs of T tasks, differentiable in `parameters` (paper, eq. 1 and 5).

        :param parameters: of the model, by name, as `dict(model.named_parameters())`.
        :param support: x (T, S, *input) and y (T, S, *target).
        :param query_x: (T, Q, *input). For models that take task labels x is the tuple (inputs, labels), a label a
            point; the engine "loop" alone passes them on.
        :param rule: what an inner step is beside plain gradient descent; outputs are differentiable in its tensors.
        :param every_step: the outputs after every inner step, (K, T, Q, *output), for losses of each of them.
        :return: (T, Q, *output).
        :raises UsageError: for a rule that does not fit the parameters, or `every_step` of no step.
        """
        ...

    def see_criterion(self, x: Input, y: Tensor) -> None:
        """Find out on some points whether a criterion of somebody's own looks at more than a trial has seen."""
        ...

    def choose_memory(self, parameters: Parameters, support: tuple[Tensor, Tensor]) -> str:
        """ "unroll" or "adjoint": how `predict` takes such a meta-batch; noted for the record.

        :raises UsageError: as `predict_each`.
        """
        ...

    def predict_each(
        self, parameters: Parameters, support: tuple[Tensor, Tensor], query_x: Tensor, memory: str
    ) -> Tensor:
        """As `predict`, with parameters of its own, (T, *shape) by name, for each task.

        :param memory: "unroll" or "adjoint".
        :raises UsageError: if the engine does not take them (`takes_each`).
        """
        ...

    def adapt(
        self, parameters: Parameters, x: Input, y: Tensor, steps: int, *, rule: InnerRule = PLAIN
    ) -> dict[str, Tensor]:
        """The update procedure (Algorithm 2): `steps` of full-batch gradient descent on one task's data.

        :param x: (N, *input), y: (N, *target); x with its task labels, (N,), if the model takes them.
        :return: the adapted copy, detached; `parameters` are left as they were.
        """
        ...

    def adapt_each(
        self, parameters: Parameters, x: Tensor, y: Tensor, steps: int, *, rule: InnerRule = PLAIN
    ) -> list[dict[str, Tensor]]:
        """`adapt` for T tasks of one size, all from the same parameters.

        :param x: (T, N, *input), y: (T, N, *target).
        """
        ...
