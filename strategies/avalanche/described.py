"""What a strategy is, in a line for people."""

from __future__ import annotations

from typing import Any


def described(strategy: Any) -> str:
    """Its class, model, optimiser and steps: "FTML of SinusoidMLP (1,761 parameters) by Adam, 20 steps an arrival"."""
    model, steps = strategy.model, strategy.steps
    parameters = sum(parameter.numel() for parameter in model.parameters())
    spent = "an epoch an arrival" if steps is None else f"{steps} step{'s' if steps > 1 else ''} an arrival"
    optimizer = type(strategy.optimizer).__name__
    return f"{type(strategy).__name__} of {type(model).__name__} ({parameters:,} parameters) by {optimizer}, {spent}"
