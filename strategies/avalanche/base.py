"""What every learner of the suite shares: the buffer, the number of steps, and an evaluation that changes nothing."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from typing import Any

import torch
from avalanche.benchmarks import DatasetExperience
from avalanche.core import SupervisedPlugin
from avalanche.models.utils import is_multi_task_module
from avalanche.training.plugins import EvaluationPlugin
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from typing_extensions import Unpack

from ftml_bench.adaptation.refusals import refuse_norms_of_their_own_kind
from ftml_bench.benchmarks.experiences import (
    batch_of,
    number_of,
    tasks_of,
)
from ftml_bench.buffer import TaskBuffer
from ftml_bench.errors import UsageError, at_least, unknown
from ftml_bench.memory import keep_freed_memory
from ftml_bench.models.norm import convert_batch_norm, find_frozen, give_running_statistics, note_frozen
from ftml_bench.random_state import preserved_random_state
from ftml_bench.saving.looks import looks_of_parts
from ftml_bench.saving.plain_state import settings_of_parts
from ftml_bench.seeding import generator
from ftml_bench.strategies.avalanche.cost import Cost
from ftml_bench.strategies.avalanche.described import described
from ftml_bench.strategies.avalanche.evaluation import EvaluatedOnCopies
from ftml_bench.strategies.avalanche.keywords import LearnerKeywords, WrittenKeywords, with_defaults
from ftml_bench.strategies.avalanche.kinds import refuse_parts
from ftml_bench.strategies.avalanche.per_round import PerRound
from ftml_bench.strategies.avalanche.repairs import Companion, as_arrival, with_repairs
from ftml_bench.strategies.avalanche.unfit import refuse_unfit, replaced


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


class Learner(WrittenKeywords, EvaluatedOnCopies):
    """A `SupervisedTemplate` that trains on draws from a buffer of all data and is evaluated after adapting a copy.

    Avalanche's training and evaluation loops are used as they are. A learner says what it draws (`_draw`), from which
    rounds (`_rounds`), what a step costs (`_step_cost`), and what it does to the copy that is evaluated (`_update`).
    Models may grow, and may take task labels (Avalanche's `DynamicModule` and `MultiTaskModule`). A few of Avalanche's
    plugins are put right (see `repairs`); those that replace the minibatches or the model are refused, as are models
    whose lazy layers have not seen a batch.

    :param batch_norm: whose statistics normalise (see `ftml_bench.models.norm`).
    """

    BATCH_NORM_RULES: tuple[str, ...] = ("support", "transductive")

    def __init__(self, *, batch_norm: str = "support", **learner: Unpack[LearnerKeywords]) -> None:
        avalanche = with_defaults(LearnerKeywords, learner)
        names = ("steps", "update_size", "seed", "buffer", "buffer_folder")
        steps, update_size, seed, rule, folder = map(avalanche.pop, names)
        if steps is not None and steps < 1:
            raise UsageError(f"steps={steps}: expected None or a number of at least 1")
        at_least(1, update_size=update_size, train_mb_size=avalanche["train_mb_size"])
        if avalanche["eval_mb_size"] is not None:
            at_least(1, eval_mb_size=avalanche["eval_mb_size"])
        if batch_norm not in self.BATCH_NORM_RULES:
            raise unknown(f"batch norm rule of {type(self).__name__}", batch_norm, self.BATCH_NORM_RULES)
        model: Any = avalanche.get("model")  # perhaps none: `refuse_parts` looks
        refuse_parts(model, avalanche.get("optimizer"), avalanche["criterion"])
        lazy = [name for name, p in [*model.named_parameters(), *model.named_buffers()] if is_lazy(p)]
        if lazy:
            raise UsageError(
                f"{lazy[0]} of the model has no shape yet: expected lazy layers that have seen a batch: call model(x) "
                f"once before {type(self).__name__} is built"
            )
        avalanche["model"] = _with_norms_for(batch_norm, model)
        avalanche["plugins"] = with_repairs(avalanche.get("plugins"))
        if avalanche.get("evaluator", ...) is None:
            avalanche["evaluator"] = _no_evaluator()
        super().__init__(**avalanche)
        keep_freed_memory()
        self.steps = steps
        self.update_size = update_size
        self.batch_norm = batch_norm
        self.seed = seed
        self.cost = Cost()
        self.buffer = TaskBuffer(self.device, folder=folder, rule=rule, seed=seed)
        self.rng = generator(seed, "buffer")
        self.current_round = -1
        self.built_with = settings_of_parts(self.plugins)  # what a saved state is compared with
        self.looked = looks_of_parts(self.model, self._criterion, self.optimizer)  # so is this

    def __repr__(self) -> str:
        points = sum(len(self.buffer.rounds[number]) for number in self.buffer.rounds)
        return f"<{described(self)}; {len(self.buffer.rounds)} rounds, {points} points in its buffer>"

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

    def parts_that_act(self, *, inside_iterations: bool) -> Iterator[Any]:
        """Plugins, metrics and loggers, whose hooks are called in training.

        :param inside_iterations: what is called inside an iteration; `per_round` passes on what comes there, and counts
            after it.
        """
        for plugin in self.plugins:
            if plugin is not self.evaluator and plugin is not self.clock:
                yield _unwrapped(plugin) if inside_iterations else plugin
        yield from self.evaluator.metrics
        yield from self.evaluator.loggers

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
        if not torch.is_grad_enabled():
            raise UsageError("train was called without gradients, as inside torch.no_grad(): expected a call outside")
        refuse_unfit(self)
        super()._before_training(**kwargs)

    def _before_training_exp(self, **kwargs) -> None:
        self._copies_follow = False
        _with_norms_for(self.batch_norm, self.model)  # where layers have been added since
        self.experience = self._arrival()
        self._check_points()
        self.current_round = self.buffer.add(self.experience)
        at_hand = sum(len(self.buffer.rounds[number]) for number in self._rounds())
        self.cost.points_kept = max(self.cost.points_kept or 0, at_hand)
        super()._before_training_exp(**kwargs)
        note_frozen(self.model)
        self._refuse_replaced_parts()

    def _arrival(self) -> DatasetExperience:
        """The experience at hand, whole: Avalanche's own online splitter leaves some of it out."""
        number = self.buffer.find(self.experience)
        arrival = as_arrival(self.experience, None if number is None else self.buffer.rounds.get(number))
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
        steps = self._steps()
        self._own_loader = DrawLoader(self._draw, steps if self._rounds() else 0)
        self.dataloader = self._own_loader

    def _steps(self) -> int:
        """Training steps of this arrival."""
        if self.steps is None:
            return -(-len(self.experience.dataset) // self.train_mb_size)
        return self.steps  # 0 while rounds are handed over before the stream begins (`protocol.WarmUp`)

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
        note_frozen(self.model)
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


def _with_norms_for(batch_norm: str, model: nn.Module) -> nn.Module:
    """The model, whose norm layers can follow the rule now."""
    convert_batch_norm(model)
    if batch_norm != "running":  # by which layers of any kind do what they do without us
        refuse_norms_of_their_own_kind(model)
    if batch_norm != "transductive":
        give_running_statistics(model)
    find_frozen(model)  # an evaluation may come before any training, as after a saved state
    return model


def _no_evaluator() -> EvaluationPlugin:
    """What Avalanche takes for None, without its warning that there are no loggers: none were asked for."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="No loggers specified", category=UserWarning)
        return EvaluationPlugin()


def _unwrapped(plugin):
    """The plugin itself, without `per_round`."""
    return plugin.plugin if isinstance(plugin, PerRound) else plugin
