"""FTML's whole training step as one CUDA graph: draw, adapt, predict, derive, update."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from avalanche.core import BasePlugin, BaseSGDPlugin, SupervisedPlugin
from avalanche.evaluation import PluginMetric
from avalanche.training.templates.base_sgd import PeriodicEval
from torch import Tensor

from ftml_bench.adaptation.graphs import WARM_UP, on_side_stream, recording
from ftml_bench.strategies.per_round import PerRound

if TYPE_CHECKING:
    from ftml_bench.strategies.ftml import FTML

HOOKS = [
    f"{when}_{part}" for part in ("training_iteration", "forward", "backward", "update") for when in ("before", "after")
]
# Methods of a strategy that a step calls; where a subclass has its own hooks, Avalanche's loop calls them.
_OWN_HOOKS = [f"_{hook}" for hook in HOOKS]
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
        self.note = ""  # why nothing is recorded, once that has failed

    def possible(self) -> bool:
        """Whether nothing has to be done inside an iteration, and steps can be recorded."""
        return not self.note and not acts_inside_iterations(self._strategy)

    def train(self, steps: int) -> None:
        """Take `steps` training steps."""
        done = 0
        if self._key is None or self._key != self._found_key():
            done = min(steps, WARM_UP)
            with on_side_stream():
                for _ in range(done):
                    self._strategy.optimizer.zero_grad()
                    self._step()
                    self._update_outside()
            if done < steps and not self._record():
                for _ in range(steps - done):
                    self._strategy.optimizer.zero_grad()
                    self._step()
                    self._update_outside()
                done = steps
        if done < steps:
            self._replay(steps - done)
        self._count(steps)

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
        return all(group.get("capturable", True) for group in self._strategy.optimizer.param_groups)

    def _update_outside(self) -> None:
        if not self._updates_inside:
            self._strategy.optimizer_step()

    def _record(self) -> bool:
        strategy = self._strategy
        assert strategy.device_draws is not None
        self._graph = None  # its memory is free for the next
        strategy.optimizer.zero_grad()  # the gradients become the graph's own
        try:
            graph = torch.cuda.CUDAGraph()
            with recording(graph, strategy.device_draws.rng):
                self._step()
        except RuntimeError as error:
            self.note = f"no CUDA graph of the training step ({str(error).strip().splitlines()[0]})"
            self._key = None
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
        """Everything that a recorded step has fixed: where tensors lie, and the optimiser's numbers."""
        strategy = self._strategy
        assert strategy.device_draws is not None
        optimizer = strategy.optimizer
        tensors = [*strategy.model.parameters(), *strategy.model.buffers()]
        numbers: list[Any] = []
        if self._updates_inside:
            tensors += [v for state in optimizer.state.values() for v in state.values() if isinstance(v, Tensor)]
            groups = optimizer.param_groups
            numbers = [tuple((n, v) for n, v in g.items() if isinstance(v, (bool, int, float, tuple))) for g in groups]
        sizes = (strategy.meta_batch_size, strategy.support_size, strategy.query_size)
        modes = tuple(module.training for module in strategy.model.modules())
        places = tuple(t.data_ptr() for t in tensors)
        return (places, strategy.device_draws.places, tuple(numbers), modes, sizes, self._updates_inside)


def acts_inside_iterations(strategy: FTML) -> bool:
    """Whether a plugin, a metric, a logger or a subclass does anything inside a training iteration."""
    from ftml_bench.strategies.ftml import FTML

    if any(getattr(type(strategy), hook) is not getattr(FTML, hook) for hook in _OWN_HOOKS):
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
        if owner is not None and owner not in _EMPTY:
            return True
    return False
