"""Models whose predictions no gradient step changes: classifiers by class means, for one."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from weakref import WeakSet

from torch import nn

from ftml_bench.adaptation.inner_loop import NoGradientError

_warned: WeakSet = WeakSet()  # learners


@contextmanager
def as_it_is_without_gradient(model: nn.Module, learner: object) -> Iterator[None]:
    """Inside, an adaptation that finds no gradient ends; the first time it is said, by the learner's name.

    Avalanche's `NCMClassifier` and `FeCAMClassifier` predict without: a model that has one for its evaluations is
    evaluated as it is.
    """
    try:
        yield
    except NoGradientError:
        if learner in _warned:
            return
        _warned.add(learner)
        warnings.warn(
            f"{type(learner).__name__}: the predictions of {type(model).__name__} have no gradient in evaluation mode: "
            f"it is evaluated as it is, not adapted to the task's data",
            stacklevel=3,
        )
