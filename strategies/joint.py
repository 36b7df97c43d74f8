"""What learners without meta-learning share: plain training steps on minibatches drawn from the buffer."""

from __future__ import annotations

import math
from typing import Any

import torch
from avalanche.models import MultiTaskModule, avalanche_forward
from avalanche.models.utils import is_multi_task_module
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd
from torch.utils._pytree import tree_leaves, tree_map
from typing_extensions import Unpack

from ftml_bench.adaptation.agreement import distances, typical
from ftml_bench.adaptation.plain_pass import PlainPass
from ftml_bench.adaptation.small_batch import elsewhere
from ftml_bench.errors import UsageError, at_least, unknown
from ftml_bench.models.copies import copy_of
from ftml_bench.models.norm import batch_statistics
from ftml_bench.random_state import preserved_random_state
from ftml_bench.strategies.avalanche.base import Learner
from ftml_bench.strategies.avalanche.keywords import LearnerKeywords

DRAWS = ("tasks", "datapoints", "all")


def parts_by_task(model: nn.Module) -> bool:
    """Whether the model parts a minibatch by its task labels and treats each task's share by itself."""
    return isinstance(model, MultiTaskModule) and type(model).forward is MultiTaskModule.forward


def _group_by_group(model: nn.Module, x: Tensor, labels: Tensor, groups: int) -> Any:
    """The outputs of a model, a tensor or several, by a call for each of the equal groups of consecutive rows."""
    rows = zip(x.chunk(groups), labels.chunk(groups), strict=True)
    # a model may write into what it is given: groups lie in one tensor
    return tree_map(_joined, *(avalanche_forward(model, group.clone(), label) for group, label in rows))


def _joined(*parts: Any) -> Tensor:
    if not all(isinstance(part, Tensor) and part.dim() for part in parts):
        kind = type(parts[0]).__name__
        raise UsageError(f"a model's output of type {kind}: groups of a task each need tensors with a row for a point")
    return torch.cat(parts)


def _group_size(given: int | None, minibatch: int, wanted: int = 20) -> int:
    """The size of the groups of a minibatch; where it is not given, that of equal groups nearest to the wanted one."""
    if given is not None:
        return min(given, minibatch)
    sizes = [size for size in range(1, minibatch + 1) if minibatch % size == 0]
    return min(sizes, key=lambda size: abs(math.log(size / wanted)))


def _is_other(found: Tensor, expected: Tensor, moved: Tensor) -> bool:
    """Whether outputs differ from those expected, by how far these move with the weights."""
    return bool((distances(found, expected) > 1e-3 * typical(distances(moved, expected))).any())


class JointLearner(Learner):
    """Trains one model by plain steps on minibatches of `train_mb_size` points of the rounds that `_rounds` names.

    With the batch norm rule "running" a minibatch mixes tasks and is normalised as a whole. With "support" and
    "transductive" it consists of groups of one task each, normalised group by group.

    :param group_size: points of a group, of which a minibatch has a whole number; tasks are drawn uniformly with
        replacement. None: the one nearest to 20.
    :param draw: how a mixed minibatch is drawn: "tasks" equally often, or "datapoints". "all" draws nothing: every step
        is on all data of the rounds, whatever `train_mb_size` (exact gradients; groups are rounds, of one size).
    """

    def __init__(
        self,
        *,
        batch_norm: str = "support",
        group_size: int | None = None,
        draw: str = "tasks",
        **learner: Unpack[LearnerKeywords],
    ) -> None:
        if draw not in DRAWS:
            raise unknown("value of draw", draw, DRAWS)
        if draw == "datapoints" and batch_norm != "running":
            raise UsageError(
                f"draw='datapoints' is of mixed minibatches: expected batch_norm='running', not {batch_norm!r}"
            )
        super().__init__(batch_norm=batch_norm, **learner)
        if group_size is not None:
            at_least(1, group_size=group_size)
        self.group_size = _group_size(group_size, self.train_mb_size)
        if batch_norm != "running" and draw != "all" and self.train_mb_size % self.group_size:
            nearest = _group_size(None, self.train_mb_size, wanted=self.group_size)
            raise UsageError(
                f"train_mb_size={self.train_mb_size} is no multiple of group_size={self.group_size}: expected one, "
                f"as a minibatch is of whole groups; nearest is {nearest}"
            )
        self.draw = draw
        self._plain_pass = PlainPass(self.model)
        self._mixes: bool | None = None  # see `_mixes_groups`

    @property
    def _groups(self) -> int:
        """Groups of a minibatch; 1 where it is normalised as a whole."""
        if self.batch_norm == "running":
            return 1
        return len(self._rounds()) if self.draw == "all" else self.train_mb_size // self.group_size

    def _draw(self) -> list[Tensor]:
        rounds = self._rounds()
        if self.draw == "all":
            if self._groups > 1:
                self.buffer.size_of_each(rounds, "draw='all' in groups")
            (x, y), each = self.buffer.everything(rounds)
            return [x, y, each]
        if self.batch_norm == "running":
            equal_tasks = self.draw == "tasks"
            (x, y), of_points = self.buffer.mixed(rounds, self.train_mb_size, self.rng, equal_tasks=equal_tasks)
            return [x, y, of_points]
        chosen = [rounds[i] for i in torch.randint(len(rounds), (self._groups,), generator=self.rng).tolist()]
        (x, y), of_points = self.buffer.groups(chosen, self.group_size, self.rng)
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
        if parts_by_task(self.model) or self._mixes_groups():  # called once, either would mix up the groups
            with batch_statistics(keep="running"):
                return _group_by_group(self.model, self.mb_x, self.mb_task_id, self._groups)
        with batch_statistics(groups=self._groups, keep="running"):
            return super().forward()

    def make_train_dataloader(self, **kwargs) -> None:
        """As `Learner.make_train_dataloader`."""
        self._mixes = None
        super().make_train_dataloader(**kwargs)

    def _mixes_groups(self) -> bool:
        """Whether a group's outputs depend on other groups, as by a norm layer of one's own; tried at each arrival."""
        if self._groups > 1 and self._mixes is None:
            model, size = copy_of(self.model), 2 * (len(self.mb_x) // self._groups)
            for module in model.modules():
                if isinstance(module, _DropoutNd):  # it would draw otherwise
                    module.eval()
            x, labels = self.mb_x[:size], self.mb_task_id[:size]
            with torch.no_grad(), preserved_random_state(self.device):
                with batch_statistics(groups=2):
                    together = tree_leaves(avalanche_forward(model, x.clone(), labels))
                with batch_statistics():
                    apart = tree_leaves(_group_by_group(model, x, labels, 2))
                    generator = torch.Generator().manual_seed(0)
                    for p in model.parameters():
                        p.copy_(elsewhere(p, generator))
                    moved = tree_leaves(_group_by_group(model, x, labels, 2))
            self._mixes = any(map(_is_other, together, apart, moved))
        return bool(self._mixes)

    def _by_kernels(self) -> Tensor | None:
        """The outputs of a training step by compiled kernels; None where these would not be exact."""
        is_frozen = self.batch_norm == "running" and not all(module.training for module in self.model.modules())
        if is_frozen or is_multi_task_module(self.model):
            return None
        return self._plain_pass(self.mb_x, groups=self._groups, keeps_running=True)

    def _step_cost(self) -> tuple[int, int]:
        return len(self.mb_y), len(self.mb_y)
