"""Train on everything: one model on all data so far (paper, section 6, baseline a)."""

from __future__ import annotations

from typing import Literal

from typing_extensions import Unpack

from ftml_bench.strategies.avalanche.keywords import LearnerKeywords
from ftml_bench.strategies.joint import JointLearner


class TrainOnEverything(JointLearner):
    """Trains one model on all data so far, the current round's included, and tests it without any adaptation.

    :param batch_norm: "running": mixed minibatches, running statistics at evaluation. "support", "transductive":
        minibatches of per-task groups, and at evaluation the statistics of D_t or of the held-out batch.
    :param group_size: points of a group of one task, of which a minibatch has a whole number; None: nearest to 20.
    :param draw: mixed minibatches draw "tasks" equally often, or "datapoints"; "all": every step is on all data,
        whatever `train_mb_size` (exact gradients).
    """

    BATCH_NORM_RULES = ("running", "support", "transductive")

    def __init__(
        self,
        *,
        batch_norm: Literal["running", "support", "transductive"] = "running",
        group_size: int | None = None,
        draw: Literal["tasks", "datapoints", "all"] = "tasks",
        **learner: Unpack[LearnerKeywords],
    ) -> None:
        super().__init__(batch_norm=batch_norm, group_size=group_size, draw=draw, **learner)
