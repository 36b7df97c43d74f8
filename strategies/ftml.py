"""Follow the meta leader (Finn, Rajeswaran, Kakade, Levine 2019, Algorithms 1 and 2)."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from typing import Any, Literal

import torch
from avalanche.benchmarks import DatasetExperience
from avalanche.models import avalanche_forward
from avalanche.models.utils import is_multi_task_module
from avalanche.training.plugins.evaluation import default_evaluator
from torch import Tensor, nn

from ftml_bench.adaptation import Engine, make_engine
from ftml_bench.adaptation.inner_loop import Input
from ftml_bench.adaptation.weights import put
from ftml_bench.errors import UsageError
from ftml_bench.models.copies import copy_of
from ftml_bench.models.norm import batch_statistics, has_norm
from ftml_bench.recorded.device_draws import DeviceDraws
from ftml_bench.recorded.together import Together
from ftml_bench.recorded.training_step import MetaStep
from ftml_bench.strategies.avalanche.adaptable import as_it_is_without_gradient
from ftml_bench.strategies.avalanche.base import Learner, grows

UPDATES_AT_ONCE = 16  # tasks whose data lie ready as floats at a time


class FTML(Learner):
    """Meta-learns over every task so far; is evaluated after adapting a copy to the current task's data.

    A training step draws a meta-batch of tasks from the buffer, a support and a query set of each (disjoint), adapts to
    the support sets, and predicts the query sets (paper, eq. 5). What plugins see is an ordinary iteration whose
    minibatch is the query points: `loss` is the meta-loss, `backward` the meta-gradient, so a penalty added to the loss
    or a change of the gradients acts on the meta-update. An evaluation runs the update procedure on a copy
    (Algorithm 2) and changes nothing.

    The first arguments are Avalanche's own (see `SupervisedTemplate`); `train_mb_size` sizes nothing but the default
    number of steps.

    :param inner_lr: α, the inner learning rate, also of the update procedure.
    :param inner_steps: inner gradient steps in training.
    :param meta_batch_size: tasks of a meta-batch; None: every task with enough data, once each.
    :param support_size: support points of a task (the paper's D^tr); None, with `query_size=None`: all of D_k for both.
    :param query_size: query points of a task (D^val).
    :param steps: meta-steps an arrival (N_meta); None: ceil(n / train_mb_size).
    :param update_steps: gradient steps of the update procedure (N_grad); None: `inner_steps`.
    :param update_size: at most so many points of D_t in the update procedure.
    :param adapted: what the inner loop changes: "all", "last_layer", or names of parameters.
    :param second_order: False for first-order MAML.
    :param inner_clip: c: every entry of an inner gradient is cut to [-c, c], in the update procedure too; None: as it
        is. The meta-gradient is that of the clipped steps.
    :param engine: what computes the meta-gradient: "auto", "batched", "vmap", "loop", "higher" (docs/engines.md).
    :param memory: "unroll" keeps the graph of every inner step; "adjoint" does not, and takes longer; "auto" unrolls
        while the graph is estimated to stay under 2 GiB. The gradient is the same.
    :param task_sampler: the paper's ν_t: maps the number t of rounds so far to t non-negative weights, in the order of
        arrival; None: uniform. Drawn with replacement. Asked in every step, on a GPU once an arrival.
    :param class_balanced: support and query sets hold the classes of a task equally often (as far as it has them).
    :param permute_labels: rename a task's classes among themselves at random in each draw of a meta-batch, as the
        authors' code does on five-way CIFAR-100. Labels stay as they are in the update procedure and in scoring.
    :param batch_norm: "support" or "transductive", see `ftml_bench.models.norm`.
    :param seed: of the draws.
    :param buffer_folder: keep the images of all rounds in a file there instead of in memory (streams of stacked
        tensors); the file is gone with the learner.
    """

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
        inner_lr: float = 0.1,
        inner_steps: int = 5,
        meta_batch_size: int | None = 25,
        support_size: int | None = 10,
        query_size: int | None = 10,
        steps: int | None = None,
        update_steps: int | None = None,
        update_size: int = 1000,
        adapted: Literal["all", "last_layer"] | Iterable[str] = "all",
        second_order: bool = True,
        inner_clip: float | None = None,
        engine: str = "auto",
        memory: Literal["auto", "unroll", "adjoint"] = "auto",
        task_sampler: Callable[[int], Tensor] | None = None,
        class_balanced: bool = False,
        permute_labels: bool = False,
        batch_norm: Literal["support", "transductive"] = "support",
        seed: int = 0,
        buffer_folder: str | os.PathLike[str] | None = None,
    ) -> None:
        for name, value in [
            ("meta_batch_size", meta_batch_size),
            ("support_size", support_size),
            ("query_size", query_size),
            ("update_steps", update_steps),
        ]:
            if value is not None and value < 1:
                raise UsageError(f"{name}={value}: expected None or a number of at least 1")
        if (support_size is None) != (query_size is None):
            raise UsageError("support_size and query_size: expected both None (all of D_k) or both a number")
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
            update_size=update_size,
            batch_norm=batch_norm,
            seed=seed,
            buffer_folder=buffer_folder,
        )
        self.meta_batch_size = meta_batch_size
        self.support_size = support_size
        self.query_size = query_size
        self.update_steps = inner_steps if update_steps is None else update_steps
        self.task_sampler = task_sampler
        self.class_balanced = class_balanced
        self.permute_labels = permute_labels
        self.adapted = adapted if isinstance(adapted, str) else list(adapted)
        if is_multi_task_module(model):
            engine = self._engine_for_task_labels(engine, adapted)
        self.engine_settings: dict[str, Any] = {
            "name": engine,
            "inner_lr": inner_lr,
            "inner_steps": inner_steps,
            "second_order": second_order,
            "adapted": self.adapted,
            "batch_norm": batch_norm,
            "inner_clip": inner_clip,
            "memory": memory,
        }
        self._engine = self._engine_of(self.model)
        # On a GPU the host only says how many steps to take, where nobody wants to know more.
        plain = support_size is not None and not class_balanced and not permute_labels
        on_gpu = self.device.type == "cuda" and plain and buffer_folder is None
        self.device_draws = DeviceDraws(self.buffer, seed) if on_gpu else None
        self._draws_on_device = False  # found out at each arrival
        self._updates_in_one_pass = self.device.type == "cuda"
        self._meta_step = MetaStep([self])
        self.together: Together | None = None  # with whom steps are taken

    @property
    def engine(self) -> Engine:
        """What computes the meta-gradient, of the present criterion; what changes in the model it notices itself."""
        if self._engine.criterion is not self._criterion:
            self._engine.criterion = self._criterion
        return self._engine

    @property
    def chosen(self) -> dict[str, str]:
        """What computes the meta-gradient and why, for a record; see `Engine.chosen`."""
        chosen = self.engine.chosen
        together = "" if self.together is None else self.together.note
        notes = [note for note in (chosen.get("engine_note"), self._meta_step.note, together) if note]
        return {**chosen, "engine_note": "; ".join(notes)} if notes else chosen

    def _engine_for_task_labels(self, engine: str, adapted) -> str:
        """The engine for a model that takes task labels: the one that passes them on."""
        kind = type(self.model).__name__
        if engine not in ("auto", "loop"):
            raise UsageError(
                f"engine={engine!r} passes no task labels, which {kind} takes: expected engine='loop' or 'auto'"
            )
        if adapted == "last_layer":
            raise UsageError(f"adapted='last_layer': {kind} has a last layer for every task: give names of parameters")
        return "loop"

    def _engine_of(self, model: nn.Module) -> Engine:
        return make_engine(model=model, criterion=self._criterion, **self.engine_settings)

    def _rounds(self) -> list[int]:
        # One point cannot be both support and query.
        smallest = 1 if self.support_size is None else 2
        return [number for number, r in self.buffer.rounds.items() if len(r) >= smallest]

    def make_train_dataloader(self, **kwargs) -> None:
        """As `Learner.make_train_dataloader`; on a GPU its draws are made there."""
        rounds = self._rounds()
        self._draws_on_device = (
            self.device_draws is not None
            and bool(rounds)
            and self.meta_batch_size is not None
            and self.device_draws.take_in(dict(zip(rounds, self._weights(rounds).tolist(), strict=True)))
        )
        super().make_train_dataloader(**kwargs)

    def training_epoch(self, **kwargs) -> None:
        """As Avalanche's; on a GPU, where nothing acts inside an iteration, by replays of one recorded step."""
        if not self._draws_on_device or self._stop_training or not self._meta_step.possible():
            super().training_epoch(**kwargs)
        elif self.together is not None and self.together.may_take(self):
            self.together.note_steps(self, len(self._own_loader))
        else:
            self.take_steps(len(self._own_loader))

    def take_steps(self, steps: int) -> None:
        """Training steps at once, where nothing acts inside them: of nobody but this learner (see `Together`)."""
        self._meta_step.train(steps)

    def forget_recorded_steps(self) -> None:
        """Let go of what `take_steps` has recorded; it is recorded anew."""
        self._meta_step.forget()

    def _draw(self) -> list[Tensor]:
        if self._draws_on_device:
            return self._draw_on_device()
        rounds = self._sample_tasks(self._rounds())
        (support_x, support_y), (query_x, query_y), labels = self.buffer.labelled_split(
            rounds,
            self.support_size,
            self.query_size,
            self.rng,
            class_balanced=self.class_balanced,
            permute_labels=self.permute_labels,
        )
        # Avalanche reads the first two entries and the last: the support rides in the middle.
        return [query_x.flatten(0, 1), query_y.flatten(0, 1), support_x, support_y, labels.flatten()]

    def _draw_on_device(self) -> list[Tensor]:
        assert self.device_draws is not None
        assert self.meta_batch_size is not None
        assert self.support_size is not None
        assert self.query_size is not None
        support_x, support_y, query_x, query_y, labels = self.device_draws.split(
            self.meta_batch_size, self.support_size, self.query_size
        )
        each = labels.unsqueeze(1).expand(-1, query_x.shape[1]).flatten()
        return [query_x.flatten(0, 1), query_y.flatten(0, 1), support_x, support_y, each]

    def _sample_tasks(self, rounds: list[int]) -> list[int]:
        if self.meta_batch_size is None:
            return rounds
        chosen = torch.multinomial(self._weights(rounds), self.meta_batch_size, replacement=True, generator=self.rng)
        return [rounds[i] for i in chosen.tolist()]

    def _weights(self, rounds: list[int]) -> Tensor:
        """How often each of these rounds is drawn, up to a factor."""
        if self.task_sampler is None:
            return torch.ones(len(rounds))
        known = list(self.buffer.rounds)
        weights = torch.as_tensor(self.task_sampler(len(known)), dtype=torch.float)
        if weights.shape != (len(known),):
            raise UsageError(f"task_sampler: expected {len(known)} weights, a round each, got {tuple(weights.shape)}")
        weights = weights[torch.tensor([known.index(number) for number in rounds])]
        if not (weights >= 0).all() or not 0 < float(weights.sum()) < float("inf"):
            raise UsageError(
                f"task_sampler: expected weights of at least 0, one of them above 0, for rounds {rounds}, "
                f"got {weights.tolist()}"
            )
        return weights

    def state_dict(self) -> dict[str, Any]:
        """As `Learner.state_dict`, with the state of the draws on a GPU."""
        state = super().state_dict()
        return state if self.device_draws is None else {**state, "device_rng": self.device_draws.rng.get_state()}

    def load_state_dict(self, state: dict[str, Any], experiences: Iterable[DatasetExperience]) -> None:
        """As `Learner.load_state_dict`."""
        super().load_state_dict(state, experiences)
        if self.device_draws is not None and "device_rng" in state:
            self.device_draws.rng.set_state(state["device_rng"].cpu())

    def forward(self) -> Tensor:
        """In training: post-adaptation outputs on the query points, (T * Q, *output); else the model's outputs."""
        if not self.is_training:
            return super().forward()
        query_x, _, support_x, support_y, labels = self.mbatch
        labels = labels.unflatten(0, (len(support_x), -1))[:, :1]  # (T, 1)
        self._note_support_statistics(support_x, labels)
        query = self._input(query_x.unflatten(0, (len(support_x), -1)), labels)
        parameters = dict(self.model.named_parameters())
        return self.engine.predict(parameters, (self._input(support_x, labels), support_y), query).flatten(0, 1)

    def _input(self, x: Tensor, labels: Tensor) -> Input:
        """What the model takes: x (T, N, *input), with the task labels (T, N) beside it if it takes them."""
        return (x, labels.expand(-1, x.shape[1])) if is_multi_task_module(self.model) else x

    @torch.no_grad()
    def _note_support_statistics(self, support_x: Tensor, labels: Tensor) -> None:
        """Running statistics of the unadapted model on support sets: what a task without any data is normalised by."""
        if self.batch_norm != "support" or not has_norm(self.model):
            return
        if not is_multi_task_module(self.model):
            with batch_statistics(groups=len(support_x), keep="running"):
                self.model(support_x.flatten(0, 1).clone())  # a model may write into what it is given
            return
        # Such a model may part a minibatch by its tasks, so that groups would be mixed up.
        for x, label in zip(support_x, labels, strict=True):
            with batch_statistics(keep="running"):
                avalanche_forward(self.model, x, label.expand(len(x)))

    def _step_cost(self) -> tuple[int, int]:
        query, support = len(self.mbatch[0]), self.mbatch[2].shape[0] * self.mbatch[2].shape[1]
        inner = support * self.engine.inner_steps
        return support + query, query + inner * (2 if self.engine.second_order else 1)

    def _update(self, model: nn.Module, x: Input, y: Tensor) -> None:
        # A model that grows may have grown for this evaluation.
        engine = self._engine_of(self.model) if grows(self.model) else self.engine
        with as_it_is_without_gradient(self.model, self):
            adapted = engine.adapt(dict(self.model.named_parameters()), x, y, self.update_steps)
            put(adapted, model, self.model)
            self.cost.gradient_evaluations += self.update_steps * len(y)

    def _models_ahead(self, tasks: list[tuple[int, ...] | None]) -> dict[tuple[int, ...] | None, nn.Module]:
        """As `Learner._models_ahead`: tasks of one size in one pass, on a GPU; convolutions of a CPU are slower so."""
        if not self._updates_in_one_pass or is_multi_task_module(self.model) or grows(self.model):
            return {}
        with as_it_is_without_gradient(self.model, self):
            return self._adapted_ahead(tasks)
        return {}

    def _adapted_ahead(self, tasks: list[tuple[int, ...] | None]) -> dict[tuple[int, ...] | None, nn.Module]:
        found: dict[tuple[int, ...] | None, nn.Module] = {}
        waiting: dict[torch.Size, list] = {}  # by the shape of their inputs
        for labels in dict.fromkeys(tasks):
            data = self._data_of(labels)
            if data is None:
                continue
            same = waiting.setdefault(data[0].shape, [])
            same.append((labels, *data))
            if len(same) == UPDATES_AT_ONCE:
                found |= self._adapted_copies(waiting.pop(data[0].shape), tasks)
        for same in waiting.values():
            found |= self._adapted_copies(same, tasks)
        return found

    def _adapted_copies(self, tasks: list, asked: list) -> dict[tuple[int, ...] | None, nn.Module]:
        """As `_adapted_copy`, for tasks (labels, x, y) of one size, each as often as its labels are asked for."""
        x, y = (torch.stack([task[part] for task in tasks]) for part in (1, 2))
        adapted = self.engine.adapt_each(dict(self.model.named_parameters()), x, y, self.update_steps)
        copies = {}
        for (labels, own_x, _), weights in zip(tasks, adapted, strict=True):
            copy = copy_of(self.model)
            put(weights, copy, self.model)
            self._keep_statistics(copy, own_x, torch.zeros(len(own_x), device=own_x.device))
            copies[labels] = copy
            self.cost.gradient_evaluations += asked.count(labels) * self.update_steps * len(own_x)
        return copies
