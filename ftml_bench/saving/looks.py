"""How attributes look, in plain values: whether they have changed, and whether another object's are the same.

`plain_state` saves what can be saved. Functions, and objects of classes that nobody knows, cannot be; what can be seen
of them from outside is compared.
"""

from __future__ import annotations

import hashlib
import reprlib
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from enum import Enum
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from ftml_bench.models.layer_state import FUNCTIONS, PARTS_OF_MODULES, is_object, leaves, parts_of

Look = Any  # numbers, text, and lists of them
Looks = Sequence[tuple[object, dict[str, Look]]]  # layers and other parts, and how their attributes look

_PARTS_OF_OPTIMIZERS = frozenset({*vars(torch.optim.SGD([torch.zeros(1)], lr=1.0)), "step", "_opt_called"})
_OF_COMPILING = frozenset({"_torchdynamo_wrapper_id", "_torchdynamo_orig_callable"})
_SHOWN = 100  # entries of a tensor that are kept to be shown


def looks_of_parts(model: nn.Module, criterion: object, optimizer: Optimizer) -> Looks:
    """How the attributes of layers, criterion and optimiser look now; to be compared with when saving and loading.

    A criterion's tensors are settings of its own, as weights of classes are; a model's are drawn, and saved.
    """
    of_model = dict.fromkeys(model.modules())
    return [
        *((layer, looks_of_attributes(layer)) for layer in of_model),
        *((part, looks_of_attributes(part, contents=True)) for part in parts_of(criterion) if part not in of_model),
        (optimizer, looks_of_attributes(optimizer)),
    ]


def at_first(owner: object, looks: Looks) -> dict[str, Look] | None:
    """How its attributes looked; None where it has come since."""
    return next((first for part, first in looks if part is owner), None)


def attributes_of(owner: object) -> dict[str, Any]:
    """Those that are not what a module or an optimiser consists of."""
    left_out = PARTS_OF_MODULES if isinstance(owner, nn.Module) else frozenset()
    left_out = _PARTS_OF_OPTIMIZERS if isinstance(owner, Optimizer) else left_out
    return {name: value for name, value in vars(owner).items() if name not in left_out | _OF_COMPILING}


def buffers_of(owner: object) -> dict[str, Tensor | None]:
    """A layer's own."""
    return owner._buffers if isinstance(owner, nn.Module) else {}


def looks_of_attributes(owner: object, *, contents: bool = False) -> dict[str, Look]:
    """How each looks, and each buffer.

    :param contents: of tensors, too.
    """
    return {
        name: looks_of(value, contents=contents)
        for name, value in {**buffers_of(owner), **attributes_of(owner)}.items()
    }


def looks_of(value: Any, *, contents: bool = False, inside: bool = False) -> Look:
    """How a value looks.

    :param contents: of tensors, too.
    :param inside: whether it is of an object, beyond which nobody looks.
    """

    def of(part: Any) -> Look:
        return looks_of(part, contents=contents, inside=inside)

    if isinstance(value, np.generic):
        value = value.item()
    kind = type(value).__qualname__
    if value is None or type(value) in (bool, int, str):
        return value
    if type(value) is float:
        return value if value == value else "nan"
    if isinstance(value, Mapping):
        return [kind, *([of(k), of(v)] for k, v in value.items())]
    if isinstance(value, list | tuple | deque):
        return [kind, *map(of, value)]
    if isinstance(value, set | frozenset):
        return [kind, *sorted(map(of, value), key=repr)]
    if isinstance(value, FUNCTIONS):
        return value.__qualname__  # without its module: a script is "__main__" once, and imported another time
    if isinstance(value, partial):
        return [kind, of(value.func), of(value.args), of(value.keywords)]
    if isinstance(value, Enum | torch.dtype):
        return str(value)
    if isinstance(value, Tensor) and contents:
        return _content(value.detach().cpu())
    if isinstance(value, Optimizer):
        return [kind, bool(value.state)]
    if isinstance(value, LRScheduler):
        return [kind, value.last_epoch]
    if is_object(value) and not inside:
        found = ([name, looks_of(v, contents=contents, inside=True)] for name, v in vars(value).items())
        return [kind, *found]
    return kind


def _content(tensor: Tensor) -> Look:
    if tensor.numel() <= _SHOWN:
        return looks_of(tensor.tolist())
    values = tensor.contiguous().view(-1).view(torch.uint8).numpy()
    return [*tensor.shape, hashlib.sha256(values.tobytes()).hexdigest()]


def may_change(value: Any) -> bool:
    """Whether something in it may change that cannot be seen."""
    return any(is_object(leaf) or isinstance(leaf, Iterator) for leaf in leaves(value))


def shown(look: Look) -> str:
    """A look in a few words: a list without the name of its type."""
    return reprlib.repr(look[1:] if isinstance(look, list) and look and isinstance(look[0], str) else look)
