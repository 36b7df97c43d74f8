"""Settings and parts of a wrong kind: refused when a learner is built, not in the midst of its training."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from ftml_bench.errors import UsageError, is_flag, is_number, is_whole, shown

# By the words of an annotation; one with any other word says nothing here.
KINDS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "None": (lambda value: value is None, "None"),
    "bool": (is_flag, "True or False"),
    "int": (is_whole, "a whole number"),
    "float": (lambda value: is_number(value) and not math.isnan(value), "a number"),
}


def refuse_kinds(signature: inspect.Signature, settings: Mapping[str, Any]) -> None:
    """See that whole numbers, numbers and flags are what the signature of a constructor says.

    :raises UsageError: for the first setting that is of another kind.
    """
    for name, value in settings.items():
        kinds = _kinds_of(signature.parameters[name].annotation)
        if not kinds or any(fits(value) for fits, _ in kinds):
            continue
        expected = " or ".join(words for _, words in kinds)
        if name == "inner_lr" and isinstance(value, Tensor):
            expected += ", which nothing trains; MetaSGD, MAMLPlusPlus and FTMLVS learn their inner rates"
        raise UsageError(f"{name}={shown(value)}: expected {expected}")


def _kinds_of(annotation: Any) -> list[tuple[Callable[[Any], bool], str]]:
    """What an annotation allows; empty for one that is not of these words alone."""
    text = annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)
    words = text.split(" | ")
    # None first, as in "None or a whole number"
    return [kind for word, kind in KINDS.items() if word in words] if set(words) <= KINDS.keys() else []


def refuse_parts(model: Any, optimizer: Any, criterion: Any) -> None:
    """See that a learner's parts are what they are taken for.

    :raises UsageError: for a model that is no module or holds no numbers, what is no optimiser or one whose step needs
        a closure, and a criterion that cannot be called.
    """
    if not isinstance(model, nn.Module):
        raise UsageError(f"model={shown(model)}: expected a module of PyTorch, an nn.Module")
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if tensor.is_meta:
            raise UsageError(f"{name} of the model is on the device 'meta', which holds no numbers: expected 'cpu'")
    if not hasattr(optimizer, "param_groups"):
        raise UsageError(
            f"optimizer={shown(optimizer)}: expected an optimiser, as torch.optim.SGD(model.parameters(), lr=0.1)"
        )
    closure = inspect.signature(optimizer.step).parameters.get("closure")
    if closure is not None and closure.default is closure.empty:
        raise UsageError(
            f"{type(optimizer).__name__} takes its step by a closure, which Avalanche's training loop does not give: "
            f"expected another optimiser, such as SGD or Adam"
        )
    if not callable(criterion) or isinstance(criterion, type):
        raise UsageError(
            f"criterion={shown(criterion)}: expected a function or module (outputs, targets) -> loss, as "
            f"nn.CrossEntropyLoss()"
        )
