"""One cell of a leaderboard: build the benchmark and the strategy, run the protocol, record."""

from __future__ import annotations

import inspect
import math
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from avalanche.benchmarks import CLScenario
from avalanche.logging import TensorboardLogger
from avalanche.training.plugins import EvaluationPlugin
from avalanche.training.templates import SupervisedTemplate
from torch import nn

from ftml_bench import metrics, registry
from ftml_bench.benchmarks.arrivals import cumulative_sizes
from ftml_bench.curves import Threshold
from ftml_bench.definition import BenchmarkSpec, Cell, Definition, Row
from ftml_bench.errors import UsageError, unknown
from ftml_bench.models.norm import has_norm
from ftml_bench.protocol import evaluations, total_evaluations
from ftml_bench.record import RunWriter
from ftml_bench.seeding import derive

# What the cell decides itself, so that no row can differ in it.
_GIVEN_BY_CELL = {"model", "optimizer", "criterion", "steps", "evaluator", "eval_mb_size", "device", "plugins", "seed"}


def check(definition: Definition, data: str | None) -> None:
    """Build every benchmark and every strategy of a leaderboard once, and train nothing.

    :raises UsageError: for a setting that a constructor does not take, missing data, an unreachable checkpoint.
    """
    for spec in definition.benchmarks:
        _prepare_benchmark(spec, definition.seeds, data)
        benchmark = _build_benchmark(spec, definition.seeds[0], data)
        _reachable_checkpoints(spec, benchmark)
        if _or(spec.threshold, benchmark.threshold)[0] == "accuracy" and not hasattr(
            benchmark.train_stream[0].dataset, "targets"
        ):
            raise UsageError(f"{spec.name}: accuracy of a regression stream: expected a threshold in 'loss'")
        for row in spec.rows:
            _build_strategy(spec, row, benchmark, definition.seeds[0], log=None)


def run_cell(
    definition: Definition,
    cell: Cell,
    folder: Path,
    data: str | None,
    on_evaluation: Callable[[int, int], None],
) -> str:
    """Run one cell and leave its files in `folder`.

    :param data: the data folder; None: the environment's.
    :param on_evaluation: called after every evaluation with how many are done and how many there will be.
    :return: "finished", or "diverged" if a loss became NaN or infinite, which ends the run there.
    """
    spec = definition.benchmark(cell.benchmark)
    row = spec.row(cell.row)
    benchmark = _build_benchmark(spec, cell.seed, data)
    shutil.rmtree(folder / "tb", ignore_errors=True)  # events of an earlier attempt would be drawn beside the new ones
    strategy = _build_strategy(spec, row, benchmark, cell.seed, log=folder / "tb")
    arrivals = _or(spec.arrivals, benchmark.arrivals)
    total = total_evaluations(benchmark, arrivals)

    writer = RunWriter.start(
        folder,
        {
            "definition": definition.hash,
            "device": str(strategy.device),
            "engine": strategy.engine.name if hasattr(strategy, "engine") else None,
            "protocol": _protocol(spec, row, benchmark, strategy),
        },
    )
    start = time.perf_counter()
    status, fields = "finished", {}
    for done, evaluation in enumerate(evaluations(strategy, benchmark, arrivals, seed=cell.seed), 1):
        writer.append(asdict(evaluation), time.perf_counter() - start)
        on_evaluation(done, total)
        if not math.isfinite(evaluation.loss):
            status, fields = "diverged", {"diverged_round": evaluation.round}
            break
    for logger in strategy.evaluator.loggers:
        logger.writer.close()
    writer.finish(status, cost=asdict(strategy.cost), **fields)
    return status


def _build_benchmark(spec: BenchmarkSpec, seed: int, data: str | None) -> CLScenario:
    cls = registry.load("benchmark", spec.benchmark)
    return _construct(cls, _benchmark_settings(cls, spec, seed, data), _where(spec), hidden={"seed"})


def _prepare_benchmark(spec: BenchmarkSpec, seeds: Sequence[int], data: str | None) -> None:
    """Let a benchmark that renders its data do so for all seeds, on all cores, before cells share the cores."""
    cls = registry.load("benchmark", spec.benchmark)
    for seed in seeds if hasattr(cls, "prepare") else ():
        _construct(cls.prepare, _benchmark_settings(cls, spec, seed, data), _where(spec), hidden={"seed"})


def _benchmark_settings(cls: type, spec: BenchmarkSpec, seed: int, data: str | None) -> dict[str, Any]:
    settings = {**spec.settings, "seed": seed}
    if data is not None and "root" in inspect.signature(cls).parameters:
        settings.setdefault("root", data)
    return settings


def _where(spec: BenchmarkSpec) -> str:
    return f"{spec.name}: {spec.benchmark}"


def _build_strategy(
    spec: BenchmarkSpec, row: Row, benchmark: CLScenario, seed: int, *, log: Path | None
) -> SupervisedTemplate:
    """The strategy of a row; rows with the same seed start from the same parameters if they have the same model."""
    where = f"{spec.name}: {row.name}"
    torch.manual_seed(derive(seed, "init"))
    model = _build_model(spec, benchmark)
    optimizer = _build_optimizer({**spec.optimizer, **row.optimizer}, model, where)
    torch.manual_seed(derive(seed, "training"))  # of layers that draw, such as dropout

    cls = registry.load("strategy", row.strategy)
    settings = {
        **_settings(cls, row, benchmark),
        "model": model,
        "optimizer": optimizer,
        "criterion": benchmark.criterion,
        "steps": spec.steps,
        "evaluator": _evaluator(spec, benchmark, log),
        "eval_mb_size": max(len(experience.dataset) for experience in benchmark.test_stream),
        "seed": seed,
    }
    return _construct(cls, settings, where, hidden=_GIVEN_BY_CELL)


