"""Batch normalisation in plain operations, with its statistics chosen by the caller.

Which statistics normalise a batch decides who wins on image streams, so it is said explicitly: a context around the
model's call is read by every norm layer below it, and the models themselves stay plain. Outside any context the layer
behaves as `nn.BatchNorm2d`. The rules have the names of Bronskill et al. 2020 (TaskNorm):

- *transductive*: the statistics of the batch at hand (`batch_statistics()`), as MAML code and the paper's authors do;
- *support* (MetaBN): the statistics of the task's training data. In a meta-step the support rides as the first rows
  of the query's forward pass (`batch_statistics(first=n)`); at evaluation they are recorded once in the adapted copy
  (`batch_statistics(keep="recorded")`), so that a prediction does not depend on its neighbours;
- *running*: as `nn.BatchNorm2d`, no context at all.

One more of a meta-learner: *own_query*, which is *transductive* in a meta-step and *support* at evaluation.

Plain mean and variance operations are differentiable to any order under every transform of PyTorch; the stock layers
give silently wrong second-order gradients under `torch.func.vmap`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ftml_bench.errors import UsageError


@dataclass(frozen=True)
class _Statistics:
    first: int | None
    groups: int
    keep: Literal["nothing", "running", "recorded"]


_statistics: ContextVar[_Statistics | None] = ContextVar("batch_statistics", default=None)


@contextmanager
def batch_statistics(
    *, first: int | None = None, groups: int = 1, keep: Literal["nothing", "running", "recorded"] = "nothing"
) -> Iterator[None]:
    """Inside, every norm layer normalises by statistics of the batch at hand, in training and evaluation mode alike.

    :param first: take the statistics from the first `first` rows (of each group) only; None: from all rows.
    :param groups: the batch consists of so many equal groups of consecutive rows, each normalised by itself.
    :param keep: what becomes of the statistics: "nothing"; "running": they update the running statistics as in
        `nn.BatchNorm2d`, averaged over groups; "recorded": they become the running statistics, so that evaluation
        mode afterwards normalises any batch exactly as this one.
    """
    token = _statistics.set(_Statistics(first, groups, keep))
    try:
        yield
    finally:
        _statistics.reset(token)


def normalise(rows: Tensor, source: Tensor, dims: list[int], eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """`rows` normalised by the mean and (biased) variance of `source` over `dims`; and that mean and variance."""
    var, mean = torch.var_mean(source, dims, correction=0, keepdim=True)
    return (rows - mean) * torch.rsqrt(var + eps), mean, var


# Of all three kinds: what asks for one of them, as models' own code does, finds a converted layer too.
class TaskBatchNorm(nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d):
    """Batch normalisation of (N, C) or (N, C, ...) inputs over all but the channels.

    Parameters, buffers and state dict are those of `nn.BatchNorm2d`; see the module's text for whose statistics count.
    """

    frozen = False  # whether its own running statistics count, whatever the context says; see `note_frozen`

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() < 2:
            raise ValueError(f"expected an input of shape (N, C, ...), got {tuple(input.shape)}")
        if input.shape[1] != self.num_features:  # one channel would be spread over all
            raise ValueError(f"expected {self.num_features} channels, got an input of shape {tuple(input.shape)}")

    def forward(self, input: Tensor) -> Tensor:
        self._check_input_dim(input)
        statistics = _statistics.get()
        if statistics is None or self.frozen:
            if (self.frozen or not self.training) and self.running_mean is not None:
                return self._affine((input - self._channels(self.running_mean, input)) * self._scale(input))
            statistics = _Statistics(None, 1, "running" if self.training else "nothing")
        rows = input.unflatten(0, (statistics.groups, -1))  # (groups, N / groups, C, ...)
        source = rows[:, : statistics.first]
        dims = [1, *range(3, rows.dim())]
        rows, mean, var = normalise(rows, source, dims, self.eps)
        if statistics.keep != "nothing" and self.running_mean is not None:
            self._keep(statistics.keep, mean, var, source.numel() // mean.numel())
        return self._affine(rows.flatten(0, 1))

    @torch.no_grad()
    def _keep(self, keep: str, mean: Tensor, var: Tensor, count: int) -> None:
        """Update the running statistics; mean, var: (groups, 1, C, 1...); count: values that each was taken from.

        :raises UsageError: in training, of one value: outputs would be the same for whatever input.
        """
        if keep == "running" and count == 1:
            raise UsageError(
                "a batch norm of one value a channel, by which nothing below it would be trained: expected two or more "
                "points of a task in training (support_size, group_size, or train_mb_size)"
            )
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        self.num_batches_tracked += 1
        rate = self.momentum if self.momentum is not None else 1 / float(self.num_batches_tracked)
        if keep == "recorded":
            rate = 1.0
        else:  # as the stock layer: normalise by the biased variance, remember the unbiased one
            var = var * (count / max(count - 1, 1))
        self.running_mean.lerp_(mean.mean(0).flatten().to(self.running_mean.dtype), rate)
        self.running_var.lerp_(var.mean(0).flatten().to(self.running_var.dtype), rate)

    def _affine(self, x: Tensor) -> Tensor:
        if self.weight is not None:
            x = x * self._channels(self.weight, x)
        return x if self.bias is None else x + self._channels(self.bias, x)

    def _scale(self, x: Tensor) -> Tensor:
        assert self.running_var is not None
        return self._channels(torch.rsqrt(self.running_var + self.eps), x)

    @staticmethod
    def _channels(values: Tensor, x: Tensor) -> Tensor:
        """`values` (C,) shaped to broadcast over x (N, C, ...)."""
        return values.view(-1, *[1] * (x.dim() - 2))


class Moments(NamedTuple):
    """What a norm layer normalised groups of rows by: mean and biased variance, (groups, C), of `number` values."""

    mean: Tensor
    var: Tensor
    number: int


def keep_running(model: nn.Module, moments: Mapping[str, Moments]) -> None:
    """Update running statistics, as passes under `batch_statistics(keep="running")` do, by moments of layers."""
    for name, of_layer in moments.items():
        layer = model.get_submodule(name)
        assert isinstance(layer, TaskBatchNorm)
        if layer.running_mean is not None:
            layer._keep("running", *of_layer)


def note_frozen(model: nn.Module) -> None:
    """Freeze the norm layers that are in evaluation mode while `model` trains, as frozen backbones have them.

    Their own running statistics normalise in training, adaptation and evaluation, and stay as they are. A layer that
    was built without (`track_running_stats=False`) has none of its own. To be called in training.
    """
    for module in model.modules():
        if isinstance(module, TaskBatchNorm):
            frozen = not module.training and module.track_running_stats
            if module.frozen != frozen:
                module.frozen = frozen


def find_frozen(model: nn.Module) -> None:
    """As `note_frozen`, of a model that need not train: its `train` says what stays in evaluation mode."""
    modes = [(module, module.training) for module in model.modules()]
    model.train()
    note_frozen(model)
    for module, training in modes:
        module.training = training


def has_norm(model: nn.Module) -> bool:
    """Whether any layer of the model normalises by batch statistics."""
    return any(isinstance(module, _BatchNorm) for module in model.modules())


CONVERTED = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def convert_batch_norm(model: nn.Module) -> nn.Module:
    """Make every `nn.BatchNorm1d/2d/3d` of `model` a `TaskBatchNorm`, in place; classes of others are not touched.

    The layers are the same objects afterwards, with their parameters, buffers and hooks: an optimiser that holds them
    goes on working.

    :return: `model`.
    """
    for module in model.modules():
        if type(module) in CONVERTED:
            module.__class__ = TaskBatchNorm
    return model


def give_running_statistics(model: nn.Module) -> None:
    """Let every norm layer of `model` that keeps no running statistics keep them, as a new stock layer would.

    Without them (`track_running_stats=False`) there is nothing that a prediction could be normalised by but its own
    batch. A layer that has them is left alone.
    """
    like = next((p for p in model.parameters() if p.is_floating_point()), torch.empty(0))
    for module in model.modules():
        if isinstance(module, TaskBatchNorm) and module.running_mean is None:
            module.running_mean = like.new_zeros(module.num_features)
            module.running_var = like.new_ones(module.num_features)
            module.num_batches_tracked = torch.zeros((), dtype=torch.long, device=like.device)
