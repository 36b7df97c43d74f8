"""A learner's whole training step as one CUDA graph: draw, adapt, predict, derive, update."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from typing import Any, Protocol

import torch
from avalanche.core import BasePlugin, BaseSGDPlugin, SupervisedPlugin
from avalanche.evaluation import GenericPluginMetric, PluginMetric
from avalanche.training.templates.base_sgd import PeriodicEval
from torch import Tensor

from ftml_bench.random_state import host_state
from ftml_bench.recorded.device_draws import DeviceDraws
from ftml_bench.recorded.graphs import (
    DRAWS_ON_HOST,
    WARM_UP,
    first_line,
    fixed_by,
    on_side_stream,
    recording,
    why_not_recorded,
)

HOOKS = [
    f"{when}_{part}" for part in ("training_iteration", "forward", "backward", "update") for when in ("before", "after")
]
LATER_HOOKS = ["after_training_epoch", "after_training_exp", "after_training"]
# What Avalanche's loop calls of a strategy in an iteration: a subclass may do there what no recording would repeat.
_CALLED = [*(f"_{hook}" for hook in HOOKS), "forward", "criterion", "backward", "optimizer_step", "_draw"]
_EMPTY = (BasePlugin, BaseSGDPlugin, SupervisedPlugin, PluginMetric)  # their hooks do nothing


class Recordable(Protocol):
    """What a learner says of itself whose steps are to be recorded, beside what it is as an Avalanche strategy.

    The class that these steps are written for has an attribute `recordable` of its own, True; a subclass that overrides
    what is called in an iteration does there what no recording would repeat, and is left to Avalanche's loop.
    """

    model: Any
    optimizer: Any
    mbatch: Any
    mb_output: Any
    loss: Any
    clock: Any
    cost: Any

    @property
    def draws(self) -> DeviceDraws:
        """What draws its minibatches, on the device."""
        ...

    def forward_with(self, others: Sequence[Any]) -> None:
        """Set `mb_output` of this learner and the others, which are alike (`alike`): theirs in one pass."""
        ...

    def alike(self) -> Hashable:
        """What learners have to have in common to take their steps in one pass."""
        ...

    def fixed(self) -> Hashable:
        """What a recorded step has fixed, beside model, criterion, optimiser and the places of draws."""
        ...

    @property
    def takes_steps_together(self) -> bool:
        """Whether it can, at present, take its steps in one pass with others that are alike."""
        ...

    def parts_that_act(self, *, inside_iterations: bool) -> Iterator[Any]:
        """Plugins, metrics and loggers, whose hooks are called in training."""
        ...


class RecordedStep:
    """Takes the training steps of an arrival one after the other without returning to Avalanche's loop.

    The first steps are taken as they are, which warms up; then one is recorded, and replayed for the others. It is
    recorded anew when anything has moved that it reads or writes, or a learning rate has changed. An optimiser that
    cannot be recorded (`capturable=True` is missing) takes its steps between the replays.

    :param strategies: one, or several that differ in nothing but their data, parameters and draws (see `Together`):
        the meta-batches of all go through the engine in one pass, and every strategy gets the step that it takes alone.
    """

    def __init__(self, strategies: Sequence[Recordable]) -> None:
        self.strategies: list[Any] = list(strategies)
        self._graph: torch.cuda.CUDAGraph | None = None
        self._key: tuple | None = None
        self._gradients: list[Tensor | None] = []
        self._static: list[tuple] = []  # minibatch, outputs and loss of the recorded step, for each strategy
        self.note = ""  # why nothing is recorded, once that has failed

    def possible(self) -> bool:
        """Whether nothing has to be done inside an iteration, and steps can be recorded."""
        reason = why_not_recorded(self.strategies[0].device)
        if reason:
            self.note = f"no CUDA graph of the training step ({reason})"
        return not self.note and not any(map(acts_inside_iterations, self.strategies))

    def train(self, steps: int) -> None:
        """Take `steps` training steps."""
        done = 0
        if self._key is None or self._key != self._found_key():
            done, before = min(steps, WARM_UP), host_state()
            with on_side_stream():
                self._take(done)
            if host_state() != before:
                self.note = f"no CUDA graph of the training step ({DRAWS_ON_HOST})"
            if done < steps and (self.note or not self._record()):
                self._take(steps - done)
                done = steps
        if done < steps:
            self._replay(steps - done)
        for strategy in self.strategies:
            _count(strategy, steps)

    def _take(self, steps: int) -> None:
        """Take steps as they are."""
        for _ in range(steps):
            self._zero_grad()
            self._step()
            self._update_outside()

    def _zero_grad(self) -> None:
        for strategy in self.strategies:
            strategy.optimizer.zero_grad()

    def _step(self) -> None:
        """A training step as Avalanche's loop takes it, up to the update if that is done outside."""
        for strategy in self.strategies:
            strategy.mbatch = strategy._draw()
        first, *others = self.strategies
        first.forward_with(others)
        for strategy in self.strategies:
            strategy.loss = strategy._make_empty_loss() + strategy.criterion()
        # no parameter is in two losses: each gets the gradient of its own
        torch.stack([strategy.loss for strategy in self.strategies]).sum().backward()
        if self._updates_inside:
            self._update()

    @property
    def _updates_inside(self) -> bool:
        """Whether the optimisers' steps do all their work on the device, with numbers that stay."""
        return all(_works_on_device(strategy.optimizer) for strategy in self.strategies)

    def _update(self) -> None:
        for strategy in self.strategies:
            strategy.optimizer_step()

    def _update_outside(self) -> None:
        if not self._updates_inside:
            self._update()

    def _record(self) -> bool:
        self.forget()
        self._zero_grad()  # the gradients become the graph's own
        for strategy in self.strategies:  # nothing of an earlier step's graph of derivatives reaches into the recording
            strategy.mb_output = strategy.loss = strategy._make_empty_loss()
        try:
            graph = torch.cuda.CUDAGraph()
            with recording(graph, *(strategy.draws.rng for strategy in self.strategies)):
                self._step()
        except Exception as error:  # whatever a criterion or an optimiser runs into
            self.note = f"no CUDA graph of the training step ({first_line(error)})"
            for strategy in self.strategies:  # what they have recorded alone draws from generators as they were
                strategy.execution.forget()
            return False
        self._graph, self._key = graph, self._found_key()
        self._gradients = [p.grad for p in self._parameters()]
        self._static = [(s.mbatch, s.mb_output, s.loss) for s in self.strategies]
        return True

    def forget(self) -> None:
        """Let go of what was recorded, and of its memory."""
        self._graph, self._key, self._static, self._gradients = None, None, [], []

    def _replay(self, steps: int) -> None:
        assert self._graph is not None
        for p, gradient in zip(self._parameters(), self._gradients, strict=True):
            p.grad = gradient
        for strategy, static in zip(self.strategies, self._static, strict=True):
            strategy.mbatch, strategy.mb_output, strategy.loss = static
        for _ in range(steps):
            self._graph.replay()
            self._update_outside()

    def _parameters(self) -> list[Tensor]:
        return [p for s in self.strategies for group in s.optimizer.param_groups for p in group["params"]]

    def _found_key(self) -> tuple:
        """Everything that a recorded step has fixed: where tensors lie, which are trained, and numbers."""
        return (
            *(_fixed(strategy, updates=self._updates_inside) for strategy in self.strategies),
            tuple(id(p) for p in self._parameters()),
            self._updates_inside,
            torch.is_autocast_enabled("cuda"),
        )


