"""From a definition to the objects of a cell: benchmark, model, optimiser, metrics, strategy."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import torch
from avalanche.benchmarks import CLScenario
from avalanche.core import SupervisedPlugin
from avalanche.logging import BaseLogger
from avalanche.training.plugins import EvaluationPlugin
from avalanche.training.templates import SupervisedTemplate
from torch import nn

from ftml_bench import metrics, registry
from ftml_bench.benchmarks.arrivals import cumulative_sizes
from ftml_bench.benchmarks.checks import check_int
from ftml_bench.buffer import RULES
from ftml_bench.errors import UsageError, unknown
from ftml_bench.runs import streams
from ftml_bench.runs.definition import GIVEN_BY_CELL, ROW_KEYS, BenchmarkSpec, Row
from ftml_bench.runs.signatures import parameters_of, refuse_wrong_types
from ftml_bench.runs.values import shown
from ftml_bench.seeding import derive, seed_globals
from ftml_bench.sizes import SCORES, scored
from ftml_bench.strategies.avalanche.base import Learner
from ftml_bench.strategies.avalanche.gradient_clip import GradientClip
from ftml_bench.strategies.avalanche.learning_rate import LearningRateAfter
from ftml_bench.strategies.avalanche.stock import on_arrivals


def build_benchmark(spec: BenchmarkSpec, seed: int, data: str | None) -> CLScenario:
    """The benchmark of a definition.

    :param data: the data folder; None: the environment's.
    :raises UsageError: for an unknown setting, a value that is refused, missing data, or a benchmark whose streams or
        defaults cannot be used.
    """
    cls = registry.load("benchmark", spec.benchmark)
    seed_globals(derive(seed, "stream"))  # ours draw from generators of their own
    benchmark = construct(
        cls, _benchmark_settings(cls, spec, seed, data), _where(spec), hidden={"seed"}, option="--benchmark-set"
    )
    streams.check(benchmark, _where(spec), spec)
    return benchmark


def prepare_benchmark(spec: BenchmarkSpec, seeds: Sequence[int], data: str | None) -> None:
    """Let a benchmark that renders its data do so for all seeds, on all cores, before cells share the cores."""
    cls = registry.load("benchmark", spec.benchmark)
    for seed in seeds if hasattr(cls, "prepare") else ():
        construct(cls.prepare, _benchmark_settings(cls, spec, seed, data), _where(spec), hidden={"seed"})


def version_of(cls: Callable[..., Any], where: str) -> int | None:
    """The version of a benchmark's stream, as its class says; None if it says none.

    :param where: named in the error.
    :raises UsageError: it says something that is no whole number of at least 1.
    """
    version = getattr(cls, "version", None)
    return None if version is None else check_int(f"{where}: version", version, least=1)


def _benchmark_settings(cls: type, spec: BenchmarkSpec, seed: int, data: str | None) -> dict[str, Any]:
    settings = {**spec.settings, "seed": seed}
    if data is not None and "root" in parameters_of(cls, _where(spec)):
        settings.setdefault("root", data)
    return settings


def _where(spec: BenchmarkSpec) -> str:
    return f"{spec.name}: {spec.benchmark}"


def build_strategy(
    spec: BenchmarkSpec,
    row: Row,
    benchmark: CLScenario,
    seed: int,
    *,
    loggers: Sequence[BaseLogger] = (),
    device: str = "cpu",
) -> SupervisedTemplate:
    """The strategy of a row; rows with the same seed start from the same parameters if they have the same model.

    :param loggers: of its evaluator.
    :raises UsageError: for an unknown setting of it, its model or optimiser, or a value that is refused.
    """
    where = f"{spec.name}: {row.name}"
    seed_globals(derive(seed, "init"))
    model = _build_model(given_or(row.model, spec.model), benchmark, spec.name if row.model is None else where)
    model.to(device)
    optimizer, plugins = _build_optimizer(row.optimizer, model, where)
    seed_globals(derive(seed, "training"))  # of layers that draw, such as dropout

    cls = _strategy_class(row, where)
    settings = {
        **_with_rule(cls, settings_of(cls, row, benchmark), where),
        "model": model,
        "optimizer": optimizer,
        "criterion": benchmark.criterion,
        "steps": spec.steps,
        **({"plugins": plugins} if plugins else {}),
        "evaluator": _evaluator(spec, row, benchmark, loggers),
        "eval_mb_size": max(len(experience.dataset) for experience in benchmark.test_stream),
        "device": device,
        "seed": seed,
    }
    return construct(cls, settings, where, hidden=GIVEN_BY_CELL, option="--set", beside=ROW_KEYS)


def _strategy_class(row: Row, where: str) -> type:
    """The row's class; one that takes no `steps`, as Avalanche's own, is made to run on arrivals."""
    cls = registry.load("strategy", row.strategy)
    if not inspect.isclass(inspect.unwrap(cls) if callable(cls) else cls):
        raise UsageError(f"{where}: {row.strategy}: expected a class, got {shown(cls)}")
    if "steps" in parameters_of(cls, f"{where}: {row.strategy}"):
        return cls
    try:
        return on_arrivals(cls)
    except UsageError as error:
        raise UsageError(f"{where}: {row.strategy}: {error}") from error


def settings_of(cls: type, row: Row, benchmark: CLScenario) -> dict[str, Any]:
    """The row's settings; for the inner learning rate and the update steps the benchmark has defaults of its own."""
    taken = inspect.signature(cls).parameters
    defaults = {"inner_lr": benchmark.inner_lr, "update_steps": benchmark.update_steps}
    return {**{name: value for name, value in defaults.items() if name in taken}, **row.settings}


