"""How fast the engines are: meta-gradients of every engine, interleaved in one process, as ratios to `higher`.

CPU time of the process, so that other work on the machine disturbs little. Before anything is timed all gradients are
compared; an engine that computed another gradient would be worth nothing.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import higher
import torch
from torch import Tensor, nn

from ftml_bench.adaptation import ENGINES, make_engine
from ftml_bench.models import RainbowNet, SinusoidMLP, TaskBatchNorm

TASKS, SUPPORT, QUERY, INNER_STEPS = 25, 10, 10, 5
Gradient = Callable[[], list[Tensor]]


def report(*, repeats: int, threads: int) -> str:
    """Time every engine on the paper's network and on the sinusoid MLP; a table as text.

    :param repeats: interleaved rounds, after one that is not counted.
    """
    torch.set_num_threads(threads)
    lines = [
        f"meta-gradients, second order: {TASKS} tasks of {SUPPORT} support + {QUERY} query points, {INNER_STEPS} inner "
        f"steps; {threads} thread(s), CPU time, {repeats} interleaved repeats",
        f"{'network':12} {'engine':22} {'ms a task (min..max)':>24} {'x higher (min..max)':>24}",
    ]
    for name, gradients in _subjects().items():
        _agree(name, gradients)
        seconds = _interleaved(gradients, repeats)
        for engine, times in seconds.items():
            per_task = [1e3 * t / TASKS for t in times]
            ratios = [a / b for a, b in zip(seconds["higher"], times, strict=True)]
            lines.append(f"{name:12} {engine:22} {_spread(per_task):>24} {_spread(ratios):>24}")
    return "\n".join(lines)


def _subjects() -> dict[str, dict[str, Gradient]]:
    torch.manual_seed(0)
    images = torch.rand(TASKS, SUPPORT + QUERY, 3, 28, 28)
    classes = torch.randint(10, (TASKS, SUPPORT + QUERY))
    x = 10 * torch.rand(TASKS, SUPPORT + QUERY, 1) - 5
    return {
        "RainbowNet": _engines(RainbowNet(), nn.CrossEntropyLoss(label_smoothing=0.1), images, classes, 0.1),
        "SinusoidMLP": _engines(SinusoidMLP(), nn.MSELoss(), x, x.sin(), 0.01),
    }


def _engines(model: nn.Module, criterion: nn.Module, x: Tensor, y: Tensor, inner_lr: float) -> dict[str, Gradient]:
    support, query_x, query_y = (x[:, :SUPPORT], y[:, :SUPPORT]), x[:, SUPPORT:], y[:, SUPPORT:]

    def by_engine(name: str) -> Gradient:
        engine = make_engine(name, model, criterion, inner_lr=inner_lr, inner_steps=INNER_STEPS)
        parameters = dict(model.named_parameters())

        def gradient() -> list[Tensor]:
            outputs = engine.predict(parameters, support, query_x)
            loss = criterion(outputs.flatten(0, 1), query_y.flatten(0, 1))
            return list(torch.autograd.grad(loss, list(parameters.values())))

        return gradient

    return {name: by_engine(name) for name in ENGINES} | {
        "higher alone": _higher_alone(model, criterion, support, query_x, query_y, inner_lr)
    }


def _higher_alone(
    model: nn.Module,
    criterion: nn.Module,
    support: tuple[Tensor, Tensor],
    query_x: Tensor,
    query_y: Tensor,
    inner_lr: float,
) -> Gradient:
    """`higher` as its documentation shows it, on stock layers: the query is normalised by its own batch."""
    model = _with_stock_norms(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=inner_lr)

    def gradient() -> list[Tensor]:
        model.zero_grad()
        for x, y, qx, qy in zip(*support, query_x, query_y, strict=True):
            with higher.innerloop_ctx(model, optimizer, copy_initial_weights=False) as (functional, inner):
                for _ in range(INNER_STEPS):
                    inner.step(criterion(functional(x), y))
                (criterion(functional(qx), qy) / TASKS).backward()
        return [p.grad for p in model.parameters() if p.grad is not None]

    return gradient


def _with_stock_norms(model: nn.Module) -> nn.Module:
    """The same stack with `nn.BatchNorm2d`, and the same first parameters."""
    layers = model.children()
    return nn.Sequential(*(nn.BatchNorm2d(m.num_features) if isinstance(m, TaskBatchNorm) else m for m in layers))


def _agree(name: str, gradients: dict[str, Gradient]) -> None:
    """Raise if an engine's gradient differs from that of "higher" beyond single precision.

    "higher alone" is left out: its query is normalised by another rule.
    """
    vectors = {engine: torch.cat([g.flatten() for g in f()]) for engine, f in gradients.items()}
    reference = vectors["higher"]
    for engine in ENGINES:
        distance = float((vectors[engine] - reference).norm() / reference.norm())
        if distance > 1e-3:
            raise RuntimeError(f"{name}: the gradient of {engine!r} differs from that of 'higher' by {distance:.1e}")


def _interleaved(gradients: dict[str, Gradient], repeats: int) -> dict[str, list[float]]:
    seconds: dict[str, list[float]] = {engine: [] for engine in gradients}
    for repeat in range(repeats + 1):
        for engine, gradient in gradients.items():
            start = time.process_time()
            gradient()
            if repeat:  # the first one warms up
                seconds[engine].append(time.process_time() - start)
    return seconds


def _spread(values: list[float]) -> str:
    return f"{statistics.median(values):.2f} ({min(values):.2f}..{max(values):.2f})"
