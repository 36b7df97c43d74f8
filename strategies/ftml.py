"""Follow the meta leader (Finn, Rajeswaran, Kakade, Levine 2019, Algorithms 1 and 2)."""

from __future__ import annotations

import warnings
from collections.abc import Hashable
from typing import Any

from torch import Tensor
from typing_extensions import Unpack

from ftml_bench.buffer.task_sampling import TaskSampler, sample_tasks, weights_of
from ftml_bench.errors import UsageError
from ftml_bench.recorded.device_draws import DeviceDraws
from ftml_bench.strategies.meta_learner import MetaLearner, MetaLearnerKeywords


class FTML(MetaLearner):
    """Meta-learns over every task so far; is evaluated after adapting a copy to the current task's data.

    A training step draws a meta-batch of tasks from the buffer, a support and a query set of each (disjoint), adapts to
    the support sets, and predicts the query sets (paper, eq. 5). What plugins see is an ordinary iteration whose
    minibatch is the query points: `loss` is the meta-loss, `backward` the meta-gradient, so a penalty added to the loss
    or a change of the gradients acts on the meta-update. An evaluation runs the update procedure on a copy
    (Algorithm 2) and changes nothing.

    `train_mb_size` sizes nothing but the default number of steps.

    :param meta_batch_size: tasks of a meta-batch; None: every task with enough data, once each.
    :param support_size: support points of a task (the paper's D^tr); None, with `query_size=None`: all of D_k for both.
    :param query_size: query points of a task (D^val).
    :param task_sampler: the paper's ν_t: maps the number t of rounds so far to t non-negative weights, in the order of
        arrival; None: uniform. Drawn with replacement. Asked in every step, on a GPU once an arrival.
    :param class_balanced: support and query sets hold the classes of a task equally often (as far as it has them).
    :param permute_labels: rename a task's classes among themselves at random in each draw of a meta-batch, as the
        authors' code does on five-way CIFAR-100. Labels stay as they are in the update procedure and in scoring.
    """

    recordable = True

    def __init__(
        self,
        *,
        meta_batch_size: int | None = 25,
        support_size: int | None = 10,
        query_size: int | None = 10,
        task_sampler: TaskSampler | None = None,
        class_balanced: bool = False,
        permute_labels: bool = False,
        **learner: Unpack[MetaLearnerKeywords],
    ) -> None:
        sizes = {"meta_batch_size": meta_batch_size, "support_size": support_size, "query_size": query_size}
        for name, value in sizes.items():
            if value is not None and value < 1:
                raise UsageError(f"{name}={value}: expected None or a number of at least 1")
        if (support_size is None) != (query_size is None):
            raise UsageError("support_size and query_size: expected both None (all of D_k) or both a number")
        self.meta_batch_size = meta_batch_size
        self.support_size = support_size
        self.query_size = query_size
        self.task_sampler = task_sampler
        self.class_balanced = class_balanced
        self.permute_labels = permute_labels
        super().__init__(**learner)

    def _rounds(self) -> list[int]:
        # One point cannot be both support and query.
        smallest = 1 if self.support_size is None else 2
        return [number for number, r in self.buffer.rounds.items() if len(r) >= smallest]

    def make_train_dataloader(self, **kwargs) -> None:
        """As `MetaLearner.make_train_dataloader`; says once that a round is too small to be trained on."""
        n = len(self.buffer.rounds[self.current_round])
        is_whole = getattr(self.experience, "is_last_subexp", True)
        if is_whole and n < 2 and self.current_round not in self._rounds() and "a small round" not in self._warned_of:
            self._warned_of.add("a small round")
            warnings.warn(
                f"round {self.current_round + 1} has {n} {'point' if n else 'points'}: {type(self).__name__} trains on "
                f"rounds of at least two, one for the support and one for the query set, and leaves it out, as others "
                f"like it",
                stacklevel=2,
            )
        super().make_train_dataloader(**kwargs)

    def _draw(self) -> list[Tensor]:
        """A meta-batch: tasks k ~ ν_t, and of each D_k^tr and D_k^val (Algorithm 2, lines 4 and 5)."""
        if self.execution.draws_on_device:
            sizes: Any = (self.meta_batch_size, self.support_size, self.query_size)  # none of them is None here
            return self._minibatch(*self.draws.split(*sizes))
        return self._split(self._sampled(self._rounds()), self.support_size)

    def _sampled(self, rounds: list[int]) -> list[int]:
        """The tasks of a meta-batch, of the given ones."""
        if self.meta_batch_size is None:
            return rounds
        return sample_tasks(rounds, self._weights(rounds), self.meta_batch_size, self.rng)

    def _split(self, tasks: list[int], support_size: int | None) -> list[Tensor]:
        """A minibatch of support and query sets of the tasks."""
        split = self.buffer.split(
            tasks,
            support_size,
            self.query_size,
            self.rng,
            class_balanced=self.class_balanced,
            permute_labels=self.permute_labels,
            ignore_index=getattr(self._criterion, "ignore_index", -100),
        )
        return self._minibatch(*split)

    def _weights(self, rounds: list[int]) -> Tensor:
        return weights_of(rounds, list(self.buffer.rounds), self.task_sampler)

    def forward(self) -> Tensor:
        """In training: post-adaptation outputs on the query points, (T * Q, *output); else the model's outputs.

        Its loss is that of eq. 5, and `backward` the meta-gradient (Algorithm 2, line 6).
        """
        if not self.is_training:
            return super().forward()
        return self._adapted_outputs(self.rule_for(self.mbatch[2].shape[1]))

    def criterion(self) -> Tensor:
        """The loss of the minibatch.

        :raises UsageError: if classes were renamed of targets that are several answers a point, as in multi-hot ones.
        """
        shape = self.mb_y.shape
        if self.is_training and self.permute_labels and shape[1:].numel() > 1 and self.mb_output.shape == shape:
            raise UsageError(
                f"permute_labels renames classes: targets of shape {tuple(shape)} for outputs of this shape are no "
                f"class indices"
            )
        return super().criterion()

    def _step_cost(self) -> tuple[int, int]:
        query, support = len(self.mbatch[0]), self.mbatch[2].shape[0] * self.mbatch[2].shape[1]
        inner = support * self.engine.inner_steps
        return support + query, query + inner * (2 if self.engine.second_order else 1)

    # -- on a GPU, where the host only says how many steps to take

    def _draws_on_the_device(self) -> DeviceDraws | None:
        plain = self.support_size is not None and not self.class_balanced and not self.permute_labels
        on_gpu = self.device.type == "cuda" and plain and not self.buffer.in_a_file
        return DeviceDraws(self.buffer, self.seed) if on_gpu else None

    def _weights_by_round(self) -> dict[int, float] | None:
        rounds = self._rounds()
        if not rounds or self.meta_batch_size is None or not self.rule.is_plain:
            return None
        return dict(zip(rounds, self._weights(rounds).tolist(), strict=True))

    def fixed(self) -> Hashable:
        """See `Recordable`."""
        return super().fixed(), self.meta_batch_size, self.support_size, self.query_size

    def alike(self) -> Hashable:
        """See `Recordable`."""
        return super().alike(), self.meta_batch_size, self.support_size, self.query_size