def _with_rule(cls: type, settings: dict[str, Any], where: str) -> dict[str, Any]:
    """The settings with the rule that bounds the buffer, where a row names one: {"name": ..., keyword: value, ...}."""
    given = settings.get("buffer")
    name = given.get("name") if isinstance(given, dict) else None
    if not isinstance(given, dict) or not isinstance(name, str):
        if given is None or not (inspect.isclass(cls) and issubclass(cls, Learner)):  # of others it may be anything
            return settings
        example = "{name: Reservoir, points: 1000}"
        raise UsageError(f"{where}: buffer: expected a rule with its keywords, as {example}, got {shown(given)}")
    keywords = {key: value for key, value in given.items() if key != "name"}
    if name not in RULES:
        raise unknown(f"buffer in {where}", name, RULES)
    return {**settings, "buffer": construct(RULES[name], keywords, f"{where}: buffer: {name}", hidden=set())}


def _own_model(benchmark: CLScenario, where: str) -> nn.Module:
    if hasattr(benchmark, "model"):
        try:
            return benchmark.model()
        except NotImplementedError:
            pass
        except Exception as error:  # somebody else's code may fail in any way
            raise UsageError(f"{where}: the benchmark's model: {type(error).__name__}: {error}") from error
    raise UsageError(f"{where}: {type(benchmark).__name__} has no model of its own: expected `model` in the definition")


def _build_model(settings: dict[str, Any] | None, benchmark: CLScenario, where: str) -> nn.Module:
    if settings is None:
        return _own_model(benchmark, where)
    settings = dict(settings)
    name = settings.pop("name")
    model = construct(registry.load("model", name), settings, f"{where}: {name}", hidden=set())
    if not isinstance(model, nn.Module) or next(model.parameters(), None) is None:
        what = "a model with parameters" if isinstance(model, nn.Module) else "a model (nn.Module)"
        raise UsageError(f"{where}: {name}: expected {what}, got {type(model).__name__}")
    return model


def _build_optimizer(
    settings: dict[str, Any], model: nn.Module, where: str
) -> tuple[torch.optim.Optimizer, list[SupervisedPlugin]]:
    """The optimiser, and the plugins that change its learning rate later or clip, if the definition says so."""
    settings = dict(settings)
    name = settings.pop("name")
    then, clip = settings.pop("then", None), settings.pop("clip", None)
    cls = getattr(torch.optim, name, None)
    if not (inspect.isclass(cls) and issubclass(cls, torch.optim.Optimizer)):
        names = [n for n, c in vars(torch.optim).items() if inspect.isclass(c) and c is not torch.optim.Optimizer]
        raise unknown(f"optimizer in {where}", name, names)
    if next(model.parameters()).is_cuda and "capturable" in inspect.signature(cls).parameters:
        settings["capturable"] = True  # so that a CUDA graph of a whole training step can hold the update
    _try_optimizer(cls, settings, model, f"{where}: {name}")
    optimizer = construct(cls, {**settings, "params": model.parameters()}, f"{where}: {name}", hidden={"params"})
    plugins: list[SupervisedPlugin] = [] if then is None else [LearningRateAfter(**then)]
    return optimizer, plugins if clip is None else [*plugins, GradientClip(clip)]


def _try_optimizer(cls: type, settings: dict[str, Any], model: nn.Module, where: str) -> None:
    """Takes a step on other parameters of the same shapes, as training will: with dense gradients and no closure."""
    parameters = [nn.Parameter(torch.zeros_like(parameter)) for parameter in model.parameters()]
    tried = construct(cls, {**settings, "params": parameters}, where, hidden={"params"})
    for parameter in parameters:
        parameter.grad = torch.zeros_like(parameter)
    try:
        tried.step()
    except (TypeError, RuntimeError) as error:
        raise UsageError(f"{where}: it cannot take a step here: {error}") from error


