"""Prediction of points of several tasks, each by the copy of its own task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from avalanche.models import MultiTaskModule, avalanche_forward
from torch import Tensor, nn

from ftml_bench.errors import UsageError


class TaskCopies(MultiTaskModule):
    """A model that takes task labels: a point is predicted by the model of its label.

    :param models: by task label, all of them in the mode that they are used in.
    """

    def __init__(self, models: Mapping[int, nn.Module]) -> None:
        super().__init__()
        self.models = nn.ModuleDict({str(label): model for label, model in models.items()})

    def forward(self, x: Tensor, task_labels: Tensor) -> Any:
        """The outputs of all points, in their order.

        :param x: (N, *input).
        :param task_labels: (N,).
        """
        places, outputs = [], []
        for label in task_labels.unique().tolist():
            rows = (task_labels == label).nonzero().flatten()
            places.append(rows)
            outputs.append(avalanche_forward(self.models[str(label)], x[rows], task_labels[rows]))
        return _in_order(outputs, torch.cat(places).argsort())


def _in_order(outputs: Sequence[Any], order: Tensor) -> Any:
    """Outputs of groups of points, one group after the other, as one in the points' order; also in tuples."""
    first = outputs[0]
    if isinstance(first, (tuple, list)):
        return type(first)(_in_order(parts, order) for parts in zip(*outputs, strict=True))
    if not isinstance(first, Tensor):
        raise UsageError(f"outputs of points of several tasks are of type {type(first).__name__}: expected tensors")
    if len({output.shape[1:] for output in outputs}) > 1:  # heads of several widths: as Avalanche's models join them
        if any(output.dim() != 2 for output in outputs):
            raise UsageError(f"outputs of points of several tasks differ in shape: {[tuple(o.shape) for o in outputs]}")
        width = max(output.shape[1] for output in outputs)
        outputs = [nn.functional.pad(output, (0, width - output.shape[1])) for output in outputs]
    return torch.cat(list(outputs)).index_select(0, order)
