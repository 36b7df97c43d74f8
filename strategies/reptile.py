"""Reptile (Nichol, Achiam, Schulman 2018, "On First-Order Meta-Learning Algorithms", Algorithms 1 and 2)."""

from __future__ import annotations

import torch
from torch import Tensor
from typing_extensions import Unpack

from ftml_bench.buffer.task_sampling import sample_tasks
from ftml_bench.errors import UsageError
from ftml_bench.strategies.displaced import Displaced
from ftml_bench.strategies.meta_learner import MetaLearnerKeywords


class Reptile(Displaced):
    """Moves towards the weights that tasks of the buffer are adapted to.

    θ ← θ + ε (θ_K - θ), the mean over a meta-batch of tasks, where θ_K is θ after K inner steps on a support set of a
    task. SGD with the rate ε is the algorithm as it is written, Adam the authors' variant. They take an inner step on a
    minibatch each; here all K are on the support set. Evaluations are FTML's.

    :param meta_batch_size: tasks of a meta-batch, drawn uniformly with replacement.
    :param support_size: points of a task; None: all of D_k, of rounds of one size.
    """

    def __init__(
        self, *, meta_batch_size: int = 25, support_size: int | None = 10, **learner: Unpack[MetaLearnerKeywords]
    ) -> None:
        for name, value in (("meta_batch_size", meta_batch_size), ("support_size", support_size)):
            if value is not None and value < 1:
                raise UsageError(f"{name}={value}: expected a number of at least 1")
        super().__init__(**learner)
        self.meta_batch_size = meta_batch_size
        self.support_size = support_size

    def _draw(self) -> list[Tensor]:
        rounds = self._rounds()
        tasks = sample_tasks(rounds, torch.ones(len(rounds)), self.meta_batch_size, self.rng)
        return self._support(tasks, self.support_size)

    def _target(self, x: Tensor, y: Tensor, labels: Tensor) -> dict[str, Tensor]:
        return self._mean_adapted(dict(self.model.named_parameters()), x, y, labels)
