"""Meta-gradients by other libraries alone, each as its own documentation shows it, on stock layers.

All normalise the query by its own batch. None but `higher` has to be installed; what is missing is said.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec

import higher
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from ftml_bench.models import TaskBatchNorm
from ftml_bench.speed.subjects import Subject

# The meta-gradient for x (T, S + Q, *input) and y (T, S + Q, *target), with the settings of a subject.
MetaGradient = Callable[[Tensor, Tensor], list[Tensor]]
Weights = dict[str, Tensor]

ALONE = "higher alone"


@dataclass(frozen=True)
class Peer:
    """Another library.

    :param package: what has to be installed, as it is imported.
    :param build: its meta-gradient.
    :param on: the subjects that it is timed on; None: all.
    :param compiles: whether its first call compiles, which takes so long that it is built once a network.
    :param in_double: whether it is compared in double precision; otherwise in single, as it is timed.
    """

    package: str
    build: Callable[[Subject], MetaGradient]
    on: tuple[str, ...] | None = None
    compiles: bool = False
    in_double: bool = True


def higher_alone(subject: Subject) -> MetaGradient:
    """`higher`, as its documentation shows it."""
    model = with_stock_norms(subject.model)
    optimizer = torch.optim.SGD(model.parameters(), lr=subject.inner_lr)
    n, criterion = subject.support, subject.criterion

    def gradient(xs: Tensor, ys: Tensor) -> list[Tensor]:
        model.zero_grad()
        for x, y in zip(xs, ys, strict=True):
            with higher.innerloop_ctx(model, optimizer, copy_initial_weights=False) as (functional, inner):
                for _ in range(subject.inner_steps):
                    inner.step(criterion(functional(x[:n]), y[:n]))
                (criterion(functional(x[n:]), y[n:]) / len(xs)).backward()
        return gradients_of(model)

    return gradient


def torchopt_alone(subject: Subject) -> MetaGradient:
    """TorchOpt's differentiable SGD, as its documentation shows it."""
    import torchopt

    model = with_stock_norms(subject.model)
    optimizer = torchopt.MetaSGD(model, lr=subject.inner_lr)
    n, criterion = subject.support, subject.criterion

    def gradient(xs: Tensor, ys: Tensor) -> list[Tensor]:
        parameters = list(model.parameters())
        start = torchopt.extract_state_dict(model, by="reference", detach_buffers=True)
        state = torchopt.extract_state_dict(optimizer, by="reference")
        for p in parameters:
            p.grad = None
        for x, y in zip(xs, ys, strict=True):
            for _ in range(subject.inner_steps):
                optimizer.step(criterion(model(x[:n]), y[:n]))
            (criterion(model(x[n:]), y[n:]) / len(xs)).backward()
            torchopt.recover_state_dict(model, start)
            torchopt.recover_state_dict(optimizer, state)
        return [p.grad for p in parameters if p.grad is not None]

    return gradient


def learn2learn_alone(subject: Subject) -> MetaGradient:
    """learn2learn's MAML, as its documentation shows it."""
    import learn2learn

    maml = learn2learn.algorithms.MAML(with_stock_norms(subject.model), lr=subject.inner_lr)
    n, criterion = subject.support, subject.criterion

    def gradient(xs: Tensor, ys: Tensor) -> list[Tensor]:
        maml.zero_grad()
        for x, y in zip(xs, ys, strict=True):
            learner = maml.clone()
            for _ in range(subject.inner_steps):
                learner.adapt(criterion(learner(x[:n]), y[:n]))
            (criterion(learner(x[n:]), y[n:]) / len(xs)).backward()
        return gradients_of(maml)

    return gradient


def torch_func(subject: Subject) -> MetaGradient:
    """`torch.func`: `vmap` over tasks of `grad` of what its tutorial has a task do."""
    model, loss = _functional(subject)
    n, parameters = subject.support, _weights(model)

    def adapted_loss(weights: Weights, x: Tensor, y: Tensor) -> Tensor:
        for _ in range(subject.inner_steps):
            gradients = grad(loss)(weights, x[:n], y[:n])
            weights = {name: w - subject.inner_lr * gradients[name] for name, w in weights.items()}
        return loss(weights, x[n:], y[n:])

    def gradient(xs: Tensor, ys: Tensor) -> list[Tensor]:
        gradients = vmap(grad(adapted_loss), (None, 0, 0))(parameters, xs, ys)
        return [g.mean(0) for g in gradients.values()]

    return gradient