def _works_on_device(optimizer: torch.optim.Optimizer) -> bool:
    """Whether an optimiser's step does all its work on the device, with numbers that stay."""
    if optimizer._optimizer_step_pre_hooks or optimizer._optimizer_step_post_hooks:
        return False
    if type(optimizer) is torch.optim.SGD:  # which counts no steps
        return not any(isinstance(group["lr"], Tensor) for group in optimizer.param_groups)
    return all(group.get("capturable", False) for group in optimizer.param_groups)


def _fixed(strategy: Any, *, updates: bool) -> tuple:
    """What a recorded step fixes of one strategy; `updates`: the optimiser's step is recorded too."""
    optimizer = strategy.optimizer
    tensors = [*strategy.model.parameters(), *strategy.model.buffers()]
    numbers: list[Any] = []
    if updates:
        tensors += [v for state in optimizer.state.values() for v in state.values() if isinstance(v, Tensor)]
        groups = optimizer.param_groups
        numbers = [tuple((n, v) for n, v in g.items() if isinstance(v, (bool, int, float, tuple))) for g in groups]
    return (
        tuple(t.data_ptr() for t in tensors),
        tuple(p.requires_grad for p in strategy.model.parameters()),
        strategy.draws.places,
        tuple(numbers),
        fixed_by(strategy.model, strategy._criterion),
        strategy.fixed(),
    )


def _count(strategy: Any, steps: int) -> None:
    clock = strategy.clock
    images, gradient_evaluations = strategy._step_cost()
    strategy.cost.steps += steps
    strategy.cost.images += steps * images
    strategy.cost.gradient_evaluations += steps * gradient_evaluations
    for counter in ("train_epoch_iterations", "train_exp_iterations", "train_iterations", "total_iterations"):
        setattr(clock, counter, getattr(clock, counter) + steps)


def acts_inside_iterations(strategy: Any) -> bool:
    """Whether a plugin, a metric, a logger or a subclass does anything inside a training iteration."""
    return _acts(strategy, HOOKS, _CALLED)


def acts_after_training(strategy: Any) -> bool:
    """Whether a plugin, a metric, a logger or a subclass does anything between the steps and the end of `train`."""
    return _acts(strategy, LATER_HOOKS, [f"_{hook}" for hook in LATER_HOOKS])


def _acts(strategy: Any, hooks: list[str], methods: list[str]) -> bool:
    known = next((c for c in type(strategy).__mro__ if vars(c).get("recordable")), None)
    if known is None or any(
        name in vars(strategy) or getattr(type(strategy), name) is not getattr(known, name) for name in methods
    ):
        return True
    return any(_has_one_of(part, hooks) for part in strategy.parts_that_act(inside_iterations=hooks is HOOKS))


def _has_one_of(part: Any, hooks: list[str]) -> bool:
    if type(part) is PeriodicEval and part.eval_every < 0:
        return False
    if type(part) is PeriodicEval and hooks is HOOKS:
        return part.peval_mode == "iteration" and part.eval_every > 0
    for hook in hooks:
        if hook in vars(part):
            return True
        owner = next((c for c in type(part).__mro__ if hook in vars(c)), None)
        if owner is GenericPluginMetric and part._mode == "eval":
            continue  # its hooks of training do nothing
        if owner is not None and owner not in _EMPTY:
            return True
    return False
