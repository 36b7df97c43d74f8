"""What learners without meta-learning share: plain training steps on minibatches drawn from the buffer."""

from __future__ import annotations

import torch
from avalanche.models import MultiTaskModule, avalanche_forward
from avalanche.models.utils import is_multi_task_module
from torch import Tensor, nn
from typing_extensions import Unpack

from ftml_bench.adaptation.plain_pass import PlainPass
from ftml_bench.errors import UsageError, unknown
from ftml_bench.models.norm import batch_statistics
from ftml_bench.strategies.avalanche.base import Learner
from ftml_bench.strategies.avalanche.keywords import LearnerKeywords

DRAWS = ("tasks", "datapoints", "all")


def parts_by_task(model: nn.Module) -> bool:
    """Whether the model parts a minibatch by its task labels and treats each task's share by itself."""
    return isinstance(model, MultiTaskModule) and type(model).forward is MultiTaskModule.forward


class JointLearner(Learner):
    """Trains one model by plain steps on minibatches of `train_mb_size` points of the rounds that `_rounds` names.

    With the batch norm rule "running" a minibatch mixes tasks and is normalised as a whole. With "support" and
    "transductive" it consists of groups of one task each, normalised group by group.

    :param group_size: points of a group; tasks are drawn uniformly with replacement.
    :param draw: how a mixed minibatch is drawn: "tasks" equally often, or "datapoints". "all" draws nothing: every step
        is on all data of the rounds, whatever `train_mb_size` (exact gradients; groups are rounds, of one size).
    """

    def __init__(
        self,
        *,
        batch_norm: str = "support",
        group_size: int = 20,
        draw: str = "tasks",
        **learner: Unpack[LearnerKeywords],
    ) -> None:
        if group_size < 1:
            raise UsageError(f"group_size={group_size}: expected a number of at least 1")
        if draw not in DRAWS:
            raise unknown("value of draw", draw, DRAWS)
        if draw == "datapoints" and batch_norm != "running":
            raise UsageError(
                f"draw='datapoints' is of mixed minibatches: expected batch_norm='running', not {batch_norm!r}"
            )
        super().__init__(batch_norm=batch_norm, **learner)
        self.group_size = min(group_size, self.train_mb_size)
        self.draw = draw
        self._plain_pass = PlainPass(self.model)

    @property
    def _groups(self) -> int:
        """Groups of a minibatch; 1 where it is normalised as a whole."""
        if self.batch_norm == "running":
            return 1
        return len(self._rounds()) if self.draw == "all" else self.train_mb_size // self.group_size

    def _draw(self) -> list[Tensor]:
        rounds = self._rounds()
        if self.draw == "all":
            (x, y), each = self.buffer.everything(rounds)
            if self._groups > 1 and len(x) != self._groups * len(self.buffer.rounds[rounds[0]]):
                raise ValueError('draw="all" in groups needs rounds of equal size')
            return [x, y, each]
        if self.batch_norm == "running":
            equal_tasks = self.draw == "tasks"
            (x, y), of_points = self.buffer.mixed(rounds, self.train_mb_size, self.rng, equal_tasks=equal_tasks)
            return [x, y, of_points]
        chosen = [rounds[i] for i in torch.randint(len(rounds), (self._groups,), generator=self.rng).tolist()]
        (x, y), of_points = self.buffer.labelled_groups(chosen, self.group_size, self.rng)
        return [x, y, of_points]

    def forward(self) -> Tensor:
        """The model's outputs; in training on groups, each normalised by itself."""
        if not self.is_training:
            return super().forward()
        outputs = self._by_kernels()
        if outputs is not None:
            return outputs
        if self.batch_norm == "running":
            return super().forward()
        if parts_by_task(self.model):  # and would mix up the groups of a minibatch of several tasks
            groups = zip(self.mb_x.chunk(self._groups), self.mb_task_id.chunk(self._groups), strict=True)
            with batch_statistics(keep="running"):
                return torch.cat([avalanche_forward(self.model, x, labels) for x, labels in groups])
        with batch_statistics(groups=self._groups, keep="running"):
            return super().forward()

    def _by_kernels(self) -> Tensor | None:
        """The outputs of a training step by compiled kernels; None where these would not be exact."""
        is_frozen = self.batch_norm == "running" and not all(module.training for module in self.model.modules())
        if is_frozen or is_multi_task_module(self.model):
            return None
        return self._plain_pass(self.mb_x, groups=self._groups, keeps_running=True)

    def _step_cost(self) -> tuple[int, int]:
        return len(self.mb_y), len(self.mb_y)
