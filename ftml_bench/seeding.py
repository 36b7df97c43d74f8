"""Random numbers: one seed a cell, independent generators derived from it by name.

Changing how one thing draws changes nothing else, because no two things draw from the same generator. What is not
ours may draw from the global ones.
"""

from __future__ import annotations

import hashlib
import random

import numpy as np
import torch


def derive(seed: int, *names: object) -> int:
    """A seed in [0, 2**63) that depends on `seed` and on every name, the same on every machine.

    >>> derive(0, "arrivals", 3) == derive(0, "arrivals", 3) != derive(0, "arrivals", 4)
    True
    """
    text = "/".join(str(part) for part in (seed, *names))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def generator(seed: int, *names: object) -> torch.Generator:
    """A CPU generator of its own for the thing that `names` name."""
    return torch.Generator().manual_seed(derive(seed, *names))


def seed_globals(seed: int) -> None:
    """Seeds the generators that a foreign model or layer may draw from: those of PyTorch, Python and NumPy."""
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed % 2**32)  # takes no more
