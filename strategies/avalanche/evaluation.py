"""An evaluation that adapts a copy of the model to each task's data and leaves the model as it was."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from contextlib import nullcontext
from copy import copy
from typing import Any

import torch
from avalanche.benchmarks import DatasetExperience
from avalanche.models import DynamicModule, avalanche_forward
from avalanche.models.utils import is_multi_task_module
from avalanche.training.templates import SupervisedTemplate
from torch import Tensor, nn
from torch.utils.data.dataloader import default_collate

from ftml_bench.adaptation.dependences import refuse_what_reads_the_last_call
from ftml_bench.adaptation.inner_loop import Input
from ftml_bench.adaptation.refusals import is_pytorchs
from ftml_bench.adaptation.weights import loss_by, may_hold_the_model, see_that_it_follows
from ftml_bench.benchmarks.experiences import (
    label_place,
    number_of,
    point_labels_of,
    tasks_of,
    whole_of,
    with_labels_in_minibatches,
)
from ftml_bench.benchmarks.stacked import as_input
from ftml_bench.buffer import Batch, TaskBuffer
from ftml_bench.errors import UsageError
from ftml_bench.models.copies import copy_of
from ftml_bench.models.layer_state import kept, parts_of
from ftml_bench.models.norm import batch_statistics, has_norm
from ftml_bench.random_state import own_generators_kept, preserved_random_state
from ftml_bench.seeding import derive, seed_globals
from ftml_bench.strategies.avalanche.pairing import spreads
from ftml_bench.strategies.avalanche.task_copies import TaskCopies


def grows(model: nn.Module) -> bool:
    """Whether Avalanche adds outputs to the model as classes or tasks appear."""
    return any(isinstance(module, DynamicModule) for module in model.modules())


class EvaluatedOnCopies(SupervisedTemplate):
    """A `SupervisedTemplate` whose evaluation of an experience predicts with a copy adapted to that task's data.

    A learner says what it does to the copy (`_update`).
    """

    model: nn.Module
    mbatch: list[Tensor]
    mb_output: Tensor
    loss: Tensor
    dataloader: Iterable[list[Tensor]]
    adapted_dataset: Any
    experience: Any

    buffer: TaskBuffer
    batch_norm: str
    update_size: int
    seed: int

    def __init__(self, **avalanche) -> None:
        super().__init__(**avalanche)
        self._own_model = self.model
        self._ahead: dict[tuple[int, ...] | None, nn.Module] = {}  # in an evaluation: what predicts tasks, by labels
        self._warned_of: set[str] = set()  # experiences that were predicted without data which are there
        self._pairs_points: object = None  # a criterion and shapes of which it is known
        self._copies_follow = False  # found out after every arrival anew: hooks may have come

    def _update(self, model: nn.Module, x: Input, y: Tensor) -> None:
        """Change `model`, the copy to be evaluated, by the data (x, y) of its task; nothing by default.

        What calls the criterion on the way has `self.model` hold the weights that are adapted (`update_procedure`): a
        criterion may look at them, and knows no copy.

        For a model that takes task labels x is the tuple (inputs, labels).
        """

    @torch.no_grad()
    def eval(self, exp_list, **kwargs):
        """Evaluate on experiences, each with a copy adapted to that task's data; see `SupervisedTemplate.eval`.

        Parameters, buffers and plain attributes of model and criterion, optimiser, every random state and the state of
        a surrounding training iteration are afterwards as they were, also if an error is raised.
        """
        state = self._save_train_state()
        model = self._own_model
        parts = [*parts_of(model), *parts_of(self._criterion)]
        iteration = self.mbatch, self.mb_output, self.loss
        try:
            # an adaptation takes gradients, which inference mode has none of
            with (
                torch.inference_mode(False),
                torch.no_grad(),
                preserved_random_state(self.device),
                own_generators_kept(parts),
                kept(parts),
            ):
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
            seed_globals(derive(self.seed, "new outputs"))
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
        outputs, targets = self.mb_output, self.mb_y
        if isinstance(outputs, Tensor) and outputs.shape != targets.shape:
            self._refuse_spreading(outputs, targets)
        return self._loss_of(outputs, targets)

    def _loss_of(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """That of some points."""
        return loss_by(self.model, self._own_model, self._criterion, outputs, targets)

    def _refuse_spreading(self, outputs: Tensor, targets: Tensor) -> None:
        case = self._criterion, outputs.shape[1:], targets.shape[1:]
        if case == self._pairs_points:
            return
        found = spreads(self._criterion, outputs, targets)
        if found:
            name = getattr(self._criterion, "__name__", type(self._criterion).__name__)
            raise UsageError(
                f"{name} of outputs of shape {tuple(outputs.shape)} and targets of shape {tuple(targets.shape)} would "
                f"spread one over the other, across tasks: expected one shape"
            )
        if found is not None:
            self._pairs_points = case

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
        """What predicts an experience: a copy of the model, adapted to its task's data; the model itself without any,
        or where nothing is adapted.

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
        data = self._data_of(task) if self._adapts else None
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
        return type(self)._update is not EvaluatedOnCopies._update or (
            self._normalises_by_task and has_norm(self.model)
        )

    @property
    def _normalises_by_task(self) -> bool:
        """Whether the statistics of D_t normalise in an evaluation."""
        return self.batch_norm in ("support", "own_query")

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
        if self._adapts and not self._copies_follow:
            self._see_that_it_follows(copy, x, y, labels)
        self._keep_statistics(copy, x, labels)
        return copy

    def _see_that_it_follows(self, copy: nn.Module, x: Tensor, y: Tensor, labels: Tensor) -> None:
        """See that a copy computes with its own weights, and the criterion with what it is given."""
        has_functions, is_own = may_hold_the_model(self.model), not is_pytorchs(self._criterion)
        if not (has_functions or is_own):
            return
        inputs = (x[:2], labels[:2]) if is_multi_task_module(copy) else (x[:2],)
        if is_own:
            refuse_what_reads_the_last_call(self._criterion, self.model, inputs, y[:2])
        with batch_statistics():
            self._copies_follow = not has_functions or see_that_it_follows(copy, self.model, *inputs)

    def _keep_statistics(self, copy: nn.Module, x: Tensor, labels: Tensor) -> None:
        """Let the norm layers of an adapted copy normalise by the task's data, if that is the rule."""
        if self._normalises_by_task and has_norm(copy):
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
