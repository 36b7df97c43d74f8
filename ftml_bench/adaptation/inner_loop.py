"""What every engine shares: the settings of the inner loop, its two losses, the update procedure."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Literal

import torch
from torch import Tensor, nn

from ftml_bench.adaptation.engine import Criterion, Input, Outputs, Parameters
from ftml_bench.adaptation.graph_leaves import gradients_kept, leaves_of
from ftml_bench.adaptation.refusals import (
    refuse_overlapping_parameters,
    refuse_parameter_hooks,
    refuse_untreatable_layers,
    refuse_what_evaluations_leave_out,
)
from ftml_bench.adaptation.rule import PLAIN, InnerRule
from ftml_bench.adaptation.second_derivatives import twice_differentiable
from ftml_bench.adaptation.weights import while_holding
from ftml_bench.errors import UsageError, above_zero, at_least, is_flag, shown, unknown
from ftml_bench.models.norm import Moments, batch_statistics, convert_batch_norm, has_norm
from ftml_bench.recorded.graphs import Graphs

BATCH_NORM_RULES = ("support", "transductive")
MEMORY = ("auto", "unroll", "adjoint")


class UntreatableError(UsageError):
    """A model that an engine cannot treat exactly; arguments: the engine's name, the reason."""

    def __str__(self) -> str:
        engine, reason = self.args
        return f"engine {engine!r} {reason}: use engine='loop' or 'auto'"

    @property
    def note(self) -> str:
        """The reason without advice, for a record."""
        return " ".join(self.args)


class NoGradientError(UsageError):
    """A loss that depends on no parameter."""


