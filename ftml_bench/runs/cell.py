"""One cell of a leaderboard: run the protocol on its benchmark with its strategy, and record."""

from __future__ import annotations

import inspect
import json
import math
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, suppress
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from avalanche.benchmarks import CLScenario
from avalanche.evaluation.metric_results import MetricValue
from avalanche.logging import BaseLogger
from avalanche.training.templates import SupervisedTemplate

from ftml_bench import registry
from ftml_bench.errors import UsageError
from ftml_bench.memory import keep_freed_memory
from ftml_bench.metrics.measures import CURVES
from ftml_bench.metrics.performance import check_classification
from ftml_bench.models.norm import has_norm
from ftml_bench.protocol import (
    VERSION,
    Evaluation,
    WarmUp,
    all_arrivals,
    in_hindsight,
    in_two_parts,
    keys,
    keys_in_hindsight,
    total_evaluations,
)
from ftml_bench.recorded.together import Together
from ftml_bench.runs.building import (
    GIVEN_BY_CELL,
    build_benchmark,
    build_strategy,
    checkpoints_of,
    given_or,
    has_classes,
    measures_of,
    metric_of,
    prepare_benchmark,
    settings_of,
    sizes_of,
    version_of,
)
from ftml_bench.runs.definition import BenchmarkSpec, Cell, Definition, Row
from ftml_bench.runs.events import Events
from ftml_bench.runs.resuming import StateSaver, begin_or_go_on
from ftml_bench.sizes import SCORES
from ftml_bench.strategies.avalanche.stock import needs_classes
from ftml_bench.strategies.meta_learner import MetaLearner


def versions(definition: Definition) -> dict[str, dict[str, int | None]]:
    """For each of its benchmarks by name what a new record's `protocol` says of versions.

    :raises UsageError: an unknown benchmark, or one whose version is no whole number.
    """
    return {spec.name: _versions(spec) for spec in definition.benchmarks}


def check(definition: Definition, data: str | None) -> None:
    """Build every benchmark and every strategy of a leaderboard once, and train nothing.

    :raises UsageError: for a setting that a constructor does not take, missing data, an unreachable checkpoint.
    """
    for spec in definition.benchmarks:
        prepare_benchmark(spec, definition.seeds, data)
        benchmark = build_benchmark(spec, definition.seeds[0], data)
        _reachable_checkpoints(spec, benchmark)
        warmup = _warmup(spec)
        if warmup is not None:
            list(warmup.experiences(benchmark, definition.seeds[0]))
        if metric_of(spec, benchmark) == "accuracy" and not has_classes(benchmark):
            raise UsageError(f"{spec.name}: accuracy of a regression stream: expected a threshold in 'loss'")
        if "only_class" in measures_of(spec, benchmark) and not has_classes(benchmark):
            raise UsageError(f"{spec.name}: only_class of a regression stream: it has no classes")
        for row in spec.rows:
            strategy = build_strategy(spec, row, benchmark, definition.seeds[0])
            _check_classification(spec, row, benchmark, strategy)
            if needs_classes(type(strategy)) and not has_classes(benchmark):
                raise UsageError(f"{spec.name}: {row.name}: {row.strategy} needs classes: this is a regression stream")
            needs = "it cannot be a comparator" if row.comparator else "no rounds can be known to it beforehand"
            if (row.comparator or warmup is not None) and not hasattr(strategy, "trainable_rounds"):
                raise UsageError(f"{spec.name}: {row.name}: {row.strategy} has no buffer: {needs}")


def run_cell(
    definition: Definition,
    cell: Cell,
    folder: Path,
    data: str | None,
    on_evaluation: Callable[[int, int], None],
    device: str = "cpu",
) -> str:
    """Run one cell and leave its files in `folder`.

    :param data: the data folder; None: the environment's.
    :param on_evaluation: called at the start and after every evaluation with how many are done and how many there will
        be.
    :param device: that the learner trains on. On a GPU convolutions are computed in float32, as on a CPU: PyTorch's
        default, TF32, has errors of 1e-3 in them.
    :return: "finished", or "diverged" if a loss became NaN or infinite, which ends the run there.
    """
    running = _running(definition, cell, folder, data, on_evaluation, device)
    while True:
        try:
            next(running)
        except StopIteration as end:
            return end.value


