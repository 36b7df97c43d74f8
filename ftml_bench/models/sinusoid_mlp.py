"""The network of the sinusoid stream."""

from __future__ import annotations

from collections import OrderedDict

from torch import nn

from ftml_bench.models.stack import Stack


class SinusoidMLP(Stack):
    """Two hidden layers of 40 with ReLU (Finn, Abbeel, Levine 2017, section 5.1): (N, 1) -> (N, 1).

    >>> sum(p.numel() for p in SinusoidMLP().parameters())
    1761
    """

    def __init__(self, *, hidden: int = 40) -> None:
        super().__init__(
            OrderedDict(
                linear1=nn.Linear(1, hidden),
                relu1=nn.ReLU(),
                linear2=nn.Linear(hidden, hidden),
                relu2=nn.ReLU(),
                head=nn.Linear(hidden, 1),
            )
        )
