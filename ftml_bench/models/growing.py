"""Avalanche's classifiers that grow with the classes and tasks that they meet, brought to the size of a saved state."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from avalanche.models import IncrementalClassifier, MultiHeadClassifier
from torch import Tensor, nn


def fit(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Give every `IncrementalClassifier` and `MultiHeadClassifier` the units and heads that `state` has for it.

    New parameters have arbitrary values: `load_state_dict` is to follow. Other modules are not touched.

    :param state: a state dict of such a model, grown or not.
    """
    for name, module in list(model.named_modules()):
        if isinstance(module, MultiHeadClassifier):
            prefix = f"{name}." if name else ""
            _fit_heads(module, {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)})
    for name, module in list(model.named_modules()):
        if isinstance(module, IncrementalClassifier):
            _fit_units(module, state, f"{name}." if name else "")


def _fit_heads(module: MultiHeadClassifier, state: Mapping[str, Tensor]) -> None:
    device = module._adaptation_device
    heads = dict(module.classifiers.items())
    module.classifiers.clear()
    for key in state:  # their order is that of the parameters
        parts = key.split(".")
        if parts[0] == "classifiers" and parts[1] not in module.classifiers:
            new = IncrementalClassifier(
                module.in_features, module.starting_out_features, masking=False, auto_adapt=False
            )
            module.classifiers[parts[1]] = heads.get(parts[1], new.to(device))
    for key in [key for key in module._buffers if key.startswith("active_units_T")]:
        del module._buffers[key]
    for key, value in state.items():
        if key.startswith("active_units_T"):
            module.register_buffer(key, torch.zeros_like(value, device=device))


def _fit_units(module: IncrementalClassifier, state: Mapping[str, Tensor], prefix: str) -> None:
    device = module.classifier.weight.device
    weight, active = state.get(f"{prefix}classifier.weight"), state.get(f"{prefix}active_units")
    if weight is not None and len(weight) != module.classifier.out_features:
        module.classifier = nn.Linear(module.classifier.in_features, len(weight)).to(device)
    if active is not None and len(active) != len(module.active_units):
        module.active_units = torch.zeros_like(active, device=device)
