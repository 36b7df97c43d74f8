"""Calling a model with other weights than its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils._pytree import tree_leaves

from ftml_bench.adaptation.agreement import distances, typical
from ftml_bench.adaptation.refusals import is_pytorchs, refuse_views_of_weights, view_of_weight
from ftml_bench.errors import UsageError
from ftml_bench.random_state import own_generators_kept, random_state, replayed


def call_with(model: nn.Module, weights: Mapping[str, Tensor], *inputs: Tensor) -> Any:
    """`model(*inputs)` with the parameters `weights`, by the names of `named_parameters()`; the model keeps its own."""
    return functional_call(model, _wherever_they_stand(model, weights), inputs, tie_weights=False)


def while_holding(model: nn.Module, weights: Mapping[str, Tensor], function: Callable[[], Any]) -> Any:
    """`function()`, while the parameters of `model` are `weights`: also what is computed backwards sees them.

    `call_with` puts the model's own back before anybody goes backwards, when a checkpoint (`torch.utils.checkpoint`)
    computes its part of the model once more.
    """
    held = {f"model.{name}": w for name, w in _wherever_they_stand(model, weights).items()}
    return functional_call(_Holder(model), held, (function,), tie_weights=False)


def loss_by(
    model: nn.Module | None, own: nn.Module | None, criterion: Callable[..., Any], outputs: Any, targets: Any
) -> Any:
    """The criterion of what `model`, a copy of `own`, has predicted: one that looks at the weights of `own`, as a
    penalty does, sees those of `model`."""
    loss = partial(criterion, outputs, targets)
    if model is own or model is None or own is None or is_pytorchs(criterion):
        return loss()
    parameters = dict(own.named_parameters())
    shared = {n: p for n, p in model.named_parameters() if n in parameters and p.shape == parameters[n].shape}
    return while_holding(own, shared, loss)


class _Holder(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, function: Callable[[], Any]) -> Any:
        return function()


def put(weights: Mapping[str, Tensor], copy: nn.Module, model: nn.Module) -> None:
    """Give the parameters of `copy`, a copy of `model`, the values `weights`.

    :raises UsageError: if the copy's parameters are the model's own, which would be overwritten.
    """
    # not `load_state_dict`, which a model may have of its own
    own = {id(p) for p in model.parameters()}
    with torch.no_grad():
        for name, p in copy.named_parameters():
            if name in weights and id(p) in own:
                raise UsageError(f"a copy of {type(model).__name__} shares parameter {name} with it (__deepcopy__)")
            if name in weights:
                p.copy_(weights[name])


def see_that_it_follows(copy: nn.Module, model: nn.Module, *inputs: Tensor) -> bool:
    """See that `copy` computes with its own weights, as `model` would with them.

    :return: whether outputs at these weights differ from those at the model's own, so that it was to be seen.
    :raises UsageError: if it does not: a hook or a function in it holds the model that it was copied from.
    """
    weights = dict(copy.named_parameters())
    state = random_state(inputs[0].device)
    found = []
    layers = [*copy.modules(), *model.modules()]
    for call in (copy, partial(call_with, model, weights), model):
        with replayed(state, inputs[0].device), own_generators_kept(layers), torch.no_grad():
            outputs = call(*_cloned(inputs))
        found.append([part for part in tree_leaves(outputs) if isinstance(part, Tensor)])
    seen = False
    for of_copy, expected, before in zip(*found, strict=True):
        moved = typical(distances(before, expected))
        seen |= moved > 0
        if not (distances(of_copy, expected) > 1e-3 * moved).any():
            continue
        refuse_views_of_weights(model)
        raise UsageError(
            f"a copy of {type(model).__name__} does not compute with its own weights: a hook or a function in it holds "
            f"the model that was copied; expected modules that find their weights in themselves"
        )
    return seen


def may_hold_the_model(model: nn.Module) -> bool:
    """Whether modules hold functions of their own, such as hooks, in which a copy may hold what it was copied from, or
    views of weights, which stay those of the model's own.
    """
    if view_of_weight(model):
        return True
    values = [value for module in model.modules() for value in vars(module).values()]
    inner = [v for value in values if isinstance(value, (list, dict)) for v in _values(value)]
    return any(callable(value) and not isinstance(value, nn.Module) for value in values + inner)


def _values(container: list | dict) -> list:
    return list(container.values()) if isinstance(container, dict) else container


def _cloned(inputs: tuple[Tensor, ...]) -> list[Tensor]:
    return [part.clone() for part in inputs]


def _wherever_they_stand(model: nn.Module, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights by every name under which a module holds them, each module once; other names as they are (buffers).

    `functional_call` can find shared parameters itself, but leaves a module that stands twice without its own weights.
    """
    names = {id(p): name for name, p in model.named_parameters()}
    found = {
        f"{place}.{local}" if place else local: weights[names[id(p)]]
        for place, module in model.named_modules()
        for local, p in module._parameters.items()
        if p is not None and names.get(id(p)) in weights
    }
    known = set(names.values())
    return found | {name: w for name, w in weights.items() if name not in known}
