"""Reptile (Nichol, Achiam, Schulman 2018, "On First-Order Meta-Learning Algorithms", Algorithms 1 and 2)."""

from __future__ import annotations

import torch
from avalanche.models.utils import is_multi_task_module
from torch import Tensor
from typing_extensions import Unpack

from ftml_bench.buffer.task_sampling import sample_tasks
from ftml_bench.errors import UsageError
from ftml_bench.strategies.meta_learner import MetaLearner, MetaLearnerKeywords


class Reptile(MetaLearner):
    """Moves towards the weights that tasks of the buffer are adapted to; no query set, no second derivative.

    θ ← θ + ε (θ_K - θ), the mean over a meta-batch of tasks, where θ_K is θ after K inner steps on a support set of a
    task. What the outer optimiser sees as gradient is θ - θ_K, so that SGD with the rate ε is the algorithm as it is
    written, and Adam the authors' variant. The loss that plugins and metrics see is that of θ on the support sets; what
    a plugin adds to it acts by its own gradient at θ. The authors take an inner step on a minibatch each; here all K
    steps are on the support set. Evaluations are FTML's.

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
        self._targets: dict[str, Tensor] = {}  # the mean of θ_K, of the minibatch at hand

    def _draw(self) -> list[Tensor]:
        rounds = self._rounds()
        tasks = sample_tasks(rounds, torch.ones(len(rounds)), self.meta_batch_size, self.rng)
        return self._support(tasks, self.support_size)

    def _support(self, tasks: list[int], size: int | None) -> list[Tensor]:
        """A minibatch whose query sets are its support sets."""
        if size is None:
            (x, y), labels = self.buffer.everything(tasks)
        else:
            (x, y), labels = self.buffer.labelled_groups(tasks, size, self.rng)
        support = x.unflatten(0, (len(tasks), -1)), y.unflatten(0, (len(tasks), -1))
        return self._minibatch(support, support, labels)

    def forward(self) -> Tensor:
        """In training: the unadapted model's outputs on the support points, (T * S, *output)."""
        if not self.is_training:
            return super().forward()
        _, _, x, y, labels = self.mbatch
        labels = labels.unflatten(0, (len(x), -1))[:, :1]
        self._targets = self._mean_adapted(x, y, labels)
        return self._unadapted_outputs(x, labels)

    def _mean_adapted(self, x: Tensor, y: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """The mean of θ_K over the tasks with support sets x (T, S, *input), y and labels (T, 1)."""
        parameters, steps = dict(self.model.named_parameters()), self.engine.inner_steps
        if is_multi_task_module(self.model):
            tasks = zip(x, y, labels.expand(-1, x.shape[1]), strict=True)
            found = [self.engine.adapt(parameters, (x, label), y, steps, rule=self.rule) for x, y, label in tasks]
        else:
            found = self.engine.adapt_each(parameters, x, y, steps, rule=self.rule_for(x.shape[1]))
        return {name: torch.stack([weights[name] for weights in found]).mean(0) for name in self.engine.adapted}

    def criterion(self) -> Tensor:
        """The loss; in training with the gradient θ - θ_K, that of half the squared distance to θ_K."""
        loss = super().criterion()
        if not self.is_training:
            return loss
        pairs = [(self.model.get_parameter(name), target) for name, target in self._targets.items()]
        distance = torch.stack([(p - target).square().sum() for p, target in pairs]).sum() / 2
        return loss.detach() + distance - distance.detach()

    def _step_cost(self) -> tuple[int, int]:
        return len(self.mb_y), len(self.mb_y) * self.engine.inner_steps