class InnerLoop:
    """The settings of the inner loop.

    :param model: the network; its `nn.BatchNorm` layers are converted in place (see `convert_batch_norm`).
    :param criterion: the loss of both loops: (N, *output), (N, *target) -> mean over the N points.
    :param inner_lr: α, the step size of the inner gradient steps.
    :param inner_steps: number of inner gradient steps on the same support set.
    :param second_order: differentiate through the inner gradients (the meta-gradient); False: treat them as constants
        (first-order MAML).
    :param adapted: "all" parameters, those of the "last_layer", or names.
    :param batch_norm: whose statistics normalise the query: the "support" set's, or its own ("transductive").
    :param inner_clip: c: every entry of an inner gradient is cut to [-c, c], in the update procedure too, as in the
        authors' code; the meta-gradient is that of the clipped steps. None: as they are.
    :param memory: "unroll" keeps the graph of every inner step, "adjoint" only the weights before each (see `steps`);
        "auto" unrolls as long as the graph is estimated to fit `memory_budget`.
    :param memory_budget: in bytes.
    """

    name = ""
    memories: tuple[str, ...] = ("unroll", "adjoint")  # "auto" may take the first
    by_autograd = True  # whether, unrolled, autograd differentiates in whatever the losses depend on
    takes_each = False
    adapts_by_itself = False  # whether `adapt` computes otherwise than by the model

    def __init__(
        self,
        model: nn.Module,
        criterion: Criterion,
        *,
        inner_lr: float,
        inner_steps: int,
        second_order: bool = True,
        adapted: Literal["all", "last_layer"] | Iterable[str] = "all",
        batch_norm: Literal["support", "transductive"] = "support",
        inner_clip: float | None = None,
        memory: Literal["auto", "unroll", "adjoint"] = "auto",
        memory_budget: int = 2**31,
    ) -> None:
        at_least(0, inner_steps=inner_steps)
        above_zero(inner_lr=inner_lr)
        if not is_flag(second_order):
            raise UsageError(f"second_order={shown(second_order)}: expected True or False")
        if inner_clip is not None and not inner_clip > 0:
            raise UsageError(f"inner_clip={inner_clip}: expected None or a number above 0")
        if batch_norm not in BATCH_NORM_RULES:
            raise unknown("batch norm rule of a strategy that adapts", batch_norm, BATCH_NORM_RULES)
        if memory not in MEMORY:
            raise unknown("memory", memory, MEMORY)
        if memory != "auto" and memory not in self.memories:
            raise UntreatableError(self.name, f"takes memory={self.memories[0]!r} only, not {memory!r}")
        refuse_untreatable_layers(model)
        refuse_parameter_hooks(model)
        refuse_overlapping_parameters(model)
        self.model = convert_batch_norm(model)
        self.graphs = Graphs()
        self.criterion = criterion
        self.inner_lr = inner_lr
        self.inner_steps = inner_steps
        self.second_order = second_order
        self.adapted = adapted_names(self.model, adapted)
        self.inner_clip = inner_clip
        if inner_clip is not None and any(p.is_complex() for p in self.model.parameters()):
            raise UsageError("inner_clip: complex parameters have no entries that could be cut to an interval")
        self.changes_inputs = False  # whether the model writes into its inputs: each call gets a copy then
        self.unused: frozenset[str] = frozenset()  # parameters that no output depends on, as far as a trial has shown
        self.criterion_sees_weights = False  # whether the criterion looks at them, beside outputs: a penalty, for one
        self.adapted_weights: list[dict[str, Tensor]] | None = None  # see `Engine.adapted_weights`; None: not kept
        self.trains_others = False  # whether losses depend on tensors to be trained that are no parameters of the model
        self.memory = memory if len(self.memories) > 1 else self.memories[0]
        self.memory_budget = memory_budget
        self.chosen_memory = self.memories[0] if memory == "auto" else memory
        self.memory_note = ""
        self._step_bytes: dict[torch.Size, int] = {}
        # Without norm layers the support rows would ride along in the query's forward pass for nothing.
        self.query_needs_support = batch_norm == "support" and has_norm(self.model)

    def __repr__(self) -> str:
        order = "second order" if self.second_order else "first order"
        adapted = sum(dict(self.model.named_parameters())[name].numel() for name in self.adapted)
        steps = f"{self.inner_steps} inner steps of {self.inner_lr:g}, {order}"
        return f"<engine {self.name} for {type(self.model).__name__}: {steps}, {adapted:,} parameters adapted>"

    @property
    def chosen(self) -> dict[str, str]:
        """See `Engine.chosen`."""
        notes = [note for note in (self.memory_note, self.graphs.note) if note]
        chosen = {"engine": self.name, "engine_memory": self.chosen_memory}
        return chosen | ({"engine_note": "; ".join(notes)} if notes else {})

    @property
    def moments(self) -> dict[str, Moments] | None:
        """See `Engine.moments`."""
        return None

    def predict(
        self,
        parameters: Parameters,
        support: tuple[Input, Tensor],
        query_x: Input,
        *,
        rule: InnerRule = PLAIN,
        every_step: bool = False,
    ) -> Tensor:
        """See `Engine.predict`."""
        raise NotImplementedError

    def choose_memory(self, parameters: Parameters, support: tuple[Tensor, Tensor]) -> str:
        """See `Engine.choose_memory`."""
        raise UntreatableError(self.name, "starts all tasks from the same parameters")

    def predict_each(
        self, parameters: Parameters, support: tuple[Tensor, Tensor], query_x: Tensor, memory: str
    ) -> Tensor:
        """See `Engine.predict_each`."""
        raise UntreatableError(self.name, "starts all tasks from the same parameters")

    def outputs(self, parameters: Parameters, x: Tensor) -> Tensor:
        """See `NativeEngine.outputs`."""
        raise UntreatableError(self.name, "leaves plain passes to the model")

    def adapt(
        self, parameters: Parameters, x: Input, y: Tensor, steps: int, *, rule: InnerRule = PLAIN
    ) -> dict[str, Tensor]:
        """See `Engine.adapt`."""
        beside = rule.tensors(parameters, self.adapted)
        return update_procedure(
            self.model,
            parameters,
            self.criterion,
            x,
            y,
            steps=steps,
            optimizer=lambda ps: rule.descent(ps, beside, self.adapted, self.inner_lr),
            adapted=self.adapted,
            clip=self.inner_clip,
            penalised=rule.penalty_on(beside, self.adapted),
        )

    def adapt_each(
        self, parameters: Parameters, x: Tensor, y: Tensor, steps: int, *, rule: InnerRule = PLAIN
    ) -> list[dict[str, Tensor]]:
        """See `Engine.adapt_each`."""
        return [self.adapt(parameters, *task, steps, rule=rule) for task in zip(x, y, strict=True)]

    def _exactly(self) -> AbstractContextManager[None]:
        return twice_differentiable(self.model) if self.second_order else nullcontext()

    def _own(self, x: Tensor) -> Tensor:
        """Inputs that a call of the model may do with as it likes."""
        return x.clone() if self.changes_inputs else x

    def _clipped(self, gradients: Iterable[Tensor]) -> list[Tensor]:
        """Inner gradients, each entry cut to [-inner_clip, inner_clip]; differentiable."""
        if self.inner_clip is None:
            return list(gradients)
        return [self._dense(g).clamp(-self.inner_clip, self.inner_clip) for g in gradients]

    def _dense(self, gradient: Tensor) -> Tensor:
        """A gradient that can be clipped: an embedding's may be sparse."""
        if not gradient.is_sparse:
            return gradient
        if gradient.requires_grad:  # PyTorch cannot go back through it
            raise UntreatableError(
                self.name, "with inner_clip takes no derivative of sparse gradients, as of nn.Embedding(sparse=True)"
            )
        return gradient.to_dense()

    def _support_loss(self, call: Callable[[Tensor], Tensor], x: Tensor, y: Tensor) -> Tensor:
        with batch_statistics(), self._exactly():
            return scalar(self.criterion(call(self._own(x)), y))

    def _query_outputs(self, call: Callable[[Tensor], Tensor], support_x: Tensor, query_x: Tensor) -> Tensor:
        if not self.query_needs_support:
            with batch_statistics(), self._exactly():
                return call(self._own(query_x))
        with batch_statistics(first=len(support_x)), self._exactly():
            return call(torch.cat([support_x, query_x]))[len(support_x) :]


