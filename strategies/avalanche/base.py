"""What every learner of the suite shares: the buffer, the number of steps, and an evaluation that changes nothing."""

from __future__ import annotations

import functools
import inspect
import os
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from copy import copy
from dataclasses import asdict
from typing import Any

import torch
from avalanche.benchmarks import DatasetExperience
from avalanche.core import SupervisedPlugin
from avalanche.models import DynamicModule, avalanche_forward
from avalanche.models.utils import is_multi_task_module
from avalanche.training.templates import SupervisedTemplate
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.utils.data.dataloader import default_collate

from ftml_bench.adaptation.inner_loop import Input
from ftml_bench.adaptation.weights import has_functions, see_that_it_follows
from ftml_bench.benchmarks.experiences import (
    batch_of,
    label_place,
    number_of,
    point_labels_of,
    tasks_of,
    whole_of,
    with_labels_in_minibatches,
)
from ftml_bench.benchmarks.stacked import as_input
from ftml_bench.buffer import Batch, TaskBuffer
from ftml_bench.errors import UsageError, unknown
from ftml_bench.models.copies import copy_of
from ftml_bench.models.norm import batch_statistics, convert_batch_norm, has_norm
from ftml_bench.random_state import preserved_random_state
from ftml_bench.saving.plain_state import settings_of_parts
from ftml_bench.seeding import derive, generator
from ftml_bench.strategies.avalanche.cost import Cost
from ftml_bench.strategies.avalanche.per_round import PerRound
from ftml_bench.strategies.avalanche.repairs import Companion, as_arrival, with_repairs
from ftml_bench.strategies.avalanche.task_copies import TaskCopies
from ftml_bench.strategies.avalanche.unfit import refuse_unfit, replaced


def grows(model: nn.Module) -> bool:
    """Whether Avalanche adds outputs to the model as classes or tasks appear."""
    return any(isinstance(module, DynamicModule) for module in model.modules())


# losses that compare element by element, and spread one side over the other where shapes differ
ELEMENTWISE = (nn.MSELoss, nn.L1Loss, nn.SmoothL1Loss, nn.HuberLoss)


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


class KeywordError(UsageError, TypeError):
    """A keyword that a learner does not take: Python's error for it, in our words."""


def _with_checked_keywords(cls: type[SupervisedTemplate]) -> Callable[..., None]:
    """The constructor of `cls`, which refuses keywords that it does not take, however the others are given.

    Avalanche, which takes positional arguments for keywords, lets go of those that are left. `train_passes`, as its
    `OnlineNaive` calls the epochs, is taken.
    """
    own = cls.__init__
    parameters = inspect.signature(own).parameters.values()
    names = {p.name for p in parameters if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD)} - {"self"}
    open_ended = any(p.kind is p.VAR_KEYWORD for p in parameters)

    @functools.wraps(own)
    def init(self, *args, **settings) -> None:
        if "train_passes" in settings and "train_passes" not in names:
            if "train_epochs" in settings:
                raise KeywordError(f"{cls.__name__}: train_epochs and train_passes are one setting: give one")
            settings["train_epochs"] = settings.pop("train_passes")
        for name in settings:
            if name not in names and not open_ended:
                raise KeywordError(str(unknown(f"setting of {cls.__name__}", name, names)))
        own(self, *args, **settings)

    return init


