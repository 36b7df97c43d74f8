"""The network of the sinusoid stream."""

from __future__ import annotations

from collections import OrderedDict

from torch import nn

from ftml_bench.errors import at_least
from ftml_bench.models.norm import TaskBatchNorm
from ftml_bench.models.pose_net import BiasTransformation
from ftml_bench.models.stack import Stack


class SinusoidMLP(Stack):
    """Two hidden layers of 40 with ReLU (Finn, Abbeel, Levine 2017, section 5.1): (N, 1) -> (N, 1).

    :param hidden: units of each of the two layers.
    :param context: so many learned numbers, zero at first, beside each input: `context.vector`. Where they alone are
        adapted, FTML is like CAVIA (Zintgraf et al. 2019).
    :param norm: batch norm before each ReLU.

    >>> sum(p.numel() for p in SinusoidMLP().parameters())
    1761
    """

    def __init__(self, *, hidden: int = 40, context: int = 0, norm: bool = False) -> None:
        at_least(1, hidden=hidden)
        at_least(0, context=context)
        super().__init__(
            OrderedDict(
                **({"context": BiasTransformation(context)} if context else {}),
                linear1=nn.Linear(1 + context, hidden),
                **({"norm1": TaskBatchNorm(hidden)} if norm else {}),
                relu1=nn.ReLU(),
                linear2=nn.Linear(hidden, hidden),
                **({"norm2": TaskBatchNorm(hidden)} if norm else {}),
                relu2=nn.ReLU(),
                head=nn.Linear(hidden, 1),
            )
        )