def without_labels(engine: str, *inputs: Input) -> list[Tensor]:
    """The inputs, for an engine that passes no task labels.

    :raises UntreatableError: if there are any.
    """
    tensors = [x for x in inputs if isinstance(x, Tensor)]
    if len(tensors) < len(inputs):
        raise UntreatableError(engine, "passes no task labels")
    return tensors


def scalar(loss: Tensor) -> Tensor:
    """The loss, if it is one number.

    :raises UsageError: if it is not: the gradient of which number should be followed?
    """
    if loss.numel() != 1:
        raise UsageError(f"the criterion gives a tensor of shape {tuple(loss.shape)}: expected one number, the mean")
    return loss


def adapted_names(model: nn.Module, adapted: str | Iterable[str]) -> list[str]:
    """The names of the parameters that the inner loop changes, in the model's order; frozen ones never are."""
    trainable = [name for name, p in model.named_parameters() if p.requires_grad]
    if not trainable:
        raise UsageError(f"no parameter of {type(model).__name__} asks for a gradient: there is nothing to adapt")
    if adapted == "all":
        return trainable
    if adapted == "last_layer":
        last = layer_of(trainable[-1])
        return [name for name in trainable if layer_of(name) == last]
    if isinstance(adapted, str):
        raise unknown("value of adapted", adapted, ["all", "last_layer"])
    wanted = names_in(adapted)
    if not wanted:
        raise UsageError("adapted=[]: expected 'all', 'last_layer' or names of parameters")
    for name in wanted:
        if name not in trainable:
            raise unknown("parameter in adapted", name, trainable)
    return [name for name in trainable if name in wanted]


def names_in(adapted: Iterable[str]) -> list[str]:
    """The names of parameters that are to be adapted.

    :raises UsageError: for what holds none.
    """
    if not isinstance(adapted, Iterable):
        raise UsageError(f"adapted={shown(adapted)}: expected 'all', 'last_layer' or names of parameters")
    return list(adapted)


def layer_of(name: str) -> str:
    """The layer that a parameter is of; what a parametrisation is made of is the layer's that it stands in."""
    return name.partition(".parametrizations.")[0] if ".parametrizations." in name else name.rpartition(".")[0]


def update_procedure(
    model: nn.Module,
    parameters: Parameters,
    criterion: Criterion,
    x: Input,
    y: Tensor,
    *,
    steps: int,
    optimizer: Callable[[list[Tensor]], torch.optim.Optimizer],
    adapted: list[str],
    clip: float | None = None,
    penalised: Callable[[Tensor, list[Tensor]], Tensor] | None = None,
    outputs: Outputs | None = None,
) -> dict[str, Tensor]:
    """`steps` full-batch optimiser steps on (x, y) from a copy of `parameters`, norms by the batch's own statistics.

    Neither `model`, nor `parameters`, nor any buffer changes, and no `.grad` of any tensor.

    :param model: that the criterion looks at if it looks at one, as a penalty on weights does: not a copy of it.
    :param x: (N, *input), y: (N, *target); x with its task labels, (N,), if the model takes them.
    :param optimizer: builds the optimiser for the adapted copies.
    :param clip: every entry of a gradient is cut to [-clip, clip]; None: as it is.
    :param penalised: of a loss and the adapted weights: the loss of a step. None: as it is.
    :param outputs: of the model for x at given parameters, where something else than the model computes them; None is
        left to the model.
    :return: the adapted copy by name, detached.
    :raises UsageError: for parameters that the model leaves out in evaluation mode alone; `NoGradientError` if the loss
        depends on no parameter.
    """
    copy = {name: p.detach().clone() for name, p in parameters.items()}
    leaves = [copy[name].requires_grad_() for name in adapted]
    step = optimizer(leaves)
    inputs = x if isinstance(x, tuple) else (x,)
    held = copy | {name: buffer.clone() for name, buffer in model.named_buffers()}

    def derive() -> None:
        torch.clear_autocast_cache()  # else a surrounding autocast would go on with the weights of the first step
        # a model may write into what it is given
        predicted = None if outputs is None else outputs(copy)
        if predicted is None:
            predicted = model(*(part.clone() for part in inputs))
        loss = scalar(criterion(predicted, y))
        if not loss.requires_grad:
            raise NoGradientError(f"the loss of {type(model).__name__} does not depend on its parameters")
        if penalised is not None:
            loss = penalised(loss, leaves)
        with gradients_kept(leaves_of(loss), but=leaves):
            # without `inputs`, by which a checkpoint that enters autograd anew would silently be left out
            loss.backward()

    def procedure() -> None:
        for _ in range(steps):
            step.zero_grad()
            derive()
            if clip is not None:
                for leaf in leaves:
                    if leaf.grad is not None:
                        leaf.grad = leaf.grad.to_dense().clamp(-clip, clip)
            step.step()

    with torch.enable_grad(), batch_statistics():
        while_holding(model, held, procedure)
    missing = [name for name, leaf in zip(adapted, leaves, strict=True) if leaf.grad is None]
    refuse_what_evaluations_leave_out(model, missing, inputs)
    return {name: p.detach() for name, p in copy.items()}
