"""What learners share whose outer gradient is how far the adapted weights are: no query set, no second derivative."""

from __future__ import annotations

import torch
from avalanche.models.utils import is_multi_task_module
from torch import Tensor, nn
from typing_extensions import Unpack

from ftml_bench.errors import UsageError
from ftml_bench.strategies.avalanche.unfit import refuse_complex
from ftml_bench.strategies.meta_learner import MetaLearner, MetaLearnerKeywords


class Displaced(MetaLearner):
    """Moves towards weights that inner steps on support sets lead to.

    What the outer optimiser sees as gradient is θ - target. The loss that plugins and metrics see is that of θ on the
    support sets; what a plugin adds to it acts by its own gradient at θ. A learner of this kind says which support sets
    are drawn (`_draw`, by `_support`) and what the target is (`_target`).
    """

    _targets: dict[str, Tensor]  # of the minibatch at hand

    def __init__(self, **learner: Unpack[MetaLearnerKeywords]) -> None:
        super().__init__(**learner)
        refuse_complex(self)

    def make_train_dataloader(self, **kwargs) -> None:
        """As `MetaLearner.make_train_dataloader`.

        :raises UsageError: if the criterion has parameters of its own to be trained.
        """
        of_model = {id(p) for p in self.model.parameters()}
        learned = [
            name
            for name, p in (self._criterion.named_parameters() if isinstance(self._criterion, nn.Module) else ())
            if p.requires_grad and id(p) not in of_model
        ]
        if learned:
            raise UsageError(
                f"{type(self).__name__} moves the model's parameters alone: parameter {learned[0]} of the criterion "
                f"would stay as it is; expected requires_grad=False, or a learner with a gradient, as FTML"
            )
        super().make_train_dataloader(**kwargs)

    def _support(self, tasks: list[int], size: int | None) -> list[Tensor]:
        """A minibatch whose query sets are its support sets: `size` points a task, or all, of tasks of one size.

        :raises UsageError: with None, for rounds of different sizes.
        """
        if size is None:
            self.buffer.size_of_each(tasks, "support_size=None")
            (x, y), labels = self.buffer.everything(tasks)
        else:
            (x, y), labels = self.buffer.groups(tasks, size, self.rng)
        support = x.unflatten(0, (len(tasks), -1)), y.unflatten(0, (len(tasks), -1))
        return self._minibatch(support, support, labels)

    def _target(self, x: Tensor, y: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Where to, by name, from support sets x (T, S, *input) and y and the tasks' labels (T, 1)."""
        raise NotImplementedError

    def forward(self) -> Tensor:
        """In training: the unadapted model's outputs on the support points, (T * S, *output)."""
        if not self.is_training:
            return super().forward()
        _, _, x, y, _ = self.mbatch
        labels = self._labels_of_sets()
        self._targets = self._target(x, y, labels)
        return self._unadapted_outputs(x, labels)

    def criterion(self) -> Tensor:
        """The loss; in training with the gradient θ - target, that of half the squared distance."""
        loss = super().criterion()
        if not self.is_training:
            return loss
        pairs = [(self.model.get_parameter(name), target) for name, target in self._targets.items()]
        distance = torch.stack([(p - target).square().sum() for p, target in pairs]).sum() / 2
        return loss.detach() + distance - distance.detach()

    def _mean_adapted(self, start: dict[str, Tensor], x: Tensor, y: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """The mean over tasks of the weights that the inner steps lead to from `start`."""
        start = {
            name: w.detach().requires_grad_(self.model.get_parameter(name).requires_grad) for name, w in start.items()
        }
        steps, rule = self.engine.inner_steps, self.rule_for(x.shape[1])
        if is_multi_task_module(self.model):
            tasks = zip(x, y, labels.expand(-1, x.shape[1]), strict=True)
            found = [self.engine.adapt(start, (task, label), target, steps, rule=rule) for task, target, label in tasks]
        else:
            found = self.engine.adapt_each(start, x, y, steps, rule=rule)
        return {name: torch.stack([weights[name] for weights in found]).mean(0) for name in self.engine.adapted}

    def _step_cost(self) -> tuple[int, int]:
        return len(self.mb_y), len(self.mb_y) * self.engine.inner_steps
