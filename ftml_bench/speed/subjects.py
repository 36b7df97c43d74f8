"""What is timed: the networks of the paper with random data, and every way to their meta-gradient."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from importlib.util import find_spec
from typing import Any

import higher
import torch
from torch import Tensor, nn

from ftml_bench.adaptation import make_engine
from ftml_bench.models import PoseNet, RainbowNet, SinusoidMLP, TaskBatchNorm

TASKS, SUPPORT, QUERY, INNER_STEPS = 25, 10, 10, 5
Gradient = Callable[[], list[Tensor]]
ALONE = "higher alone"


@dataclass
class Subject:
    """A network, its loss, and a meta-batch: x (T, S + Q, *input), y (T, S + Q, *target), the first S are support."""

    model: nn.Module
    criterion: nn.Module
    x: Tensor
    y: Tensor
    inner_lr: float

    @property
    def has_norm(self) -> bool:
        """Whether the two rules of batch norm differ."""
        return any(isinstance(module, TaskBatchNorm) for module in self.model.modules())

    def to(self, device: str) -> Subject:
        """The same on a device; the model is moved in place."""
        return replace(self, model=self.model.to(device), x=self.x.to(device), y=self.y.to(device))

    def by_engine(self, name: str, *, inner_steps: int = INNER_STEPS, graphs: bool = True, **settings: Any) -> Gradient:
        """The meta-gradient by an engine of the suite; `graphs`: by CUDA graphs, on a GPU."""
        engine = make_engine(
            name, self.model, self.criterion, inner_lr=self.inner_lr, inner_steps=inner_steps, **settings
        )
        parameters = dict(self.model.named_parameters())
        support, query_x = (self.x[:, :SUPPORT], self.y[:, :SUPPORT]), self.x[:, SUPPORT:]
        query_y = self.y[:, SUPPORT:].flatten(0, 1)

        def gradient() -> list[Tensor]:
            with nullcontext() if graphs else engine.graphs.off():
                outputs = engine.predict(parameters, support, query_x)
            loss = self.criterion(outputs.flatten(0, 1), query_y)
            return list(torch.autograd.grad(loss, list(parameters.values())))

        return gradient

    def higher_alone(self, *, inner_steps: int = INNER_STEPS) -> Gradient:
        """`higher` as its documentation shows it, on stock layers: the query is normalised by its own batch."""
        model = _with_stock_norms(self.model)
        optimizer = torch.optim.SGD(model.parameters(), lr=self.inner_lr)

        def gradient() -> list[Tensor]:
            model.zero_grad()
            for x, y in zip(self.x, self.y, strict=True):
                with higher.innerloop_ctx(model, optimizer, copy_initial_weights=False) as (functional, inner):
                    for _ in range(inner_steps):
                        inner.step(self.criterion(functional(x[:SUPPORT]), y[:SUPPORT]))
                    (self.criterion(functional(x[SUPPORT:]), y[SUPPORT:]) / len(self.x)).backward()
            return [p.grad for p in model.parameters() if p.grad is not None]

        return gradient

    def torchopt_alone(self) -> Gradient:
        """TorchOpt's differentiable SGD as its documentation shows it, on stock layers."""
        import torchopt

        model = _with_stock_norms(self.model)
        optimizer = torchopt.MetaSGD(model, lr=self.inner_lr)

        def gradient() -> list[Tensor]:
            parameters = list(model.parameters())
            start = torchopt.extract_state_dict(model, by="reference", detach_buffers=True)
            state = torchopt.extract_state_dict(optimizer, by="reference")
            for p in parameters:
                p.grad = None
            for x, y in zip(self.x, self.y, strict=True):
                for _ in range(INNER_STEPS):
                    optimizer.step(self.criterion(model(x[:SUPPORT]), y[:SUPPORT]))
                (self.criterion(model(x[SUPPORT:]), y[SUPPORT:]) / len(self.x)).backward()
                torchopt.recover_state_dict(model, start)
                torchopt.recover_state_dict(optimizer, state)
            return [p.grad for p in parameters if p.grad is not None]

        return gradient

    def all(self) -> dict[str, Gradient]:
        """Every way; those named "own batch" normalise the query as the libraries alone do."""
        ways = {
            ALONE: self.higher_alone(),
            "batched": self.by_engine("batched", memory="unroll"),
            "batched, adjoint": self.by_engine("batched", memory="adjoint"),
            "vmap": self.by_engine("vmap"),
            "loop": self.by_engine("loop", memory="unroll"),
            "higher": self.by_engine("higher"),
        }
        if self.x.is_cuda:
            ways["batched, no CUDA graph"] = self.by_engine("batched", memory="unroll", graphs=False)
        if self.has_norm:
            ways["batched, own batch"] = self.by_engine("batched", memory="unroll", batch_norm="transductive")
        if find_spec("torchopt") is not None:
            ways["TorchOpt alone"] = self.torchopt_alone()
        return ways


def subject(name: str, tasks: int = TASKS) -> Subject:
    """A subject by name, on random data."""
    torch.manual_seed(0)
    smoothed = nn.CrossEntropyLoss(label_smoothing=0.1)
    if name == "SinusoidMLP":
        x = 10 * torch.rand(tasks, SUPPORT + QUERY, 1) - 5
        return Subject(SinusoidMLP(), nn.MSELoss(), x, x.sin(), 0.01)
    if name == "PoseNet":
        x, y = torch.rand(tasks, SUPPORT + QUERY, 3, 64, 64), torch.rand(tasks, SUPPORT + QUERY, 4)
        return Subject(PoseNet(), nn.MSELoss(), x, y, 0.1)
    size, classes = {"RainbowNet": (28, 10), "CIFAR network": (32, 5)}[name]
    x, y = torch.rand(tasks, SUPPORT + QUERY, 3, size, size), torch.randint(classes, (tasks, SUPPORT + QUERY))
    return Subject(RainbowNet(image_size=size, classes=classes), smoothed, x, y, 0.1)


SUBJECTS = ("RainbowNet", "CIFAR network", "PoseNet", "SinusoidMLP")


def _with_stock_norms(model: nn.Module) -> nn.Module:
    """The same stack with the norm layers of PyTorch, and the same first parameters."""
    stock = {"norm": nn.BatchNorm2d, "linear_norm": nn.BatchNorm1d}

    def of(name: str, layer: nn.Module) -> nn.Module:
        if not isinstance(layer, TaskBatchNorm):
            return layer
        weight = layer.weight
        return stock[name.rstrip("0123456789")](layer.num_features, device=weight.device, dtype=weight.dtype)

    layers = [of(name, layer) for name, layer in model.named_children()]
    return nn.Sequential(*layers)


def check_agreement(name: str, device: str = "cpu") -> None:
    """Raise if a gradient of a network differs from that of `higher` under the same rule.

    In double precision and of a few tasks: in single precision one ReLU that rounding turns may change it by a tenth.
    """
    it = subject(name, tasks=3).to(device)
    it.model.double()
    it.x = it.x.double()
    it.y = it.y.double() if it.y.is_floating_point() else it.y
    ways = it.all()
    vectors = {way: torch.cat([g.flatten() for g in gradient()]) for way, gradient in ways.items()}
    for way, vector in vectors.items():
        by_own_batch = "alone" in way or "own batch" in way
        reference = vectors[ALONE if by_own_batch else "higher"]
        distance = float((vector - reference).norm() / reference.norm())
        if not distance <= 1e-9:
            raise RuntimeError(f"{name}: the gradient of {way!r} differs from that of higher by {distance:.1e}")
