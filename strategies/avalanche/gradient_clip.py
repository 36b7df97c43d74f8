"""Clipping of the outer gradient, element by element."""

from __future__ import annotations

import torch
from avalanche.core import SupervisedPlugin

from ftml_bench.errors import UsageError


class GradientClip(SupervisedPlugin):
    """Cuts every entry of the gradients to [-value, value] before the optimiser's step; of FTML the meta-gradient's.

    :param value: above 0.
    """

    def __init__(self, value: float) -> None:
        if not value > 0:
            raise UsageError(f"gradient clip {value}: expected a number above 0")
        super().__init__()
        self.value = value

    def before_update(self, strategy, *args, **kwargs) -> None:
        """Clip."""
        parameters = [p for group in strategy.optimizer.param_groups for p in group["params"]]
        torch.nn.utils.clip_grad_value_(parameters, self.value)