def construct(
    cls: Callable[..., Any],
    settings: dict[str, Any],
    where: str,
    hidden: set[str],
    option: str | None = None,
    beside: Collection[str] = (),
) -> Any:
    """`cls(**settings)`; a keyword that it does not take, or a value that it refuses, is the user's to mend.

    :param where: named in the error.
    :param hidden: settings that are not suggested, since a definition cannot give them.
    :param option: of the command line by which such a setting can be given; named in the error for a missing one.
    :param beside: other keys that stand where the settings do; suggested, too.
    :raises UsageError: for either.
    """
    parameters = parameters_of(cls, where)
    open_ended = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())
    for name in settings:
        if name not in parameters and not open_ended and name in hidden:
            raise UsageError(f"{where}: it takes no {name!r}, which it is always given: expected a class that does")
        if name not in parameters and not open_ended:
            raise unknown(f"setting of {where}", name, {*(set(parameters) - hidden), *beside})
    _refuse_missing(parameters, settings, where, option)
    refuse_wrong_types(cls, {name: value for name, value in settings.items() if name not in hidden}, where)
    try:
        return cls(**settings)
    except (TypeError, ValueError) as error:
        raise UsageError(f"{where}: {error}") from error
    except Exception as error:  # somebody else's constructor may fail in any way
        raise UsageError(f"{where}: {type(error).__name__}: {error}") from error


def _refuse_missing(
    parameters: Mapping[str, inspect.Parameter], settings: dict[str, Any], where: str, option: str | None
) -> None:
    """Sees that everything is given that has no default."""
    for name, parameter in parameters.items():
        optional = parameter.default is not parameter.empty or parameter.kind in (
            parameter.VAR_KEYWORD,
            parameter.VAR_POSITIONAL,
        )
        if not optional and name not in settings:
            given = f"{name}: ..." if option is None else f"{option} {name}=… (in a definition {name}: …)"
            raise UsageError(f"{where}: it needs {name!r}: expected {given}")


def _evaluator(spec: BenchmarkSpec, row: Row, benchmark: CLScenario, loggers: Sequence[BaseLogger]) -> EvaluationPlugin:
    threshold = given_or(spec.threshold, benchmark.threshold)
    metric = metric_of(spec, benchmark)
    checkpoints, measures = checkpoints_of(spec, benchmark), measures_of(spec, benchmark)
    if row.comparator:  # no learner that comes to one round after the other, but has all of each
        checkpoints, measures = sizes_of(spec, benchmark)[-1:], ()
    return EvaluationPlugin(
        [] if threshold is None else metrics.efficiency_metrics(threshold=threshold),
        metrics.checkpoint_metrics(checkpoints=checkpoints, metric=metric),
        metrics.final_performance_metrics(metric=metric),
        metrics.learning_curve_metrics(metric=metric),
        metrics.measure_metrics(measures, benchmark),
        loggers=list(loggers),
    )


def sizes_of(spec: BenchmarkSpec, benchmark: CLScenario) -> list[int]:
    """Datapoints of a round after each arrival that is evaluated."""
    arrivals = given_or(spec.arrivals, benchmark.arrivals)
    sizes = scored(cumulative_sizes(round_size(spec.name, benchmark), arrivals), given_or(spec.score, SCORES[0]))
    if not sizes:
        raise UsageError(f"{spec.name}: score next_arrival: a round comes in one arrival: expected at least two")
    return sizes


def round_size(where: str, benchmark: CLScenario) -> int:
    """Datapoints of a round.

    :raises UsageError: if rounds differ: a table's columns are of as many datapoints in each.
    """
    sizes = {len(experience.dataset) for experience in benchmark.train_stream}
    if len(sizes) > 1:
        raise UsageError(
            f"{where}: rounds of {min(sizes)} to {max(sizes)} datapoints: a leaderboard expects rounds of one size"
        )
    return sizes.pop()


def checkpoints_of(spec: BenchmarkSpec, benchmark: CLScenario) -> list[int]:
    """At how many datapoints performance is reported: as a definition says; of the benchmark's own those at
    which an arrival ends, where a definition cuts rounds otherwise; or the whole round."""
    if spec.checkpoints is not None:
        return list(spec.checkpoints)
    sizes = sizes_of(spec, benchmark)
    return [size for size in sizes if size in benchmark.checkpoints] or sizes[-1:]


def metric_of(spec: BenchmarkSpec, benchmark: CLScenario) -> str:
    """What performance is measured in: the threshold's metric; without one, accuracy where there are classes."""
    threshold = given_or(spec.threshold, benchmark.threshold)
    if threshold is not None:
        return threshold[0]
    return "accuracy" if has_classes(benchmark) else "loss"


def has_classes(benchmark: CLScenario) -> bool:
    """Whether it is a stream of classification tasks."""
    return hasattr(benchmark.train_stream[0].dataset, "targets")


def measures_of(spec: BenchmarkSpec, benchmark: CLScenario) -> tuple[str, ...]:
    """What is measured beside loss and accuracy; of the benchmark's own nothing where it would be of other data."""
    own = () if spec.other_than_all_rounds else getattr(benchmark, "measures", ())
    return given_or(spec.measures, own)


def given_or(value: Any, default: Any) -> Any:
    """What a definition gives, or else the benchmark's own."""
    return default if value is None else value