def run_together(
    definition: Definition,
    folders: dict[Cell, Path],
    data: str | None,
    on_evaluation: Callable[[Cell, int, int], None],
    device: str,
) -> dict[Cell, str | BaseException]:
    """Run several seeds of a row of FTML, whose training steps go through the device together (see `Together`).

    Each comes to what it comes to alone, up to rounding (with other draws of layers that draw, such as dropout).

    :param on_evaluation: called with the cell first; everything else is as in `run_cell`.
    :return: what `run_cell` returns or raises for each.
    """
    together = Together()
    running = {
        cell: _running(definition, cell, folder, data, partial(on_evaluation, cell), device, together)
        for cell, folder in folders.items()
    }
    ended: dict[Cell, str | BaseException] = {}
    while running:
        for cell in list(running):
            try:
                next(running[cell])  # evaluates after the last arrival, takes in the next
            except StopIteration as end:
                ended[cell] = end.value
            except (Exception, SystemExit, GeneratorExit) as error:  # the others go on
                ended[cell] = error
            if cell in ended:
                del running[cell]
        try:
            together.take_steps()
        except (Exception, SystemExit, GeneratorExit) as error:  # of all, such as a lack of memory
            return ended | dict.fromkeys(running, error)
    return ended


def _running(
    definition: Definition,
    cell: Cell,
    folder: Path,
    data: str | None,
    on_evaluation: Callable[[int, int], None],
    device: str,
    together: Together | None = None,
) -> Generator[None, None, str]:
    """`run_cell` with a pause after each training, in which `together` takes the steps."""
    keep_freed_memory()
    torch.backends.cudnn.allow_tf32 = False
    if torch.device(device).index is not None:
        torch.cuda.set_device(device)
    spec = definition.benchmark(cell.benchmark)
    row = spec.row(cell.row)
    benchmark = build_benchmark(spec, cell.seed, data)
    measured = _Measured()
    build = partial(build_strategy, spec, row, benchmark, cell.seed, loggers=[measured], device=device)
    strategy = build()
    header = {
        "definition": definition.hash,
        "cell": str(cell),
        "device": str(strategy.device),
        "engine": None,
        **_engine(strategy),
        "protocol": _protocol(spec, row, benchmark, strategy),
    }
    arrivals = given_or(spec.arrivals, benchmark.arrivals)
    warmup, score = _warmup(spec), given_or(spec.score, SCORES[0])
    stream = all_arrivals(benchmark, arrivals, seed=cell.seed, warmup=warmup, score=score)
    begun = begin_or_go_on(folder, header, strategy, stream, definition.includes)
    if begun.spoiled:
        strategy = build()
    if isinstance(strategy, MetaLearner):
        strategy.execution.together = together
    with closing(Events(folder)) as events:
        strategy.evaluator.loggers.append(events)
        if row.comparator:
            expected = keys_in_hindsight(benchmark)
        else:
            expected = keys(benchmark, arrivals, warmup=warmup, score=score)
        total = len(expected)
        parts: Iterator[Evaluation | None]
        if row.comparator:
            parts = in_hindsight(strategy, benchmark, steps=total_evaluations(benchmark, arrivals) * spec.steps)
        else:
            parts = in_two_parts(
                strategy, benchmark, arrivals, seed=cell.seed, skip=begun.done, warmup=warmup, score=score
            )

        writer, saver = begun.writer, StateSaver(begun, strategy, events, possible=not row.comparator)
        status, fields, done = "finished", {}, begun.done
        on_evaluation(done, total)
        for evaluation in parts:
            if evaluation is None:
                yield
                continue
            done += 1
            writer.append(asdict(evaluation), saver.seconds)
            for measure, value, number in measured.take():
                writer.append_measure(number - 1, measure, value)
            on_evaluation(done, total)
            if not math.isfinite(evaluation.loss):
                status, fields = "diverged", {"diverged_round": evaluation.round}
                break
            saver.after_evaluation(done)
    writer.check(expected if status == "finished" else expected[:done])
    # again, since "auto" may find out at the first training step what can treat the model
    writer.finish(status, cost=asdict(strategy.cost), **fields, **_engine(strategy))
    return status


def _engine(strategy: SupervisedTemplate) -> dict[str, str]:
    """The engine that a strategy's gradients come from, and why that one; empty for a strategy without one."""
    return getattr(strategy, "chosen", {})


