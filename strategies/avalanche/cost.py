"""What learning has cost so far."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Cost:
    """Counted since the start of a run."""

    steps: int = 0  # training steps
    images: int = 0  # drawn in training steps
    gradient_evaluations: int = 0  # forward and backward of one example; update procedures included
    points_kept: int | None = None  # the most that training could draw from at a time; None: not known
