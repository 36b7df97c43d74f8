"""What every learner of the suite shares: the buffer, the number of steps, and an evaluation that changes nothing."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from copy import deepcopy
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from avalanche.benchmarks import DatasetExperience
from avalanche.core import SupervisedPlugin
from avalanche.models import DynamicModule, avalanche_forward
from avalanche.models.utils import is_multi_task_module
from avalanche.training.templates import SupervisedTemplate
from torch import Tensor, nn

from ftml_bench.adaptation.inner_loop import Input
from ftml_bench.benchmarks.stacked import as_input
from ftml_bench.buffer import Batch, TaskBuffer, labels_of
from ftml_bench.cost import Cost
from ftml_bench.errors import UsageError, unknown
from ftml_bench.models.norm import batch_statistics, convert_batch_norm, has_norm
from ftml_bench.plain_state import settings_of_parts
from ftml_bench.seeding import derive, generator
from ftml_bench.strategies.avalanche_repairs import Companion, as_arrival, with_repairs
from ftml_bench.strategies.per_round import PerRound


def grows(model: nn.Module) -> bool:
    """Whether Avalanche adds outputs to the model as classes or tasks appear."""
    return any(isinstance(module, DynamicModule) for module in model.modules())


class DrawLoader:
    """A dataloader whose minibatches are drawn: `steps` calls of `draw`."""

    def __init__(self, draw: Callable[[], list[Tensor]], steps: int) -> None:
        self._draw = draw
        self._steps = steps

    def __len__(self) -> int:
        return self._steps

    def __iter__(self) -> Iterator[list[Tensor]]:
        for _ in range(self._steps):
            yield self._draw()


class Learner(SupervisedTemplate):
    """A `SupervisedTemplate` that trains on draws from a buffer of all data and is evaluated after adapting a copy.

    Avalanche's training and evaluation loops are used as they are. A learner says what it draws (`_draw`), from which
    rounds (`_rounds`), and what it does to the copy that is evaluated (`_update`). Models may grow, and may take task
    labels (Avalanche's `DynamicModule` and `MultiTaskModule`). A few of Avalanche's plugins are put right
    (`avalanche_repairs`); those that replace the minibatches or the model are refused.

    :param steps: training steps an arrival (an epoch, on a stock stream); None: ceil(n / train_mb_size) for n points.
    :param update_size: at most so many points of D_t in the update procedure.
    :param batch_norm: whose statistics normalise (see `ftml_bench.models.norm`).
    :param seed: of everything that the learner draws.
    :param buffer_folder: keep inputs in a file there instead of in memory, see `TaskBuffer`.
    """

    BATCH_NORM_RULES: tuple[str, ...] = ("support", "transductive")

    model: nn.Module
    mbatch: list[Tensor]
    mb_output: Tensor
    loss: Tensor
    dataloader: Iterable[list[Tensor]]

    def __init__(
        self,
        *,
        steps: int | None,
        update_size: int,
        batch_norm: str,
        seed: int,
        buffer_folder: str | os.PathLike[str] | None = None,
        **avalanche,
    ) -> None:
        if steps is not None and steps < 1:
            raise UsageError(f"steps={steps}: expected None or a number of at least 1")
        if update_size < 1:
            raise UsageError(f"update_size={update_size}: expected a number of at least 1")
        if batch_norm not in self.BATCH_NORM_RULES:
            raise unknown(f"batch norm rule of {type(self).__name__}", batch_norm, self.BATCH_NORM_RULES)
        avalanche["model"] = convert_batch_norm(avalanche["model"])
        avalanche["plugins"] = with_repairs(avalanche.get("plugins"))
        super().__init__(**avalanche)
        self.steps = steps
        self.update_size = update_size
        self.batch_norm = batch_norm
        self.seed = seed
        self.cost = Cost()
        self.buffer = TaskBuffer(self.device, folder=buffer_folder)
        self.rng = generator(seed, "buffer")
        self.current_round = -1
        self._own_model = self.model
        self._ahead: dict[tuple[int, ...] | None, nn.Module] = {}  # in an evaluation: what predicts tasks, by labels
        self.built_with = settings_of_parts(self.plugins)  # what a saved state is compared with

    # -- what a learner is

    def _rounds(self) -> list[int]:
        """The rounds that training may draw from now."""
        return list(self.buffer.rounds)

    def _draw(self) -> list[Tensor]:
        """A minibatch: x, y, ..., task labels (Avalanche reads the first two and the last)."""
        raise NotImplementedError

    def _step_cost(self) -> tuple[int, int]:
        """Images and gradient evaluations of one training step."""
        raise NotImplementedError

    def _update(self, model: nn.Module, x: Input, y: Tensor) -> None:
        """Change `model`, the copy to be evaluated, by the data (x, y) of its task; nothing by default.

        For a model that takes task labels x is the tuple (inputs, labels).
        """

    @property
    def trainable_rounds(self) -> list[int]:
        """The rounds that training draws from at present."""
        return self._rounds()

    # -- what is saved beside model, optimiser and plugins (see `ftml_bench.saving`)

    def state_dict(self) -> dict[str, Any]:
        """What the learner itself has come to: tensors and plain values."""
        return {
            "buffer": self.buffer.state_dict(),
            "rng": self.rng.get_state(),
            "cost": asdict(self.cost),
            "current_round": self.current_round,
        }

    def load_state_dict(self, state: dict[str, Any], experiences: Iterable[DatasetExperience]) -> None:
        """Go back to what `state_dict` gave.

        :param experiences: those trained on until then, in order: the buffer takes its data from them.
        """
        arrived: list[DatasetExperience] = []
        self.buffer.load_state_dict(state["buffer"], self._arrivals(experiences, arrived))
        for plugin in self.plugins:
            if isinstance(plugin, PerRound):
                plugin.take_up(arrived)
        self.rng.set_state(state["rng"])
        self.cost = Cost(**state["cost"])
        self.current_round = state["current_round"]

    def _arrivals(
        self, experiences: Iterable[DatasetExperience], seen: list[DatasetExperience]
    ) -> Iterator[DatasetExperience]:
        """The experiences as they were filed; each is noted in `seen`."""
        for self.experience in experiences:
            seen.append(self._arrival())
            yield seen[-1]
        self.experience = None

    # -- training

    def _before_training_exp(self, **kwargs) -> None:
        self.experience = self._arrival()
        self.current_round = self.buffer.add(self.experience)
        super()._before_training_exp(**kwargs)
        self._refuse_replaced_parts()

    def _arrival(self) -> DatasetExperience:
        """The experience at hand, whole: Avalanche's own online splitter leaves some of it out."""
        origin = getattr(self.experience, "origin_experience", None)
        round = self.buffer.rounds.get(origin.current_experience) if origin is not None else None
        arrival = as_arrival(self.experience, 0 if round is None else len(round))
        labels = labels_of(arrival) or (0,)
        if is_multi_task_module(self.model) and len(labels) > 1:
            raise UsageError(
                f"experience {arrival.current_experience} holds the tasks {list(labels)}: a model that takes task "
                f"labels needs one a round, as task_incremental_benchmark gives"
            )
        return arrival

    def make_train_dataloader(self, **kwargs) -> None:
        """The loader of draws; takes the place of Avalanche's loader over the experience."""
        self._own_loader = DrawLoader(self._draw, self._steps() if self._rounds() else 0)
        self.dataloader = self._own_loader

    def _steps(self) -> int:
        """Training steps of this arrival."""
        return self.steps or -(-len(self.experience.dataset) // self.train_mb_size)

    def _before_training_iteration(self, **kwargs) -> None:
        drawn = len(self.mb_x)
        super()._before_training_iteration(**kwargs)
        if len(self.mb_x) != drawn:
            raise self._replaced("minibatch", ["before_training_iteration"])

    def _after_training_iteration(self, **kwargs) -> None:
        images, gradient_evaluations = self._step_cost()
        self.cost.steps += 1
        self.cost.images += images
        self.cost.gradient_evaluations += gradient_evaluations
        super()._after_training_iteration(**kwargs)

    def _refuse_replaced_parts(self) -> None:
        for part, own, hooks in [
            ("dataloader", self._own_loader, ["before_training_exp"]),
            ("model", self._own_model, ["before_train_dataset_adaptation", "after_train_dataset_adaptation"]),
        ]:
            if getattr(self, part) is not own:
                raise self._replaced(part, hooks)

    def _replaced(self, part: str, hooks: list[str]) -> UsageError:
        """The error for a plugin that put something else in the place of `part`, in one of `hooks`."""
        plugins = [p.plugin if isinstance(p, PerRound) else p for p in self.plugins]
        culprits = [
            type(plugin).__name__
            for plugin in plugins
            if not isinstance(plugin, Companion)
            and any(getattr(type(plugin), h, None) is not getattr(SupervisedPlugin, h) for h in hooks)
            and plugin not in (self.evaluator, self.clock)
            and type(plugin).__name__ != "PeriodicEval"
        ]
        return UsageError(
            f"{' or '.join(culprits) or 'something'} replaced the {part} of {type(self).__name__}, which draws "
            f"from its own buffer of all data and trains its own model, so that replay is already there: "
            f"leave that plugin out"
        )

    # -- evaluation

    @torch.no_grad()
    def eval(self, exp_list, **kwargs):
        """Evaluate on experiences, each with a copy adapted to that task's data; see `SupervisedTemplate.eval`.

        Parameters, buffers, optimiser, every random state and the state of a surrounding training iteration are
        afterwards as they were, also if an error is raised.
        """
        state = self._save_train_state()
        model = self._own_model
        iteration = self.mbatch, self.mb_output, self.loss
        try:
            with preserved_random_state(self.device):
                return super().eval(exp_list, **kwargs)
        finally:
            self._ahead = {}
            self.model = model
            self._load_train_state(state)
            self.mbatch, self.mb_output, self.loss = iteration

    def model_adaptation(self, model: nn.Module | None = None) -> nn.Module:
        """As Avalanche's; in an evaluation a model that grows is copied first, so that nothing of it is left behind."""
        if self.is_training or not grows(self.model):
            return super().model_adaptation(model)
        # The new outputs of a task that was never seen must not depend on what was evaluated before.
        torch.manual_seed(derive(self.seed, "new outputs"))
        return super().model_adaptation(deepcopy(self._own_model))

    def _before_eval(self, **kwargs) -> None:
        super()._before_eval(**kwargs)
        stream = self.current_eval_stream
        if hasattr(stream, "__len__") and len(stream) > 1:  # not what can be gone through only once
            self._ahead = self._models_ahead([_task_labels(experience) for experience in stream])

    def _models_ahead(self, tasks: list[tuple[int, ...] | None]) -> dict[tuple[int, ...] | None, nn.Module]:
        """What predicts some of the tasks that are about to be evaluated, by labels, where that saves time."""
        return {}

    def _eval_exp(self, **kwargs) -> None:
        try:
            ahead = self._ahead.get(_task_labels(self.experience))
            self.model = self.model_for(self.experience) if ahead is None else ahead
            with batch_statistics() if self.batch_norm == "transductive" else nullcontext():
                super()._eval_exp(**kwargs)
        finally:
            self.model = self._own_model

    def model_for(self, experience: DatasetExperience) -> nn.Module:
        """What predicts an experience: a copy of the model, adapted to its task's data; the model itself without any.

        Only the task label of `experience` is read. The model has to be in evaluation mode.
        """
        labels = _task_labels(experience)
        data = self._data_of(labels)
        return self.model if data is None else self._adapted_copy(*data, label=(labels or (0,))[0])

    def _data_of(self, labels: tuple[int, ...] | None) -> Batch | None:
        """What an evaluation adapts to; None if nothing of the task has arrived."""
        return self.buffer.for_label(labels, limit=self.update_size, seed=self.seed)

    def _adapted_copy(self, x: Tensor, y: Tensor, label: int) -> nn.Module:
        """A copy of the model in evaluation mode after `_update` on the task's data."""
        copy = deepcopy(self.model)
        labels = torch.full((len(x),), label, device=x.device)
        self._update(copy, (x, labels) if is_multi_task_module(copy) else x, y)
        self._keep_statistics(copy, x, labels)
        return copy

    def _keep_statistics(self, copy: nn.Module, x: Tensor, labels: Tensor) -> None:
        """Let the norm layers of an adapted copy normalise by the task's data, if that is the rule."""
        if self.batch_norm == "support" and has_norm(copy):
            with batch_statistics(keep="recorded"):
                avalanche_forward(copy, x, labels)

    def eval_dataset_adaptation(self, **kwargs) -> None:
        """As Avalanche's; remembers the dataset, to see whether a plugin replaces it."""
        super().eval_dataset_adaptation(**kwargs)
        self._own_eval_dataset = self.adapted_dataset

    def make_eval_dataloader(self, **kwargs) -> None:
        """Slices of stacked tensors where the stream has them; otherwise Avalanche's loader."""
        stacked = getattr(self.experience, "stacked", None)
        if stacked is None or self.adapted_dataset is not self._own_eval_dataset:
            super().make_eval_dataloader(**kwargs)
            return
        label = self.experience.task_label
        self.dataloader = [
            [as_input(x.to(self.device)), y, torch.full((len(y),), label)]
            for x, y in map(stacked.take, torch.arange(len(stacked)).split(self.eval_mb_size))
        ]


def _task_labels(experience: DatasetExperience) -> tuple[int, ...] | None:
    """The task labels of an experience; Avalanche's own online splitter leaves them with the whole one."""
    return labels_of(getattr(experience, "origin_experience", None) or experience)


@contextmanager
def preserved_random_state(device: torch.device) -> Iterator[None]:
    """Inside, draws from the global generators of Python, NumPy and PyTorch leave no trace."""
    python, numpy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
