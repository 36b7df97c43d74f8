"""The loss of a meta-step: the mean over tasks of the loss of each (paper, eq. 5)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ftml_bench.adaptation import Criterion
from ftml_bench.adaptation.refusals import is_pytorchs
from ftml_bench.errors import UsageError

# Means over points: the mean over all tasks' points, of equal numbers, is the mean of the tasks' means.
MEANS = (nn.MSELoss, nn.L1Loss, nn.SmoothL1Loss, nn.HuberLoss, nn.BCELoss, nn.BCEWithLogitsLoss, nn.SoftMarginLoss)
MEAN_FUNCTIONS = (F.mse_loss, F.l1_loss, F.smooth_l1_loss, F.huber_loss, F.binary_cross_entropy_with_logits)


def mean_over_tasks(
    criterion: Criterion, outputs: Tensor, targets: Tensor, tasks: int, *, ignores: bool | None = None
) -> Tensor:
    """The mean of the losses of `tasks` consecutive equal parts.

    At once where that is the same; a loss with weights of classes, with targets that are ignored, or of pairs of points
    is another one over all tasks together.

    :param outputs: (T * Q, *output).
    :param targets: (T * Q, *target).
    :param ignores: whether any targets may be those that a cross entropy ignores; None: look at them.
    :raises UsageError: for outputs of several tasks that are no tensor.
    """
    if tasks > 1 and not isinstance(outputs, Tensor):
        kind = type(outputs).__name__
        raise UsageError(f"the model gives a {kind}: expected one tensor of outputs in a meta-batch of several tasks")
    if tasks == 1 or _is_mean_of_points(criterion, targets, ignores):
        return criterion(outputs, targets)
    parts = zip(outputs.chunk(tasks), targets.chunk(tasks), strict=True)
    return torch.stack([criterion(*part) for part in parts]).mean()


def ignored_by(criterion: Criterion) -> int | None:
    """The target that a cross entropy passes over; None: the criterion is another."""
    if type(criterion) is nn.CrossEntropyLoss:
        return criterion.ignore_index
    return -100 if criterion is F.cross_entropy else None


def _is_mean_of_points(criterion: Criterion, targets: Tensor, ignores: bool | None) -> bool:
    if not is_pytorchs(criterion):
        return False
    ignored = ignored_by(criterion)
    if ignored is None:
        is_mean = isinstance(criterion, MEANS) and type(criterion) in MEANS and criterion.reduction == "mean"
        return is_mean or criterion in MEAN_FUNCTIONS
    if isinstance(criterion, nn.Module) and (criterion.weight is not None or criterion.reduction != "mean"):
        return False
    if ignores is None:
        ignores = not targets.is_floating_point() and bool((targets == ignored).any())
    return not ignores
