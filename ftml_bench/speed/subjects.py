"""What is timed: the networks of the paper with random data, and their meta-gradient by every engine."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from ftml_bench.adaptation import make_engine
from ftml_bench.errors import UsageError
from ftml_bench.models import PoseNet, RainbowNet, SinusoidMLP, TaskBatchNorm

TASKS, SUPPORT, QUERY, INNER_STEPS = 25, 10, 10, 5
Gradient = Callable[[], list[Tensor]]


@dataclass
class Subject:
    """A network, its loss, and a meta-batch: x (T, S + Q, *input), y (T, S + Q, *target), the first S are support."""

    model: nn.Module
    criterion: nn.Module
    x: Tensor
    y: Tensor
    inner_lr: float
    support: int = SUPPORT
    inner_steps: int = INNER_STEPS

    @property
    def has_norm(self) -> bool:
        """Whether the two rules of batch norm differ."""
        return any(isinstance(module, TaskBatchNorm) for module in self.model.modules())

    def to(self, device: str) -> Subject:
        """The same on a device; the model is moved in place."""
        return replace(self, model=self.model.to(device), x=self.x.to(device), y=self.y.to(device))

    def double(self) -> Subject:
        """The same in double precision; the model is changed in place."""
        y = self.y.double() if self.y.is_floating_point() else self.y
        return replace(self, model=self.model.double(), x=self.x.double(), y=y)

    def by_engine(self, name: str, *, graphs: bool = True, **settings: Any) -> Gradient:
        """The meta-gradient by an engine of the suite; `graphs`: by CUDA graphs, on a GPU."""
        engine = make_engine(
            name, self.model, self.criterion, inner_lr=self.inner_lr, inner_steps=self.inner_steps, **settings
        )
        parameters = dict(self.model.named_parameters())
        n = self.support
        support, query_x = (self.x[:, :n], self.y[:, :n]), self.x[:, n:]
        query_y = self.y[:, n:].flatten(0, 1)

        def gradient() -> list[Tensor]:
            with nullcontext() if graphs else engine.graphs.off():
                outputs = engine.predict(parameters, support, query_x)
            loss = self.criterion(outputs.flatten(0, 1), query_y)
            return list(torch.autograd.grad(loss, list(parameters.values())))

        return gradient

    def by_engines(self) -> dict[str, Gradient]:
        """By every engine; those named "own batch" normalise the query as other libraries alone do."""
        ways = {
            "batched": self.by_engine("batched", memory="unroll"),
            "batched, adjoint": self.by_engine("batched", memory="adjoint"),
            "vmap": self.by_engine("vmap"),
            "loop": self.by_engine("loop", memory="unroll"),
            "higher": self.by_engine("higher"),
        }
        if self.has_norm:
            ways["batched, own batch"] = self.by_engine("batched", memory="unroll", batch_norm="transductive")
        if self.x.is_cuda:
            return ways | {"batched, no CUDA graph": self.by_engine("batched", memory="unroll", graphs=False)}
        if has_native():
            ways = {"native": self.by_engine("native"), **ways}
            if self.has_norm:
                ways["native, own batch"] = self.by_engine("native", batch_norm="transductive")
        return ways


def has_native() -> bool:
    """Whether the engine `native` has been compiled."""
    try:
        make_engine("native", nn.Linear(1, 1), nn.MSELoss(), inner_lr=0.1, inner_steps=1)
    except UsageError:
        return False
    return True


def subject(
    name: str,
    tasks: int = TASKS,
    *,
    support: int = SUPPORT,
    query: int = QUERY,
    inner_steps: int = INNER_STEPS,
    side: int | None = None,
) -> Subject:
    """A subject by name, on random data.

    :param side: of its images in pixels; None: the usual one.
    """
    torch.manual_seed(0)  # the model comes first: it begins alike whatever the sizes of the data
    points = tasks, support + query
    if name == "SinusoidMLP":
        mlp = SinusoidMLP()
        x = 10 * torch.rand(*points, 1) - 5
        return Subject(mlp, nn.MSELoss(), x, x.sin(), 0.01, support, inner_steps)
    usual, classes = {"RainbowNet": (28, 10), "CIFAR network": (32, 5), "PoseNet": (64, 0)}[name]
    image = 3, side or usual, side or usual
    if name == "PoseNet":
        pose_net = PoseNet(image_size=image[1])
        x, y = torch.rand(*points, *image), torch.rand(*points, 4)
        return Subject(pose_net, nn.MSELoss(), x, y, 0.1, support, inner_steps)
    model = RainbowNet(image_size=image[1], classes=classes)
    x, y = torch.rand(*points, *image), torch.randint(classes, points)
    return Subject(model, nn.CrossEntropyLoss(label_smoothing=0.1), x, y, 0.1, support, inner_steps)


SUBJECTS = ("RainbowNet", "CIFAR network", "PoseNet", "SinusoidMLP")
