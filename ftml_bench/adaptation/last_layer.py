"""Whether the layer whose parameters are defined last is the one that outputs come from."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from ftml_bench.adaptation.graph_leaves import leaves_of
from ftml_bench.adaptation.inner_loop import layer_of
from ftml_bench.errors import UsageError
from ftml_bench.models.norm import batch_statistics


def order_of_calls(model: nn.Module) -> list[str]:
    """A list to which every call of a layer with trainable parameters will add the layer's name."""
    called: list[str] = []
    # a weight that stands in two layers is of both
    layers = {layer_of(name) for name, p in model.named_parameters(remove_duplicate=False) if p.requires_grad}
    for name, module in model.named_modules():
        if name in layers:
            module.register_forward_hook(lambda *_, name=name: called.append(name))
    return called


def see_that_it_is_the_last(model: nn.Module, adapted: list[str], called: list[str]) -> None:
    """See that the layer that is defined last is the one that is called last.

    :param adapted: the names of its parameters.
    :raises UsageError: if it is not.
    """
    defined = layer_of(adapted[0])
    inner = [name for name in called if name == defined or not f"{defined}.".startswith(f"{name}." if name else "")]
    if inner and inner[-1] != defined:
        raise UsageError(
            f"adapted='last_layer': of {type(model).__name__} the last layer that is defined is {defined}, the last "
            f"that is called {inner[-1]}: give names of parameters"
        )


def see_that_nothing_follows(
    model: nn.Module, adapted: list[str], call: Callable[[Tensor], Tensor], inputs: Tensor
) -> None:
    """See that outputs hang on no other weight but by this layer, as on one that stands in the model itself.

    :param model: a copy, to which a hook is added; `call`: calls it.
    :raises UsageError: if they do.
    """
    last = layer_of(adapted[0])
    model.get_submodule(last).register_forward_hook(lambda *given: tree_map(_without_history, given[-1]))
    with torch.enable_grad(), batch_statistics():
        outputs = call(inputs.clone())
    behind = {id(leaf) for leaf in leaves_of(outputs)}
    for name, p in model.named_parameters():
        if id(p) in behind and name not in adapted:
            raise UsageError(
                f"adapted='last_layer': of {type(model).__name__} the last layer that is defined is "
                f"{last or 'the model itself'}, but outputs hang on {name} beside it: give names of parameters"
            )


def _without_history(value: Any) -> Any:
    return value.detach() if isinstance(value, Tensor) else value