def _settings(cls: type, row: Row, benchmark: CLScenario) -> dict[str, Any]:
    """The row's settings; for the inner learning rate and the update steps the benchmark has defaults of its own."""
    taken = inspect.signature(cls).parameters
    defaults = {"inner_lr": benchmark.inner_lr, "update_steps": benchmark.update_steps}
    return {**{name: value for name, value in defaults.items() if name in taken}, **row.settings}


def _build_model(spec: BenchmarkSpec, benchmark: CLScenario) -> nn.Module:
    if spec.model is None:
        return benchmark.model()
    settings = dict(spec.model)
    name = settings.pop("name")
    return _construct(registry.load("model", name), settings, f"{spec.name}: {name}", hidden=set())


def _build_optimizer(settings: dict[str, Any], model: nn.Module, where: str) -> torch.optim.Optimizer:
    settings = dict(settings)
    name = settings.pop("name", "Adam")
    cls = getattr(torch.optim, name, None)
    if not (inspect.isclass(cls) and issubclass(cls, torch.optim.Optimizer)):
        names = [n for n, c in vars(torch.optim).items() if inspect.isclass(c) and c is not torch.optim.Optimizer]
        raise unknown(f"optimizer in {where}", name, names)
    return _construct(cls, {**settings, "params": model.parameters()}, f"{where}: {name}", hidden={"params"})


def _construct(cls: Callable[..., Any], settings: dict[str, Any], where: str, hidden: set[str]) -> Any:
    """`cls(**settings)`; a keyword that it does not take, or a value that it refuses, is the user's to mend."""
    parameters = inspect.signature(cls).parameters
    open_ended = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())
    for name in settings:
        if name not in parameters and not open_ended:
            raise unknown(f"setting of {where}", name, set(parameters) - hidden)
    try:
        return cls(**settings)
    except (TypeError, ValueError) as error:
        raise UsageError(f"{where}: {error}") from error


def _evaluator(spec: BenchmarkSpec, benchmark: CLScenario, log: Path | None) -> EvaluationPlugin:
    threshold = _or(spec.threshold, benchmark.threshold)
    metric = threshold[0]
    return EvaluationPlugin(
        metrics.efficiency_metrics(threshold=threshold),
        metrics.checkpoint_metrics(checkpoints=_or(spec.checkpoints, benchmark.checkpoints), metric=metric),
        metrics.final_performance_metrics(metric=metric),
        metrics.learning_curve_metrics(metric=metric),
        loggers=[] if log is None else [TensorboardLogger(str(log))],
    )


def _reachable_checkpoints(spec: BenchmarkSpec, benchmark: CLScenario) -> None:
    sizes = cumulative_sizes(len(benchmark.train_stream[0].dataset), _or(spec.arrivals, benchmark.arrivals))
    for checkpoint in _or(spec.checkpoints, benchmark.checkpoints):
        if checkpoint not in sizes:
            near = min(sizes, key=lambda size: abs(size - checkpoint))
            raise UsageError(
                f"{spec.name}: no arrival ends at checkpoint {checkpoint}: the nearest ends at {near} datapoints "
                f"(a round has {sizes[-1]})"
            )


def _protocol(spec: BenchmarkSpec, row: Row, benchmark: CLScenario, strategy: SupervisedTemplate) -> dict[str, Any]:
    """What was run, for the record: names of settings as in the definition."""
    threshold = Threshold(*_or(spec.threshold, benchmark.threshold))
    arrivals = _or(spec.arrivals, benchmark.arrivals)
    cls = type(strategy)
    return {
        "benchmark": spec.benchmark,
        "benchmark_settings": _plain({**_defaults(type(benchmark), {"seed", "root", "cache"}), **spec.settings}),
        # with versions, where a stream renders its images: scores on two renderers must not be mixed
        "renderer": getattr(benchmark, "renderer", None),
        "strategy": row.strategy,
        "rounds": len(benchmark.train_stream),
        "datapoints_per_round": len(benchmark.train_stream[0].dataset),
        "held_out_per_round": len(benchmark.test_stream[0].dataset),
        "arrivals": arrivals if isinstance(arrivals, int) else list(arrivals),
        "threshold": [threshold.metric, threshold.value],
        "metric": threshold.metric,
        "checkpoints": list(_or(spec.checkpoints, benchmark.checkpoints)),
        "steps": spec.steps,
        "batch_norm": getattr(strategy, "batch_norm", None) if has_norm(strategy.model) else None,
        "optimizer": {**spec.optimizer, **row.optimizer},
        "settings": _plain({**_defaults(cls, _GIVEN_BY_CELL), **_settings(cls, row, benchmark)}),
        "parameters": sum(p.numel() for p in strategy.model.parameters()),
    }


def _defaults(cls: type, without: set[str]) -> dict[str, Any]:
    """The keywords of a constructor with their defaults."""
    return {name: p.default for name, p in inspect.signature(cls).parameters.items() if name not in without}


def _plain(settings: dict[str, Any]) -> dict[str, Any]:
    """Those settings that JSON can hold and that say something there."""
    return {n: v for n, v in settings.items() if v is None or isinstance(v, (bool, int, float, str, list))}


def _or(value: Any, default: Any) -> Any:
    return default if value is None else value