class Learner(SupervisedTemplate):
    """A `SupervisedTemplate` that trains on draws from a buffer of all data and is evaluated after adapting a copy.

    Avalanche's training and evaluation loops are used as they are. A learner says what it draws (`_draw`), from which
    rounds (`_rounds`), and what it does to the copy that is evaluated (`_update`). Models may grow, and may take task
    labels (Avalanche's `DynamicModule` and `MultiTaskModule`). A few of Avalanche's plugins are put right
    (`avalanche_repairs`); those that replace the minibatches or the model are refused, as are models whose lazy layers
    have not seen a batch.

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
    adapted_dataset: Any

    def __init_subclass__(cls, **kwargs) -> None:
        super().__init_subclass__(**kwargs)
        cls.__init__ = _with_checked_keywords(cls)  # type: ignore[method-assign]

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
        model = avalanche["model"]
        lazy = [name for name, p in [*model.named_parameters(), *model.named_buffers()] if is_lazy(p)]
        if lazy:
            raise UsageError(
                f"{lazy[0]} of the model has no shape yet: expected lazy layers that have seen a batch: call model(x) "
                f"once before {type(self).__name__} is built"
            )
        avalanche["model"] = convert_batch_norm(model)
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
        self._warned_of: set[str] = set()  # experiences that were predicted without data which are there
        self._copies_follow = False  # found out after every arrival anew: hooks may have come
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

    def _before_training(self, **kwargs) -> None:
        refuse_unfit(self)
        super()._before_training(**kwargs)

    def _before_training_exp(self, **kwargs) -> None:
        self._copies_follow = False
        convert_batch_norm(self.model)  # where layers have been added since
        self.experience = self._arrival()
        self._check_points()
        self.current_round = self.buffer.add(self.experience)
        super()._before_training_exp(**kwargs)
        self._refuse_replaced_parts()

    def _arrival(self) -> DatasetExperience:
        """The experience at hand, whole: Avalanche's own online splitter leaves some of it out."""
        number = self.buffer.find(self.experience)
        round = None if number is None else self.buffer.rounds[number]
        seen = 0 if round is None else len(round)
        if round is not None and round.holds(self.experience.dataset):
            seen -= len(self.experience.dataset)  # nothing new
        arrival = as_arrival(self.experience, seen)
        tasks = [label for task in tasks_of(arrival) for label in task or ()]
        if is_multi_task_module(self.model) and len(tasks) > 1:
            raise UsageError(
                f"experience {number_of(arrival)} holds the tasks {tasks}: a model that takes task labels needs one a "
                f"round, as task_incremental_benchmark gives"
            )
        return arrival

    def _check_points(self) -> None:
        """Whether the arrival's points can be drawn, before anything is trained; a plugin may read more of them."""
        if not hasattr(self.experience, "stacked") and len(self.experience.dataset):
            dataset = self.experience.dataset.train()
            with preserved_random_state(self.device):
                batch_of([dataset[0]], dataset)

    def make_train_dataloader(self, **kwargs) -> None:
        """The loader of draws; takes the place of Avalanche's loader over the experience."""
        self._own_loader = DrawLoader(self._draw, self._steps() if self._rounds() else 0)
        self.dataloader = self._own_loader

    def _steps(self) -> int:
        """Training steps of this arrival."""
        return self.steps or -(-len(self.experience.dataset) // self.train_mb_size)

    def _after_training_epoch(self, **kwargs) -> None:
        if len(self._own_loader):
            super()._after_training_epoch(**kwargs)
            return
        for plugin in self.plugins:  # metrics of no step say nothing; Avalanche's would say 0
            if plugin is not self.evaluator and hasattr(plugin, "after_training_epoch"):
                plugin.after_training_epoch(self, **kwargs)

    def _before_training_iteration(self, **kwargs) -> None:
        drawn = len(self.mb_x)
        super()._before_training_iteration(**kwargs)
        if len(self.mb_x) != drawn:
            raise self._replaced("minibatch", self._culprits(["before_training_iteration"]))

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
                raise self._replaced(part, self._culprits(hooks))

    def _culprits(self, hooks: list[str]) -> list[str]:
        """The plugins that do something in one of `hooks`."""
        return [
            type(plugin).__name__
            for plugin in map(_unwrapped, self.plugins)
            if not isinstance(plugin, Companion)
            and any(getattr(type(plugin), h, None) is not getattr(SupervisedPlugin, h) for h in hooks)
            and plugin not in (self.evaluator, self.clock)
            and type(plugin).__name__ != "PeriodicEval"
        ]

    def _replaced(self, part: str, culprits: list[str]) -> UsageError:
        """The error for plugins that put something else in the place of `part`."""
        return UsageError(f"{' or '.join(culprits) or 'something'} {replaced(part, self)}")

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
            # an adaptation takes gradients, which inference mode has none of
            with torch.inference_mode(False), torch.no_grad(), preserved_random_state(self.device):
                return super().eval(exp_list, **kwargs)
        finally:
            self._ahead = {}
            self.model = model
            self._load_train_state(state)
            self.mbatch, self.mb_output, self.loss = iteration

    def model_adaptation(self, model: nn.Module | None = None) -> nn.Module:
        """As Avalanche's; in an evaluation a model that grows is copied first, so that nothing of it is left behind."""
        if not self.is_training and grows(self.model):
            # The new outputs of a task that was never seen must not depend on what was evaluated before.
            torch.manual_seed(derive(self.seed, "new outputs"))
            model = copy_of(self._own_model)
        given = self.experience
        try:
            # Avalanche's multi-head models take one task at a time
            for part in _by_task(given) if is_multi_task_module(self.model) else [given]:
                self.experience = part
                model = super().model_adaptation(model)
        finally:
            self.experience = given
        assert model is not None
        return model

    def forward(self) -> Tensor:
        """The model's outputs; a model that takes task labels gets them also where only the data carry them."""
        if is_multi_task_module(self.model):
            return self.model(self.mb_x, self._labels_of_points())
        return self.model(self.mb_x)

    def criterion(self) -> Tensor:
        """The loss of the minibatch.

        :raises UsageError: for a loss that would compare every output with every target of the minibatch.
        """
        if isinstance(self._criterion, ELEMENTWISE) and self.mb_output.shape != self.mb_y.shape:
            raise UsageError(
                f"{type(self._criterion).__name__} of outputs of shape {tuple(self.mb_output.shape)} and targets of "
                f"shape {tuple(self.mb_y.shape)} would spread one over the other, across tasks: expected one shape"
            )
        return super().criterion()

    def _labels_of_points(self) -> Tensor:
        """The task label of every point of the minibatch."""
        if self.is_training:
            return self.mb_task_id
        place = label_place(self.adapted_dataset)
        if place is None:
            label = point_labels_of(self.experience)
            assert not isinstance(label, Tensor)
            return torch.full((len(self.mb_y),), label or 0, device=self.device)
        if self.adapted_dataset.collate_fn is not default_collate:
            entries = len(self.adapted_dataset[0])
            if len(self.mbatch) != entries:
                raise UsageError(
                    f"collate_fn makes {len(self.mbatch)} entries of points of {entries}: expected task labels, too"
                )
        return self.mbatch[place]

    def _before_eval(self, **kwargs) -> None:
        super()._before_eval(**kwargs)
        stream = self.current_eval_stream
        if hasattr(stream, "__len__") and len(stream) > 1:  # not what can be gone through only once
            self._ahead = self._models_ahead([task for experience in stream for task in tasks_of(experience)])

    def _models_ahead(self, tasks: list[tuple[int, ...] | None]) -> dict[tuple[int, ...] | None, nn.Module]:
        """What predicts some of the tasks that are about to be evaluated, by labels, where that saves time."""
        return {}

    def _eval_exp(self, **kwargs) -> None:
        try:
            ahead = self._ahead
            self.model = self._model_from(ahead, self.experience) if ahead else self.model_for(self.experience)
            with batch_statistics() if self.batch_norm == "transductive" else nullcontext():
                super()._eval_exp(**kwargs)
        finally:
            self.model = self._own_model

    def model_for(self, experience: DatasetExperience) -> nn.Module:
        """What predicts an experience: a copy of the model, adapted to its task's data; the model itself without any.

        For points of several tasks it is a `TaskCopies`, which takes their labels. Only the task labels of `experience`
        are read. The model has to be in evaluation mode.
        """
        return self._model_from({}, experience)

    def _model_from(self, ahead: dict[tuple[int, ...] | None, nn.Module], experience: DatasetExperience) -> nn.Module:
        """As `model_for`; what predicts a task may be there `ahead`."""
        tasks = tasks_of(experience)
        models = {task: ahead[task] if task in ahead else self._model_of(task) for task in tasks}
        self._warn_if_there(experience, [task for task in tasks if models[task] is self.model])
        if len(tasks) == 1:
            return models[tasks[0]]
        return TaskCopies({task[0]: model for task, model in models.items() if task is not None})

    def _model_of(self, task: tuple[int, ...] | None) -> nn.Module:
        """What predicts a task, by its label."""
        data = self._data_of(task)
        return self.model if data is None else self._adapted_copy(*data, label=(task or (0,))[0])

    def _warn_if_there(self, experience: DatasetExperience, missing: list[tuple[int, ...] | None]) -> None:
        """Say it where tasks of an experience are predicted without data although these are there, by other labels."""
        number, found = number_of(whole_of(experience)), self.buffer.labels
        is_there = number in self.buffer.rounds and len(missing) == len(tasks_of(experience))
        has_one_task = len(self.buffer.rounds) > 1 and {0, None}.issuperset(found)
        if not missing or not self._adapts or not (is_there or has_one_task):
            return
        name = f"experience {number} of stream {getattr(getattr(experience, '_origin_stream', None), 'name', None)!r}"
        if name not in self._warned_of:
            self._warned_of.add(name)
            has = sorted(label for label in found if label is not None)
            warnings.warn(
                f"{type(self).__name__} predicts {name} by the unadapted model: no data of its tasks "
                f"{[label for task in missing for label in task or ()]} have arrived; what has arrived has "
                f"{f'the task labels {has}' if has else 'no task labels'}",
                stacklevel=2,
            )

    @property
    def _adapts(self) -> bool:
        """Whether a copy that is evaluated differs from the model."""
        return type(self)._update is not Learner._update or (self.batch_norm == "support" and has_norm(self.model))

    def _data_of(self, labels: tuple[int, ...] | None) -> Batch | None:
        """What an evaluation adapts to; None if nothing of the task has arrived.

        Data of which nothing says the task count as task 0, as in Avalanche; points of which nothing says it are
        predicted after an adaptation to data of all tasks.
        """
        of_tasks = self.buffer.labels if labels is None else (None, *labels) if 0 in labels else labels
        return self.buffer.for_label(of_tasks, limit=self.update_size, seed=self.seed) if of_tasks else None

    def _adapted_copy(self, x: Tensor, y: Tensor, label: int) -> nn.Module:
        """A copy of the model in evaluation mode after `_update` on the task's data."""
        copy = copy_of(self.model)
        labels = torch.full((len(x),), label, device=x.device)
        self._update(copy, (x, labels) if is_multi_task_module(copy) else x, y)
        if self._adapts and not self._copies_follow and has_functions(self.model):
            inputs = (x[:2], labels[:2]) if is_multi_task_module(copy) else (x[:2],)
            with batch_statistics():
                see_that_it_follows(copy, self.model, *inputs)
            self._copies_follow = True
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
        if isinstance(point_labels_of(self.experience), Tensor):
            self.adapted_dataset = with_labels_in_minibatches(self.adapted_dataset)
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


def _unwrapped(plugin):
    """The plugin itself, without `per_round`."""
    return plugin.plugin if isinstance(plugin, PerRound) else plugin


def _by_task(experience: DatasetExperience) -> list[DatasetExperience]:
    """Copies of an experience, one a task, that name it and its classes as Avalanche's multi-task modules read them."""
    labels, origin = point_labels_of(experience), whole_of(experience)
    copies = []
    for task in tasks_of(experience):
        classes = getattr(experience, "classes_in_this_experience", None)
        if hasattr(experience.dataset, "targets") and (classes is None or isinstance(labels, Tensor)):
            targets = torch.as_tensor(list(experience.dataset.targets))
            classes = set((targets[labels == task[0]] if isinstance(labels, Tensor) and task else targets).tolist())
        one = copy(experience)
        # attributes of Avalanche's kind are shared by copies: vars() sets this one's alone
        if not hasattr(experience, "task_labels") or isinstance(labels, Tensor):
            vars(one)["task_labels"] = list(task or (0,))
        if isinstance(classes, set):
            vars(one)["classes_in_this_experience"] = sorted(classes)
        if origin is not experience:
            vars(one)["origin_experience"] = _by_task(origin)[0]
        copies.append(one)
    return copies
