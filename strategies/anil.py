"""ANIL: almost no inner loop (Raghu, Raghu, Bengio, Vinyals 2020, "Rapid Learning or Feature Reuse?")."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

from ftml_bench.strategies.ftml import FTML


class ANIL(FTML):
    """FTML whose inner steps change the last layer alone, in training and in evaluations (section 4 of its paper).

    With features h_φ and the last layer w, U_k(φ, w) = (φ, w - α∇_w L(D_k^tr; φ, w)); the meta-gradient is that of all
    parameters. The engines `native` and `batched` compute a layer below the last once for all inner steps.

    :param adapted: what the inner loop changes: "last_layer", or names of parameters, for models with several heads.
    """

    def __init__(self, *, adapted: Literal["all", "last_layer"] | Iterable[str] = "last_layer", **learner) -> None:
        super().__init__(adapted=adapted, **learner)
