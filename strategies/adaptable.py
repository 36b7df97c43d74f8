"""Models whose predictions no gradient step changes: classifiers by class means, for one."""

from __future__ import annotations

import warnings
from weakref import WeakSet

import torch
from avalanche.models import avalanche_forward
from torch import Tensor, nn

from ftml_bench.adaptation.inner_loop import Input

_warned: WeakSet = WeakSet()  # learners


def adaptable(model: nn.Module, x: Input, learner: object) -> bool:
    """Whether what `model` predicts in its present mode has a gradient; where not, warns once, by the learner's name.

    Avalanche's `NCMClassifier` and `FeCAMClassifier` predict without: a model that has one for its evaluations is
    evaluated as it is.
    """
    inputs, labels = (x[0][:1], x[1][:1]) if isinstance(x, tuple) else (x[:1], None)
    with torch.enable_grad():
        outputs = avalanche_forward(model, inputs.clone(), labels)
    parts = outputs if isinstance(outputs, (tuple, list)) else (outputs,)
    has_gradient = any(isinstance(part, Tensor) and part.requires_grad for part in parts)
    if has_gradient or not any(p.requires_grad for p in model.parameters()):
        return True
    if learner not in _warned:
        _warned.add(learner)
        warnings.warn(
            f"{type(learner).__name__}: the predictions of {type(model).__name__} have no gradient in evaluation mode: "
            f"it is evaluated as it is, not adapted to the task's data",
            stacklevel=2,
        )
    return False