class _Measured(BaseLogger):
    """Collects what the metrics of measures emit."""

    def __init__(self) -> None:
        super().__init__()
        self._found: list[tuple[str, float, int]] = []

    def log_metrics(self, metric_values: list[MetricValue]) -> None:
        for metric in metric_values:
            name = metric.name.split("/")[0]
            if name in CURVES:
                self._found.append((name, metric.value, metric.x_plot))

    def take(self) -> list[tuple[str, float, int]]:
        """(measure, value, number of the round, from 1) of everything since the last call."""
        found, self._found = self._found, []
        return found


def _check_classification(spec: BenchmarkSpec, row: Row, benchmark: CLScenario, strategy: SupervisedTemplate) -> None:
    """Whether accuracy can be counted, if it is asked for."""
    if metric_of(spec, benchmark) != "accuracy" and "only_class" not in measures_of(spec, benchmark):
        return
    strategy.experience = benchmark.train_stream[0]
    try:
        check_classification(strategy)
    except UsageError as error:
        raise UsageError(f"{spec.name}: {row.name}: {error}") from error


def _warmup(spec: BenchmarkSpec) -> WarmUp | None:
    if spec.warmup_rounds is None:
        return None
    return WarmUp(spec.warmup_rounds, spec.warmup_datapoints, spec.warmup_steps)


def _reachable_checkpoints(spec: BenchmarkSpec, benchmark: CLScenario) -> None:
    sizes = sizes_of(spec, benchmark)
    for checkpoint in checkpoints_of(spec, benchmark):
        if checkpoint not in sizes:
            near = min(sizes, key=lambda size: abs(size - checkpoint))
            raise UsageError(
                f"{spec.name}: no arrival ends at checkpoint {checkpoint}: the nearest ends at {near} datapoints "
                f"(a round has {sizes[-1]})"
            )


def _protocol(spec: BenchmarkSpec, row: Row, benchmark: CLScenario, strategy: SupervisedTemplate) -> dict[str, Any]:
    """What was run, for the record: names of settings as in the definition."""
    threshold = given_or(spec.threshold, benchmark.threshold)
    arrivals = given_or(spec.arrivals, benchmark.arrivals)
    cls = type(strategy)
    warmup = _warmup(spec)
    return {
        **_versions(spec),
        "benchmark": spec.benchmark,
        "benchmark_settings": _plain({**_defaults(type(benchmark), {"seed", "root", "cache"}), **spec.settings}),
        # with versions, where a stream renders its images: scores on two renderers must not be mixed
        "renderer": getattr(benchmark, "renderer", None),
        "image_set": getattr(benchmark, "image_set", None),  # images of others, by name and hash
        "strategy": row.strategy,
        "rounds": len(benchmark.train_stream) - (0 if warmup is None else warmup.rounds),
        "warmup": None if warmup is None else asdict(warmup),
        "score": given_or(spec.score, SCORES[0]),
        "datapoints_per_round": sizes_of(spec, benchmark)[-1],
        "held_out_per_round": len(benchmark.test_stream[0].dataset),
        "arrivals": arrivals if isinstance(arrivals, int) else list(arrivals),
        "threshold": None if threshold is None else list(threshold),
        "metric": metric_of(spec, benchmark),
        "checkpoints": checkpoints_of(spec, benchmark),
        "steps": spec.steps,
        "batch_norm": getattr(strategy, "batch_norm", None) if has_norm(strategy.model) else None,
        "optimizer": row.optimizer,
        "settings": _plain({**_defaults(cls, GIVEN_BY_CELL), **settings_of(cls, row, benchmark)}),
        "parameters": sum(p.numel() for p in strategy.model.parameters()),
    }


def _versions(spec: BenchmarkSpec) -> dict[str, int | None]:
    stream = version_of(registry.load("benchmark", spec.benchmark), f"{spec.name}: {spec.benchmark}")
    return {"version": VERSION, "benchmark_version": stream}


def _defaults(cls: type, without: set[str]) -> dict[str, Any]:
    """The keywords of a constructor with their defaults."""
    return {name: p.default for name, p in inspect.signature(cls).parameters.items() if name not in without}


def _plain(settings: dict[str, Any]) -> dict[str, Any]:
    """Those settings that JSON can hold and that say something there."""
    plain = {}
    for name, value in settings.items():
        with suppress(TypeError, ValueError):
            # JSON has no infinity, which the default of a foreign class may be.
            value = str(value) if isinstance(value, float) and not math.isfinite(value) else value
            json.dumps(value, allow_nan=False)
            plain[name] = value
    return plain
