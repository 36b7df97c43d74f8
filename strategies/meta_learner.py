"""What learners that adapt by inner steps share: the engine, and how their steps and evaluations are taken."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from functools import partial
from typing import Annotated, Any, Literal

import torch
from avalanche.benchmarks import DatasetExperience
from avalanche.models import avalanche_forward
from avalanche.models.utils import is_multi_task_module
from torch import Tensor, nn
from typing_extensions import Unpack

from ftml_bench.adaptation import Engine, make_engine
from ftml_bench.adaptation.inner_loop import Input, names_in
from ftml_bench.adaptation.refusals import is_pytorchs
from ftml_bench.adaptation.rule import PLAIN, InnerRule
from ftml_bench.adaptation.weights import put, while_holding
from ftml_bench.errors import UsageError
from ftml_bench.models.copies import copy_of
from ftml_bench.models.norm import Moments, batch_statistics, has_norm, keep_running
from ftml_bench.recorded.device_draws import DeviceDraws
from ftml_bench.recorded.execution import Execution
from ftml_bench.recorded.graphs import fixed_by
from ftml_bench.strategies.avalanche.adaptable import as_it_is_without_gradient
from ftml_bench.strategies.avalanche.base import Learner
from ftml_bench.strategies.avalanche.evaluation import grows
from ftml_bench.strategies.avalanche.keywords import LearnerKeywords, with_defaults
from ftml_bench.strategies.task_losses import ignored_by, mean_over_tasks

UPDATES_AT_ONCE = 16  # tasks whose data lie ready as floats at a time


class MetaLearnerKeywords(LearnerKeywords, total=False):
    """Those of every learner that adapts by inner steps.

    :param inner_lr: α, the inner learning rate, also of the update procedure.
    :param inner_steps: inner gradient steps in training.
    :param update_steps: gradient steps of the update procedure (N_grad); None: `inner_steps`.
    :param adapted: what the inner loop changes: "all", "last_layer", or names of parameters.
    :param second_order: False for first-order MAML.
    :param inner_clip: c: every entry of an inner gradient is cut to [-c, c], in the update procedure too; None: as it
        is. The meta-gradient is that of the clipped steps.
    :param engine: what computes the meta-gradient: "auto", "batched", "vmap", "loop", "higher", "native"
        (docs/engines.md).
    :param memory: "unroll" keeps the graph of every inner step; "adjoint" does not, and takes longer; "auto" unrolls
        while the graph is estimated to stay under 2 GiB. The gradient is the same.
    :param batch_norm: whose statistics normalise: "support", "transductive", "own_query" or "running", see
        `ftml_bench.models.norm`. Under the last three a meta-step's query is normalised by itself.
    """

    inner_lr: Annotated[float, 0.1]
    inner_steps: Annotated[int, 5]
    update_steps: Annotated[int | None, None]
    adapted: Annotated[Literal["all", "last_layer"] | Iterable[str], "all"]
    second_order: Annotated[bool, True]
    inner_clip: Annotated[float | None, None]
    engine: Annotated[str, "auto"]
    memory: Annotated[Literal["auto", "unroll", "adjoint"], "auto"]
    batch_norm: Annotated[Literal["support", "transductive", "own_query", "running"], "support"]


def _of_engine(name: str) -> Any:
    """A setting of the inner loop, which is the engine's."""

    def get(learner: MetaLearner) -> Any:
        return learner._engine.settings[name]

    def put(learner: MetaLearner, value: Any) -> None:
        setattr(learner.engine, name, value)

    return property(get, put, doc=f"`{name}` of the inner loop, as it is now; it may be set at any time.")


