"""A scenario from its names to its numbers and counts.

In double precision, so that a tolerance can be tight: in single precision one ReLU that rounding turns changes a
gradient by far more than a mistake of a percent.
"""

from __future__ import annotations

import inspect
import math
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import cache
from typing import Any
from unittest import mock

import torch
from avalanche.benchmarks import CLScenario
from avalanche.training.plugins import EvaluationPlugin
from torch import Tensor
from torch.nn.functional import interpolate

from ftml_bench import protocol, registry
from ftml_bench.adaptation.native import engine as native
from ftml_bench.adaptation.native.library import load
from ftml_bench.benchmarks.data import data_root
from ftml_bench.seeding import derive
from ftml_bench.strategies.avalanche.stock import on_arrivals

from .counting import Operators
from .scenarios import ROWS, STEPS, STREAMS, Scenario

SEED = 0
FORM = "baseline"  # of the engine native: how much memory it takes depends on the width of vectors
Quantities = dict[str, Any]  # by name: a number, a list of one an arrival, or a word


def has_data(stream: str) -> bool:
    """Whether what a stream is read from lies in the data folder."""
    data = STREAMS[stream].data
    return data is None or (data_root() / data).is_dir()


def run(scenario: Scenario, change: float = 0.0) -> Quantities:
    """The `NUMBERS` of a scenario, its `COST`, what engine was chosen, and its `COUNTS` over the last arrival.

    By the last arrival an engine has been tried: how much it takes to try it depends on the last bits of numbers.

    :param change: by how much of itself each first weight is changed (times a standard normal number), which shows how
        far the scenario magnifies what rounding does.
    :raises UsageError: if it is refused.
    """
    benchmark = stream(scenario.stream)
    with _in_double(), mock.patch.object(native, "library", return_value=load(FORM)):
        strategy = _strategy(scenario, benchmark, change)
        sizes = STREAMS[scenario.stream].arrivals
        last = protocol.total_evaluations(benchmark, sizes) - 1
        parts = protocol.in_two_parts(strategy, benchmark, sizes, seed=SEED)
        evaluations = []
        for number in range(last + 1):
            training, evaluation = Operators(), Operators()
            with training if number == last else nullcontext():
                next(parts)
            with evaluation if number == last else nullcontext():
                evaluations.append(next(parts))
    accuracies = [e.accuracy for e in evaluations if e.accuracy is not None]
    gradients = [p.grad for p in strategy.model.parameters() if p.grad is not None]
    return {
        "loss": [e.loss for e in evaluations],
        **({"accuracy": accuracies} if accuracies else {}),
        "gradient norm": math.sqrt(sum(float(g.square().sum()) for g in gradients)),
        "steps": strategy.cost.steps,
        "images": strategy.cost.images,
        "gradient evaluations": strategy.cost.gradient_evaluations,
        **({"chosen": "{engine}/{engine_memory}".format(**strategy.chosen)} if scenario.engine else {}),
        "operators of training": training.calls,
        "operators of evaluation": evaluation.calls,
        "tensors allocated": training.tensors + evaluation.tensors,
        "bytes allocated": training.bytes + evaluation.bytes,
    }


NUMBERS = ("loss", "accuracy", "gradient norm")  # the last training step's gradient, of the meta-loss for FTML
COST = ("steps", "images", "gradient evaluations")
COUNTS = ("operators of training", "operators of evaluation", "tensors allocated", "bytes allocated")


@cache
def stream(name: str) -> CLScenario:
    """A stream in small, with its floats in double precision."""
    settings = STREAMS[name].settings
    cls = registry.load("benchmark", name)
    with tempfile.TemporaryDirectory() as folder, _halves_rounded_up():
        cache = {"cache": folder} if "cache" in inspect.signature(cls).parameters else {}
        benchmark = cls(seed=SEED, **settings, **cache)
    for experience in (*benchmark.train_stream, *benchmark.test_stream):
        data = experience.stacked
        data.x, data.y = (part.double() if part.is_floating_point() else part for part in (data.x, data.y))
    return benchmark


def _strategy(scenario: Scenario, benchmark: CLScenario, change: float) -> Any:
    row = ROWS[scenario.row]
    cls = registry.load("strategy", row.strategy)
    if "steps" not in inspect.signature(cls).parameters:
        cls = on_arrivals(cls)
    torch.manual_seed(derive(SEED, "init"))
    given = row.model or STREAMS[scenario.stream].model
    model = registry.load("model", given["name"])(**_without_name(given)) if given else benchmark.model()
    if change:
        generator = torch.Generator().manual_seed(derive(SEED, "change"))
        with torch.no_grad():
            for p in model.parameters():
                p.mul_(1 + change * torch.randn(p.shape, generator=generator, dtype=p.dtype))
    has_alpha = "inner_lr" in inspect.signature(cls).parameters
    return cls(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=STREAMS[scenario.stream].lr),
        criterion=benchmark.criterion,
        evaluator=EvaluationPlugin(loggers=[]),
        eval_mb_size=max(len(experience.dataset) for experience in benchmark.test_stream),
        steps=STEPS,
        seed=SEED,
        **({"inner_lr": benchmark.inner_lr} if has_alpha else {}),
        **({"engine": scenario.engine, "memory": scenario.memory} if scenario.engine else {}),
        **row.settings,
    )


def _without_name(model: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in model.items() if key != "name"}


@contextmanager
def _in_double() -> Iterator[None]:
    """Inside, models are built in double precision, and bytes become double numbers."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@contextmanager
def _halves_rounded_up() -> Iterator[None]:
    """Inside, digits are enlarged the same on every processor: in single precision it decides about halves."""

    def enlarged(grey: Tensor, size: int) -> Tensor:
        exact = interpolate(grey[:, None].double(), size=(size, size), mode="bilinear", align_corners=False)
        return (exact[:, 0] + 1e-6).round().to(torch.uint8)

    with (
        mock.patch("ftml_bench.benchmarks.rainbow_digits.resize", enlarged),
        mock.patch("ftml_bench.benchmarks.colored_digits.resize", enlarged),
    ):
        yield
