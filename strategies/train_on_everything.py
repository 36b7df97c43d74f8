"""Train on everything: one model on all data so far (paper, section 6, baseline a)."""

from __future__ import annotations

import os
from typing import Literal

import torch
from avalanche.training.plugins.evaluation import default_evaluator
from torch import nn

from ftml_bench.strategies.joint import JointLearner


class TrainOnEverything(JointLearner):
    """Trains one model on all data so far, the current round's included, and tests it without any adaptation.

    The first arguments are Avalanche's own (see `SupervisedTemplate`); `train_mb_size` is the size of a minibatch,
    drawn from all rounds.

    :param steps: training steps an arrival; None: ceil(n / train_mb_size).
    :param batch_norm: "running": mixed minibatches, running statistics at evaluation. "support", "transductive":
        minibatches of per-task groups, and at evaluation the statistics of D_t or of the held-out batch.
    :param group_size: points of a group of one task.
    :param draw: mixed minibatches draw "tasks" equally often, or "datapoints"; "all": every step is on all data,
        whatever `train_mb_size` (exact gradients).
    :param update_size: at most so many points of D_t for its statistics.
    :param seed: of the draws.
    :param buffer_folder: keep the images of all rounds in a file there instead of in memory (streams of stacked
        tensors); the file is gone with the learner.
    """

    BATCH_NORM_RULES = ("running", "support", "transductive")

    def __init__(
        self,
        *,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        criterion: nn.Module = nn.CrossEntropyLoss(),  # noqa: B008 (as Avalanche's own)
        train_mb_size: int = 1,
        train_epochs: int = 1,
        eval_mb_size: int | None = None,
        device: str | torch.device = "cpu",
        plugins=None,
        evaluator=default_evaluator,
        eval_every: int = -1,
        peval_mode: str = "epoch",
        steps: int | None = None,
        batch_norm: Literal["running", "support", "transductive"] = "running",
        group_size: int = 20,
        draw: Literal["tasks", "datapoints", "all"] = "tasks",
        update_size: int = 1000,
        seed: int = 0,
        buffer_folder: str | os.PathLike[str] | None = None,
    ) -> None:
        super().__init__(
            model=model,
            optimizer=optimizer,
            criterion=criterion,
            train_mb_size=train_mb_size,
            train_epochs=train_epochs,
            eval_mb_size=eval_mb_size,
            device=device,
            plugins=plugins,
            evaluator=evaluator,
            eval_every=eval_every,
            peval_mode=peval_mode,
            steps=steps,
            batch_norm=batch_norm,
            group_size=group_size,
            draw=draw,
            update_size=update_size,
            seed=seed,
            buffer_folder=buffer_folder,
        )