class MetaLearner(Learner):
    """A learner whose forward pass in training is "adapt to the support set, then predict the query set".

    A minibatch is `[query x, query y, support x, support y, task labels]`: Avalanche and its plugins see the query
    points of all tasks, the support sets ride in the middle. A learner of this kind says what it draws (`_draw`), how
    it adapts and predicts (`forward`) and what a step costs; where its inner steps are more than gradient descent, by
    which `rule`. Before an evaluation a copy is adapted by inner steps on D_t.
    """

    BATCH_NORM_RULES = ("support", "transductive", "own_query", "running")

    inner_lr = _of_engine("inner_lr")
    inner_steps = _of_engine("inner_steps")
    second_order = _of_engine("second_order")
    adapted = _of_engine("adapted")
    inner_clip = _of_engine("inner_clip")
    memory = _of_engine("memory")

    def __init__(self, **learner: Unpack[MetaLearnerKeywords]) -> None:
        given = with_defaults(MetaLearnerKeywords, learner)
        update_steps = given.pop("update_steps")
        if update_steps is not None and update_steps < 1:
            raise UsageError(f"update_steps={update_steps}: expected None or a number of at least 1")
        names = ("engine", "inner_lr", "inner_steps", "second_order", "adapted", "inner_clip", "memory")
        settings = {name: given.pop(name) for name in names}
        super().__init__(**given)
        self.update_steps = settings["inner_steps"] if update_steps is None else update_steps
        if not isinstance(settings["adapted"], str):
            settings["adapted"] = names_in(settings["adapted"])
        if is_multi_task_module(self.model):
            settings["engine"] = self._engine_for_task_labels(settings["engine"], settings["adapted"])
        self.engine_settings: dict[str, Any] = {  # as asked for; what was set since is known to the engine
            "name": settings.pop("engine"),
            **settings,
            "batch_norm": "support" if self.batch_norm == "support" else "transductive",
        }
        self._engine = make_engine(model=self.model, criterion=self._criterion, **self.engine_settings)
        self._ignores: bool | None = None  # see `mean_over_tasks`; found out at each arrival
        self._weights_of_tasks: list[dict[str, Tensor]] | None = None  # if the criterion looks at them
        self._updates_in_one_pass = self.device.type == "cuda"
        self.execution = Execution(self, self._draws_on_the_device())

    # -- the engine

    @property
    def rule(self) -> InnerRule:
        """What an inner step is beside plain gradient descent, in training and in the update procedure."""
        return PLAIN

    def rule_for(self, points: int) -> InnerRule:
        """The same where it depends on how many points of a task are adapted to."""
        return self.rule

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
        notes = [*filter(None, [chosen.get("engine_note")]), *self.execution.notes]
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

    @property
    def _settings_of_now(self) -> dict[str, Any]:
        """What an engine as the present one is made of."""
        return {**self.engine_settings, **self._engine.settings}

    @property
    def _engine_of_now(self) -> Engine:
        """The engine for an update procedure: a model that grows may have grown for this evaluation."""
        if not grows(self.model):
            return self.engine
        return make_engine(model=self.model, criterion=self._criterion, **self._settings_of_now)

    # -- the minibatch

    @staticmethod
    def _minibatch(support: tuple[Tensor, Tensor], query: tuple[Tensor, Tensor], labels: Tensor) -> list[Tensor]:
        """A minibatch of support (T, S, ...) and query (T, Q, ...) sets and the query points' task labels, (T, Q)."""
        return [query[0].flatten(0, 1), query[1].flatten(0, 1), *support, labels.flatten()]

    def _sets(self) -> tuple[tuple[Input, Tensor], Input]:
        """The minibatch's support sets, x (T, S, *input) and y, and query x (T, Q, *input), as the model takes them."""
        query_x, _, support_x, support_y, _ = self.mbatch
        labels = self._labels_of_sets()
        query = self._input(query_x.unflatten(0, (len(support_x), -1)), labels)
        return (self._input(support_x, labels), support_y), query

    def _input(self, x: Tensor, labels: Tensor) -> Input:
        """What the model takes: x (T, N, *input), with the task labels (T, N) beside it if it takes them."""
        return (x, labels.expand(-1, x.shape[1])) if is_multi_task_module(self.model) else x

    def _labels_of_sets(self) -> Tensor:
        """(T, 1)"""
        return self.mbatch[4].unflatten(0, (len(self.mbatch[2]), -1))[:, :1]

    def _adapted_outputs(
        self, rule: InnerRule, *, parameters: Mapping[str, Tensor] | None = None, every_step: bool = False
    ) -> Tensor:
        """The query's outputs, (T * Q, *output), after inner steps by the rule on the minibatch's support sets.

        The running statistics follow those of the support sets: a task without any data is normalised by them.

        :param parameters: that the steps start from; None: the model's.
        :param every_step: the outputs after each of K steps, (K, T * Q, *output).
        """
        support, query_x = self._sets()
        engine, own = self.engine, dict(self.model.named_parameters())
        outputs = engine.predict(parameters or own, support, query_x, rule=rule, every_step=every_step)
        self._weights_of_tasks = engine.adapted_weights
        if engine.criterion_sees_weights and self._weights_of_tasks is None:
            raise UsageError(
                f"the criterion looks at the model's weights, which {type(self).__name__} knows after unrolled steps "
                f"alone, and for one loss: expected a criterion of outputs and targets, or FTML with memory='unroll'"
            )
        self._note_support_statistics(None if parameters else engine.moments)
        return outputs.flatten(1, 2) if every_step else outputs.flatten(0, 1)

    def _note_support_statistics(self, moments: Mapping[str, Moments] | None) -> None:
        """:param moments: of the minibatch's support sets at the model's parameters, where they are known."""
        if self.batch_norm == "transductive" or not has_norm(self.model):
            return
        if moments is not None:
            keep_running(self.model, moments)
            return
        with torch.no_grad():
            self._unadapted_outputs(self.mbatch[2], self._labels_of_sets())

    def _unadapted_outputs(self, x: Tensor, labels: Tensor) -> Tensor:
        """The model's outputs of x (T, N, *input), (T * N, *output), each task normalised by itself.

        The running statistics are then those of x.

        :param labels: (T, 1).
        """
        if not is_multi_task_module(self.model):
            with batch_statistics(groups=len(x), keep="running"):
                return self.model(x.flatten(0, 1).clone())  # a model may write into what it is given
        # Such a model may part a minibatch by its tasks, so that groups would be mixed up.
        with batch_statistics(keep="running"):
            return torch.cat(
                [
                    avalanche_forward(self.model, task, label.expand(len(task)))
                    for task, label in zip(x, labels, strict=True)
                ]
            )

    # -- how steps are taken (see `Execution` and `Recordable`)

    def _draws_on_the_device(self) -> DeviceDraws | None:
        """What draws minibatches on the device; None: they are drawn by the host."""
        return None

    def _weights_by_round(self) -> dict[int, float] | None:
        """How often the device draws each round, up to a factor; None if it cannot now."""
        return None

    @property
    def draws(self) -> DeviceDraws:
        """See `Recordable`."""
        assert self.execution.draws is not None
        return self.execution.draws

    def make_train_dataloader(self, **kwargs) -> None:
        """As `Learner.make_train_dataloader`; on a GPU draws may be made there."""
        self.execution.prepare(self._weights_by_round)
        ignored = ignored_by(self._criterion) if self.execution.draws_on_device else None
        rounds = self.buffer.rounds.values()
        self._ignores = None if ignored is None else any(round.has_target(ignored) for round in rounds)
        if not is_pytorchs(self._criterion):
            (x, y), labels = self.buffer.everything([self.current_round])
            self.engine.see_criterion((x, labels) if is_multi_task_module(self.model) else x, y)
        super().make_train_dataloader(**kwargs)

    def training_epoch(self, **kwargs) -> None:
        """As Avalanche's; on a GPU, where nothing acts inside an iteration, by replays of one recorded step."""
        self.execution.take(len(self._own_loader), partial(super().training_epoch, **kwargs))

    def _loss_of(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """In training the mean over tasks of the loss of each (paper, eq. 5)."""
        if not self.is_training:
            return super()._loss_of(outputs, targets)
        tasks = len(self.mbatch[2])
        if self._weights_of_tasks is None:
            return mean_over_tasks(self._criterion, outputs, targets, tasks, ignores=self._ignores)
        parts = zip(outputs.chunk(tasks), targets.chunk(tasks), self._weights_of_tasks, strict=True)
        return torch.stack(
            [while_holding(self.model, weights, partial(self._criterion, *part)) for *part, weights in parts]
        ).mean()

    def fixed(self) -> Hashable:
        """See `Recordable`."""
        engine = self.engine
        return self._ignores, id(engine), engine.built, engine.inner_lr, engine.inner_steps, engine.second_order

    def alike(self) -> Hashable:
        """See `Recordable`."""
        shapes = tuple((name, p.shape, p.requires_grad) for name, p in self.model.named_parameters())
        numbers, _ = fixed_by(self.model, self._criterion)
        return type(self), self.engine.name, repr(self._settings_of_now), shapes, numbers, self.device

    @property
    def takes_steps_together(self) -> bool:
        """See `Recordable`."""
        return self.engine.takes_each and self.train_epochs == 1 and self.rule.is_plain

    def forward_with(self, others: Sequence[MetaLearner]) -> None:
        """See `Recordable`: the meta-batches of all go through this learner's engine, with parameters of each."""
        if not others:
            with self.engine.graphs.off():
                self.mb_output = self.forward()
            return
        learners = [self, *others]
        sets = [learner._sets() for learner in learners]
        for learner in learners:
            learner._note_support_statistics(None)
        tasks = len(self.mbatch[2])
        support_x, support_y, query_x = (
            torch.cat(part) for part in zip(*((*support, query) for support, query in sets), strict=True)
        )
        # chosen by each for itself, as alone; alike, since they differ in nothing that it depends on
        memory = [
            learner.engine.choose_memory(dict(learner.model.named_parameters()), (learner.mbatch[2], learner.mbatch[3]))
            for learner in learners
        ]
        parameters = {
            name: torch.cat([learner.model.get_parameter(name).expand(tasks, *p.shape) for learner in learners])
            for name, p in self.model.named_parameters()
        }
        outputs = self.engine.predict_each(parameters, (support_x, support_y), query_x, memory[0])
        for learner, own in zip(learners, outputs.split(tasks), strict=True):
            learner.mb_output = own.flatten(0, 1)

    # -- evaluations

    def _update(self, model: nn.Module, x: Input, y: Tensor) -> None:
        """N_grad gradient steps on D_t (paper, Algorithm 2, lines 12 to 16)."""
        with as_it_is_without_gradient(self.model, self):
            parameters = dict(self.model.named_parameters())
            adapted = self._engine_of_now.adapt(parameters, x, y, self.update_steps, rule=self.rule_for(len(y)))
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
        parameters, rule = dict(self.model.named_parameters()), self.rule_for(x.shape[1])
        adapted = self.engine.adapt_each(parameters, x, y, self.update_steps, rule=rule)
        copies = {}
        for (labels, own_x, _), weights in zip(tasks, adapted, strict=True):
            copy = copy_of(self.model)
            put(weights, copy, self.model)
            self._keep_statistics(copy, own_x, torch.zeros(len(own_x), device=own_x.device))
            copies[labels] = copy
            self.cost.gradient_evaluations += asked.count(labels) * self.update_steps * len(own_x)
        return copies

    # -- what is saved

    def state_dict(self) -> dict[str, Any]:
        """As `Learner.state_dict`, with what trials of engines have found out, settings of the inner loop set since,
        and the state of the draws on a GPU.
        """
        state, draws = {**super().state_dict(), "engine": self._engine.found_out}, self.execution.draws
        asked_for = self.engine_settings
        changed = {n: v for n, v in self._engine.settings.items() if n not in asked_for or v != asked_for[n]}
        if changed:
            state["inner_loop"] = changed
        return state if draws is None else {**state, "device_rng": draws.rng.get_state()}

    def load_state_dict(self, state: dict[str, Any], experiences: Iterable[DatasetExperience]) -> None:
        """As `Learner.load_state_dict`."""
        super().load_state_dict(state, experiences)
        for name, value in state.get("inner_loop", {}).items():
            setattr(self.engine, name, value)
        if "engine" in state:
            self.engine.go_on_with(**state["engine"])
        if self.execution.draws is not None and "device_rng" in state:
            self.execution.draws.rng.set_state(state["device_rng"].cpu())
