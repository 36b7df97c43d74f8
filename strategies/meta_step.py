"""FTML's whole training step as one CUDA graph: draw, adapt, predict, derive, update."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from avalanche.core import BasePlugin, BaseSGDPlugin, SupervisedPlugin
from avalanche.evaluation import GenericPluginMetric, PluginMetric
from avalanche.training.templates.base_sgd import PeriodicEval
from torch import Tensor

from ftml_bench.adaptation.graphs import WARM_UP, first_line, fixed_by, on_side_stream, recording, why_not_recorded
from ftml_bench.strategies.per_round import PerRound

if TYPE_CHECKING:
    from ftml_bench.strategies.ftml import FTML

HOOKS = [
    f"{when}_{part}" for part in ("training_iteration", "forward", "backward", "update") for when in ("before", "after")
]
# What Avalanche's loop calls of a strategy in an iteration: a subclass may do there what no recording would repeat.
_CALLED = [*(f"_{hook}" for hook in HOOKS), "forward", "criterion", "backward", "optimizer_step", "_draw"]
_EMPTY = (BasePlugin, BaseSGDPlugin, SupervisedPlugin, PluginMetric)  # their hooks do nothing


class MetaStep:
    """Takes the training steps of an arrival one after the other without returning to Avalanche's loop.

    The first steps are taken as they are, which warms up; then one is recorded, and replayed for the others. It is
    recorded anew when anything has moved that it reads or writes, or a learning rate has changed. An optimiser that
    cannot be recorded (`capturable=True` is missing) takes its steps between the replays.
    """

    def __init__(self, strategy: FTML) -> None:
        self._strategy = strategy
        self._graph: torch.cuda.CUDAGraph | None = None
        self._key: tuple | None = None
        self._gradients: list[Tensor | None] = []
        self._static: tuple = ()  # minibatch, outputs and loss of the recorded step
        self.note = ""  # why nothing is recorded, once that has failed

    def possible(self) -> bool:
        """Whether nothing has to be done inside an iteration, and steps can be recorded."""
        reason = why_not_recorded(self._strategy.device)
        if reason:
            self.note = f"no CUDA graph of the training step ({reason})"
        return not self.note and not acts_inside_iterations(self._strategy)

    def train(self, steps: int) -> None:
        """Take `steps` training steps."""
        done = 0
        if self._key is None or self._key != self._found_key():
            done = min(steps, WARM_UP)
            with on_side_stream():
                self._take(done)
            if done < steps and not self._record():
                self._take(steps - done)
                done = steps
        if done < steps:
            self._replay(steps - done)
        self._count(steps)

    def _take(self, steps: int) -> None:
        """Take steps as they are."""
        for _ in range(steps):
            self._strategy.optimizer.zero_grad()
            self._step()
            self._update_outside()

    def _step(self) -> None:
        """A training step as Avalanche's loop takes it, up to the update if that is done outside."""
        strategy = self._strategy
        with strategy.engine.graphs.off():
            strategy.mbatch = strategy._draw()
            strategy.mb_output = strategy.forward()
            strategy.loss = strategy._make_empty_loss() + strategy.criterion()
            strategy.backward()
        if self._updates_inside:
            strategy.optimizer_step()

    @property
    def _updates_inside(self) -> bool:
        """Whether the optimiser's step does all its work on the device, with numbers that stay."""
        optimizer = self._strategy.optimizer
        if optimizer._optimizer_step_pre_hooks or optimizer._optimizer_step_post_hooks:
            return False
        if type(optimizer) is torch.optim.SGD:  # which counts no steps
            return not any(isinstance(group["lr"], Tensor) for group in optimizer.param_groups)
        return all(group.get("capturable", False) for group in optimizer.param_groups)

    def _update_outside(self) -> None:
        if not self._updates_inside:
            self._strategy.optimizer_step()

    def _record(self) -> bool:
        strategy = self._strategy
        assert strategy.device_draws is not None
        self._graph, self._key, self._static, self._gradients = None, None, (), []  # their memory is free for the next
        strategy.optimizer.zero_grad()  # the gradients become the graph's own
        try:
            graph = torch.cuda.CUDAGraph()
            with recording(graph, strategy.device_draws.rng):
                self._step()
        except Exception as error:  # whatever a criterion or an optimiser runs into
            self.note = f"no CUDA graph of the training step ({first_line(error)})"
            return False
        self._graph, self._key = graph, self._found_key()
        self._gradients = [p.grad for p in self._parameters()]
        self._static = strategy.mbatch, strategy.mb_output, strategy.loss
        return True

    def _replay(self, steps: int) -> None:
        assert self._graph is not None
        strategy = self._strategy
        for p, gradient in zip(self._parameters(), self._gradients, strict=True):
            p.grad = gradient
        strategy.mbatch, strategy.mb_output, strategy.loss = self._static
        for _ in range(steps):
            self._graph.replay()
            self._update_outside()

    def _parameters(self) -> list[Tensor]:
        return [p for group in self._strategy.optimizer.param_groups for p in group["params"]]

    def _count(self, steps: int) -> None:
        strategy, clock = self._strategy, self._strategy.clock
        images, gradient_evaluations = strategy._step_cost()
        strategy.cost.steps += steps
        strategy.cost.images += steps * images
        strategy.cost.gradient_evaluations += steps * gradient_evaluations
        for counter in ("train_epoch_iterations", "train_exp_iterations", "train_iterations", "total_iterations"):
            setattr(clock, counter, getattr(clock, counter) + steps)

    def _found_key(self) -> tuple:
        """Everything that a recorded step has fixed: where tensors lie, which are trained, and numbers."""
        strategy, engine = self._strategy, self._strategy.engine
        assert strategy.device_draws is not None
        optimizer = strategy.optimizer
        tensors = [*strategy.model.parameters(), *strategy.model.buffers()]
        numbers: list[Any] = []
        if self._updates_inside:
            tensors += [v for state in optimizer.state.values() for v in state.values() if isinstance(v, Tensor)]
            groups = optimizer.param_groups
            numbers = [tuple((n, v) for n, v in g.items() if isinstance(v, (bool, int, float, tuple))) for g in groups]
        return (
            tuple(t.data_ptr() for t in tensors),
            tuple(p.requires_grad for p in strategy.model.parameters()),
            tuple(id(p) for p in self._parameters()),
            strategy.device_draws.places,
            tuple(numbers),
            fixed_by(strategy.model, strategy._criterion),
            (id(engine), engine.inner_lr, engine.inner_steps, engine.second_order),
            (strategy.meta_batch_size, strategy.support_size, strategy.query_size),
            self._updates_inside,
            torch.is_autocast_enabled("cuda"),
        )


def acts_inside_iterations(strategy: FTML) -> bool:
    """Whether a plugin, a metric, a logger or a subclass does anything inside a training iteration."""
    from ftml_bench.strategies.ftml import FTML

    if any(name in vars(strategy) or getattr(type(strategy), name) is not getattr(FTML, name) for name in _CALLED):
        return True
    evaluator = strategy.evaluator
    plugins = [p.plugin if isinstance(p, PerRound) else p for p in strategy.plugins]
    parts = [p for p in plugins if p is not evaluator and p is not strategy.clock]
    return any(_acts(part) for part in [*parts, *evaluator.metrics, *evaluator.loggers])


def _acts(part: Any) -> bool:
    if type(part) is PeriodicEval:
        return part.peval_mode == "iteration" and part.eval_every > 0
    for hook in HOOKS:
        if hook in vars(part):
            return True
        owner = next((c for c in type(part).__mro__ if hook in vars(c)), None)
        if owner is GenericPluginMetric and part._mode == "eval":
            continue  # its hooks of training do nothing
        if owner is not None and owner not in _EMPTY:
            return True
    return False