def torch_compile(subject: Subject) -> MetaGradient:
    """`torch.compile` of the two parts of a task's meta-gradient: a gradient, and a Hessian product on the way back.

    The whole, five steps and their derivative in one graph, was not compiled after six minutes.
    """
    model, loss = _functional(subject)
    n, lr, parameters = subject.support, subject.inner_lr, _weights(model)

    def product(weights: Weights, x: Tensor, y: Tensor, vector: Weights) -> Weights:
        def along(weights: Weights) -> Tensor:
            return torch.stack([(g * vector[name]).sum() for name, g in grad(loss)(weights, x, y).items()]).sum()

        return grad(along)(weights)

    first, second = (torch.compile(function, dynamic=False) for function in (grad(loss), product))

    def of_task(x: Tensor, y: Tensor) -> Weights:
        weights, steps = parameters, []
        for _ in range(subject.inner_steps):
            steps.append(weights)
            gradients = first(weights, x[:n], y[:n])
            weights = {name: w - lr * gradients[name] for name, w in weights.items()}
        vector = first(weights, x[n:], y[n:])
        for weights in reversed(steps):
            products = product_of(weights, x, y, vector)
            vector = {name: v - lr * products[name] for name, v in vector.items()}
        return vector

    def product_of(weights: Weights, x: Tensor, y: Tensor, vector: Weights) -> Weights:
        return second(weights, x[:n], y[:n], vector)

    def gradient(xs: Tensor, ys: Tensor) -> list[Tensor]:
        tasks = [of_task(x, y) for x, y in zip(xs, ys, strict=True)]
        return [torch.stack([task[name] for task in tasks]).mean(0) for name in parameters]

    return gradient


def jax_alone(subject: Subject) -> MetaGradient:
    """JAX, a task's gradient compiled; see `ftml_bench.speed.jax_peer`."""
    from ftml_bench.speed.jax_peer import meta_gradient

    return meta_gradient(subject)


PEERS = {
    ALONE: Peer("higher", higher_alone),
    "TorchOpt alone": Peer("torchopt", torchopt_alone),
    "learn2learn alone": Peer("learn2learn", learn2learn_alone),
    "torch.func, vmap(grad)": Peer("torch", torch_func),
    "JAX alone": Peer("jax", jax_alone, compiles=True),
    "torch.compile": Peer("torch", torch_compile, on=("RainbowNet", "SinusoidMLP"), compiles=True, in_double=False),
}


def peers_of(name: str, subject: Subject, *, compiled: bool = True) -> tuple[dict[str, MetaGradient], list[str]]:
    """The peers that can be had for a subject, and a line for each that cannot.

    :param name: of the subject.
    :param compiled: whether those that compile are wanted.
    """
    found, missing = {}, []
    for title, peer in PEERS.items():
        if peer.compiles and not compiled:
            continue
        if find_spec(peer.package) is None:
            missing.append(f"{title}: {peer.package} is not installed.")
        elif peer.on is not None and name not in peer.on:
            missing.append(f"{title}: takes minutes to compile, timed with {' and '.join(peer.on)} only.")
        else:
            try:
                found[title] = peer.build(subject)
            except Exception as error:  # somebody else's library may fail in any way
                missing.append(f"{title}: {in_a_line(error)}")
    return found, missing


def in_a_line(error: Exception) -> str:
    """An error as one line of at most 150 characters."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:150]


def gradients_of(model: nn.Module) -> list[Tensor]:
    """What a backward pass has left, copied: the next one may write into it."""
    return [p.grad.clone() for p in model.parameters() if p.grad is not None]


def _functional(subject: Subject) -> tuple[nn.Module, Callable[[Weights, Tensor, Tensor], Tensor]]:
    """A stock model whose norms keep nothing, as `torch.func` needs it, and its loss as a function of weights."""
    model = with_stock_norms(subject.model)
    for module in model.modules():
        if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
            module.track_running_stats = False
            module.running_mean = module.running_var = module.num_batches_tracked = None

    def loss(weights: Weights, x: Tensor, y: Tensor) -> Tensor:
        return subject.criterion(functional_call(model, weights, (x,)), y)

    return model, loss


def _weights(model: nn.Module) -> Weights:
    return {name: p.detach() for name, p in model.named_parameters()}


def with_stock_norms(model: nn.Module) -> nn.Module:
    """The same stack with the norm layers of PyTorch, and the same first parameters."""
    stock = {"norm": nn.BatchNorm2d, "linear_norm": nn.BatchNorm1d}

    def of(name: str, layer: nn.Module) -> nn.Module:
        if not isinstance(layer, TaskBatchNorm):
            return layer
        weight = layer.weight
        return stock[name.rstrip("0123456789")](layer.num_features, device=weight.device, dtype=weight.dtype)

    layers = [of(name, layer) for name, layer in model.named_children()]
    return nn.Sequential(*layers)
