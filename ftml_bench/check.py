"""What every strategy, benchmark and model has to hold, as tests that run on any of them: `ftml-bench check NAME`.

Everything is tried in small: a few rounds of a few datapoints, two training steps an arrival, as a leaderboard would
build it. A contract is a function that returns if it holds and raises `BrokenError` or `NotTestedError` if not; any
other error of the class that is checked breaks the contract too.
"""

from __future__ import annotations

import hashlib
import inspect
import math
import random
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import dataclass
from itertools import islice, pairwise
from typing import Any, Literal

import numpy as np
import torch
from avalanche.benchmarks import CLScenario
from avalanche.core import SupervisedPlugin
from avalanche.logging import BaseLogger
from avalanche.models import MultiTaskModule
from avalanche.training.templates import SupervisedTemplate
from avalanche.training.templates.base_sgd import BaseSGDTemplate
from torch import Tensor, nn
from torch.func import functional_call

from ftml_bench import cell, registry, saving
from ftml_bench.adaptation import make_engine
from ftml_bench.benchmarks.arrivals import arrivals, cumulative_sizes
from ftml_bench.definition import from_dict
from ftml_bench.errors import UsageError, unknown
from ftml_bench.models.norm import batch_statistics, convert_batch_norm, has_norm
from ftml_bench.protocol import evaluations, held_out
from ftml_bench.strategies.base import Learner, preserved_random_state

SMALL = {"rounds": 3, "images_per_round": 24, "held_out_per_round": 20}
ARRIVALS = (8, 8, 8)
STEPS = 2
_MISSPELT = "no_such_keyword"


@dataclass(frozen=True)
class Outcome:
    """What became of one contract."""

    contract: str
    verdict: Literal["holds", "broken", "not tested"]
    why: str = ""

    def __str__(self) -> str:
        return f"{self.verdict:<11} {self.contract}" + (f": {self.why}" if self.why else "")


class BrokenError(Exception):
    """The contract does not hold; says what was found."""


class NotTestedError(Exception):
    """The contract cannot be tried here; says why."""


def check(
    name: str,
    settings: dict[str, Any] | None = None,
    *,
    benchmark: str = "RainbowDigits",
    benchmark_settings: dict[str, Any] | None = None,
) -> Iterator[Outcome]:
    """Try all contracts of a strategy, benchmark or model, one after the other.

    :param name: a name that `registry.resolve` knows, or "module:Class".
    :param settings: keywords of its constructor.
    :param benchmark: what strategies and models are tried on.
    :param benchmark_settings: keywords of that benchmark's constructor; sizes are small by default.
    :raises UsageError: for a name or setting that does not exist, before anything is tried.
    """
    kind, cls = _find(name)
    settings = dict(settings or {})
    subject: Any
    contracts: dict[str, Callable[[Any], None]]
    if kind == "benchmark":
        subject, contracts = BenchmarkSubject(cls, settings), BENCHMARK_CONTRACTS
    elif kind == "strategy":
        subject = StrategySubject(name, cls, settings, benchmark, dict(benchmark_settings or {}))
        contracts = STRATEGY_CONTRACTS
    else:
        subject = ModelSubject(cls, settings, benchmark, dict(benchmark_settings or {}))
        contracts = MODEL_CONTRACTS
    return (_outcome(title, contract, subject) for title, contract in contracts.items())


def _find(name: str) -> tuple[str, type]:
    kinds = ("strategy", "benchmark", "model")
    if ":" in name:
        cls = registry.load("class", name)
        bases = {"strategy": BaseSGDTemplate, "benchmark": CLScenario, "model": nn.Module}
        for kind, base in bases.items():
            if inspect.isclass(cls) and issubclass(cls, base):
                return kind, cls
        raise UsageError(f"{name} is no strategy (SupervisedTemplate), benchmark (CLScenario) or model (nn.Module)")
    for kind in kinds:
        if name in registry.entries(kind):
            return kind, registry.load(kind, name)
    raise unknown("strategy, benchmark or model", name, [n for kind in kinds for n in registry.entries(kind)])


def _outcome(title: str, contract: Callable[[Any], None], subject: Any) -> Outcome:
    try:
        with preserved_random_state(torch.device("cpu")):
            contract(subject)
    except NotTestedError as reason:
        return Outcome(title, "not tested", str(reason))
    except BrokenError as reason:
        return Outcome(title, "broken", str(reason))
    except Exception as error:  # somebody else's class may fail in any way
        return Outcome(title, "broken", f"{type(error).__name__}: {' '.join(str(error).split())}")
    return Outcome(title, "holds")


def _disturb() -> None:
    """Whatever else may have been drawn in a process before."""
    torch.rand(3)
    random.random()
    np.random.rand(3)


def _keyword_only(subject: Any) -> None:
    for parameter in inspect.signature(subject.cls).parameters.values():
        if parameter.kind not in (parameter.KEYWORD_ONLY, parameter.VAR_KEYWORD):
            raise BrokenError(f"{parameter.name!r} can be given by position: put a * before it")


def _misspelt_raises(subject: Any) -> None:
    try:
        subject.construct(**{_MISSPELT: 1})
    except (TypeError, ValueError):
        return
    raise BrokenError(f"{_MISSPELT}=1 was taken without a word")


# -- strategies


class _Outputs(SupervisedPlugin):
    """Keeps what was predicted in the latest evaluation, by experience."""

    def __init__(self) -> None:
        super().__init__()
        self.of: dict[int, Tensor] = {}

    def after_eval_forward(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        self.of[strategy.experience.current_experience] = strategy.mb_output.clone()


class _Emitted(BaseLogger):
    def __init__(self) -> None:
        super().__init__()
        self.values: list[tuple[str, Any]] = []

    def log_single_metric(self, name: str, value: Any, x_plot: Any) -> None:
        self.values.append((name, value))


class StrategySubject:
    """A strategy as a row of a leaderboard on a small benchmark."""

    def __init__(
        self,
        name: str,
        cls: type,
        settings: dict[str, Any],
        benchmark: str,
        benchmark_settings: dict[str, Any],
    ) -> None:
        self.cls = cls
        taken = inspect.signature(registry.load("benchmark", benchmark)).parameters
        small = {key: size for key, size in SMALL.items() if key in taken}
        if "train_mb_size" in inspect.signature(cls).parameters:
            settings = {"train_mb_size": 8, **settings}
        self.settings = {"strategy": name, **settings}
        self.entry = {
            "benchmark": benchmark,
            "settings": {**small, **benchmark_settings},
            "steps": STEPS,
            "optimizer": {"name": "SGD", "lr": 0.01},
            "checkpoints": [ARRIVALS[0]],
        }
        self.build()  # a setting that does not exist is the caller's to mend

    def _spec(self, **changes: Any) -> Any:
        rows = {"checked": {**self.settings, **changes}}
        content = {"name": "check", "seeds": [0], "benchmarks": {"small": {**self.entry, "strategies": rows}}}
        return from_dict(content, "check").benchmarks[0]

    def benchmark(self) -> CLScenario:
        return cell._build_benchmark(self._spec(), 0, None)

    def build(self, benchmark: CLScenario | None = None, **changes: Any) -> SupervisedTemplate:
        spec = self._spec(**changes)
        return cell._build_strategy(spec, spec.rows[0], benchmark or self.benchmark(), 0)

    def construct(self, **changes: Any) -> None:
        """By the class itself: a leaderboard would see the keyword before."""
        model = self.benchmark().model()
        given = {key: value for key, value in self.settings.items() if key != "strategy"}
        self.cls(model=model, optimizer=torch.optim.SGD(model.parameters(), lr=0.1), **given, **changes)

    def run(self, **changes: Any) -> tuple[SupervisedTemplate, list[Any]]:
        """After the whole protocol, as often as it is called the same."""
        benchmark = self.benchmark()
        strategy = self.build(benchmark, **changes)
        return strategy, list(evaluations(strategy, benchmark, ARRIVALS))


def _state(strategy: SupervisedTemplate) -> list[Tensor]:
    """Copies of parameters, buffers and the optimiser's state."""
    values: list[Any] = [*strategy.model.state_dict().values()]
    for of_parameter in strategy.optimizer.state_dict()["state"].values():
        values += of_parameter.values()
    return [value.clone() for value in values if isinstance(value, Tensor)]


def _equal(a: list[Tensor], b: list[Tensor]) -> bool:
    return len(a) == len(b) and all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def _random_states() -> list[Any]:
    return [random.getstate(), str(np.random.get_state(legacy=False)), torch.get_rng_state().tolist()]


def _same_seed_same_result(subject: StrategySubject) -> None:
    first, curve = subject.run()
    _disturb()
    second, again = subject.run()
    if curve != again or not _equal(_state(first), _state(second)):
        raise BrokenError("two runs with one seed differ: draw from generators that `seed` seeds")


def _evaluation_changes_nothing(subject: StrategySubject) -> None:
    benchmark, outputs = subject.benchmark(), _Outputs()
    strategy, alone = subject.build(benchmark), subject.build(benchmark)
    strategy.plugins.insert(0, outputs)
    for round in benchmark.train_stream[:2]:
        for arrival in arrivals(round, ARRIVALS):
            strategy.train(arrival, eval_streams=[])
            before, drawn = _state(strategy), _random_states()
            strategy.eval([held_out(benchmark, round)])
            if not _equal(before, _state(strategy)):
                raise BrokenError("parameters, buffers or the optimiser's state are others after an evaluation")
            if drawn != _random_states():
                raise BrokenError("an evaluation draws from a global random generator")
    for round in benchmark.train_stream[:2]:
        for arrival in arrivals(round, ARRIVALS):
            alone.train(arrival, eval_streams=[])
    streams = [held_out(benchmark, 0), held_out(benchmark, 1)]
    strategy.eval(streams)
    first, outputs.of = outputs.of, {}
    strategy.eval(streams[::-1])
    if not all(torch.equal(first[t], outputs.of[t]) for t in (0, 1)):
        raise BrokenError("predictions change with the order in which experiences are evaluated")
    if not _equal(_state(strategy), _state(alone)):
        raise BrokenError("a run with evaluations ends with other parameters than one without")


def _one_sample_arrivals(subject: StrategySubject) -> None:
    benchmark = subject.benchmark()
    strategy = subject.build(benchmark)
    for evaluation in evaluations(strategy, benchmark, [1, 1, 22]):
        if not math.isfinite(evaluation.loss):
            raise BrokenError(f"after {evaluation.datapoints} datapoints the loss is {evaluation.loss}")


def _empty_arrival(subject: StrategySubject) -> None:
    benchmark = subject.benchmark()
    strategy = subject.build(benchmark)
    first, second, _ = arrivals(benchmark.train_stream[0], ARRIVALS)
    strategy.train(first, eval_streams=[])
    before = _state(strategy)
    second._dataset = second.dataset.subset([])
    if hasattr(second, "stacked"):
        second.stacked = second.stacked.subset(torch.arange(0))
    try:
        strategy.train(second, eval_streams=[])
    except Exception:
        return  # refused
    after = _state(strategy)
    if not all(torch.isfinite(value).all() for value in after if value.is_floating_point()):
        raise BrokenError("an arrival without datapoints leaves parameters that are not finite")
    if len(before) != len(after):
        raise BrokenError("an arrival without datapoints changes the model's shape")


def _finite_metrics(subject: StrategySubject) -> None:
    benchmark, emitted = subject.benchmark(), _Emitted()
    strategy = subject.build(benchmark)
    strategy.evaluator.loggers.append(emitted)
    for evaluation in evaluations(strategy, benchmark, ARRIVALS):
        for what in ("loss", "accuracy"):
            value = getattr(evaluation, what)
            if value is not None and not math.isfinite(value):
                raise BrokenError(f"{what} {value} in round {evaluation.round}")
    if not emitted.values:
        raise BrokenError("no metric was emitted: are the evaluator's hooks called?")
    for name, value in emitted.values:
        if not isinstance(value, int | float) or not math.isfinite(value):
            raise BrokenError(f"{name} is {value!r}")


def _budget(subject: StrategySubject) -> None:
    benchmark = subject.benchmark()
    strategy = subject.build(benchmark)
    steps = [e.steps for e in evaluations(strategy, benchmark, ARRIVALS)]
    if any(after < before for before, after in pairwise(steps)) or steps[-1] == 0:
        raise BrokenError(f"the steps counted after each arrival are {steps}")


def _no_leak(subject: StrategySubject) -> None:
    """After the first round and one arrival more: what is to come and the labels held out must not matter."""
    predictions = []
    for poisoned in (False, True):
        benchmark, outputs = subject.benchmark(), _Outputs()
        if not all(hasattr(e, "stacked") for e in [*benchmark.train_stream, *benchmark.test_stream]):
            raise NotTestedError("the benchmark's experiences have no .stacked to be changed")
        if poisoned:
            _poison(benchmark)
        strategy = subject.build(benchmark)
        strategy.plugins.insert(0, outputs)
        for round, count in ((0, len(ARRIVALS)), (1, 1)):
            for arrival in islice(arrivals(benchmark.train_stream[round], ARRIVALS), count):
                strategy.train(arrival, eval_streams=[])
        strategy.eval([held_out(benchmark, 1), held_out(benchmark, 0)])
        predictions.append(outputs.of)
    if not all(torch.equal(predictions[0][t], predictions[1][t]) for t in (0, 1)):
        raise BrokenError("predictions change with data that have not arrived, or with held-out labels")


def _poison(benchmark: CLScenario) -> None:
    """Spoil, in place, all held-out labels and every datapoint of the later rounds and of round 1's later arrivals."""
    for experience in benchmark.test_stream:
        _spoil(experience.stacked.y)
    first = next(arrivals(benchmark.train_stream[1], ARRIVALS)).stacked.rows
    for experience in benchmark.train_stream[1:]:
        data = experience.stacked
        late = ~torch.isin(data.rows, first) if experience.current_experience == 1 else torch.ones_like(data.rows) > 0
        for values, rows in ((data.x, data.rows[late]), (data.y, late)):
            part = values[rows]
            _spoil(part)
            values[rows] = part


def _spoil(values: Tensor) -> None:
    """Other values of the same kind: bytes inverted, classes exchanged, numbers far away."""
    if values.dtype == torch.uint8:
        values.copy_(255 - values)
    elif values.is_floating_point():
        values += 1000
    else:
        values.copy_(values.max() - values)


def _save_and_resume(subject: StrategySubject) -> None:
    """Stopped in the middle of the second round, and gone on with in a strategy built anew."""
    benchmark = subject.benchmark()
    stream = [arrival for round in benchmark.train_stream[:2] for arrival in arrivals(round, ARRIVALS)]
    whole, resumed = subject.build(benchmark), subject.build(benchmark)
    if not isinstance(whole, Learner):
        raise NotTestedError("it is no Learner: cells with it are done again from their start")
    half = len(ARRIVALS) + 1
    for arrival in stream[:half]:
        whole.train(arrival, eval_streams=[])
    state = saving.state_dict(whole)
    for arrival in stream[half:]:
        whole.train(arrival, eval_streams=[])
    _disturb()
    done = saving.load_state_dict(resumed, state, stream)
    for arrival in stream[done:]:
        resumed.train(arrival, eval_streams=[])
    if not _equal(_state(whole), _state(resumed)):
        raise BrokenError("saved and gone on with, parameters end differently: extend state_dict and load_state_dict")


def _another_device(subject: StrategySubject) -> None:
    if not torch.cuda.is_available():
        raise NotTestedError("there is no other device here")
    strategy, curve = subject.run(device="cuda")
    if any(p.device.type != "cuda" for p in strategy.model.parameters()):
        raise BrokenError("device='cuda' leaves parameters where they were")
    if not all(math.isfinite(e.loss) for e in curve):
        raise BrokenError("losses are not finite there")


# A contract is added here, and nowhere else.
STRATEGY_CONTRACTS: dict[str, Callable[[Any], None]] = {
    "keyword-only constructor": _keyword_only,
    "a misspelt keyword raises": _misspelt_raises,
    "same seed, same result": _same_seed_same_result,
    "evaluation changes nothing": _evaluation_changes_nothing,
    "training steps are taken and counted": _budget,
    "an empty arrival is refused or harmless": _empty_arrival,
    "arrivals of one sample": _one_sample_arrivals,
    "metrics are finite numbers": _finite_metrics,
    "no leak of what has not arrived or is held out": _no_leak,
    "save and resume": _save_and_resume,
    "another device": _another_device,
}


# -- benchmarks


class BenchmarkSubject:
    """A benchmark of few rounds."""

    def __init__(self, cls: type, settings: dict[str, Any]) -> None:
        self.cls = cls
        self.settings = {"rounds": SMALL["rounds"], **settings}
        self._built: CLScenario | None = None
        if {"seed", "rounds"} <= set(inspect.signature(cls).parameters):
            self.benchmark()  # missing data, or a setting that does not exist, are the caller's to mend

    def benchmark(self) -> CLScenario:
        """One to look at."""
        if self._built is None:
            self._built = self.construct()
        return self._built

    def construct(self, **changes: Any) -> CLScenario:
        given = {**self.settings, **changes}
        return cell._construct(self.cls, {"seed": 0, **given}, self.cls.__name__, hidden=set())


def _points(stream: Any) -> list[list[tuple[str, bytes]]]:
    """For every experience a digest of each input, and its label."""
    found = []
    for experience in stream:
        points = []
        for x, y, *_ in (experience.dataset[i] for i in range(len(experience.dataset))):
            digest = hashlib.sha256(torch.as_tensor(x).contiguous().numpy().tobytes()).hexdigest()
            points.append((digest, torch.as_tensor(y).numpy().tobytes()))
        found.append(points)
    return found


def _seed_and_rounds(subject: BenchmarkSubject) -> None:
    for name in ("seed", "rounds"):
        if name not in inspect.signature(subject.cls).parameters:
            raise BrokenError(f"the constructor takes no {name!r}")
    benchmark, rounds = subject.benchmark(), subject.settings["rounds"]
    lengths = len(benchmark.train_stream), len(benchmark.test_stream)
    if lengths != (rounds, rounds):
        raise BrokenError(f"rounds={rounds} makes {lengths[0]} rounds of data and {lengths[1]} of held-out data")


def _same_seed_same_stream(subject: BenchmarkSubject) -> None:
    _disturb()
    benchmark, again = subject.benchmark(), subject.construct()
    for name in ("train_stream", "test_stream"):
        if _points(getattr(benchmark, name)) != _points(getattr(again, name)):
            raise BrokenError(f"two benchmarks with one seed differ in their {name}")


def _other_seed_other_stream(subject: BenchmarkSubject) -> None:
    if _points(subject.benchmark().train_stream) == _points(subject.construct(seed=1).train_stream):
        raise BrokenError("seed=1 makes the same stream as seed=0")


def _held_out_is_held_out(subject: BenchmarkSubject) -> None:
    benchmark = subject.benchmark()
    train = {digest for points in _points(benchmark.train_stream) for digest, _ in points}
    for t, points in enumerate(_points(benchmark.test_stream)):
        shared = sum(digest in train for digest, _ in points)
        if shared:
            raise BrokenError(
                f"{shared} of the {len(points)} held-out inputs of round {t} are training data of some round"
            )


def _experiences(subject: BenchmarkSubject) -> None:
    benchmark, labels = subject.benchmark(), []
    for name in ("train", "test"):
        stream = getattr(benchmark, f"{name}_stream")
        if stream.name != name:
            raise BrokenError(f"the {name} stream is called {stream.name!r}")
        for t, experience in enumerate(stream):
            number, size = experience.current_experience, len(experience.dataset)
            if number != t or not size:
                raise BrokenError(f"round {t} of {name} has the number {number} and {size} points")
            labels.append(experience.task_label)
    half = len(labels) // 2
    if labels[:half] != labels[half:] or len(set(labels[:half])) < half:
        raise BrokenError("task labels have to differ from round to round, and a round's held-out data carry its label")


def _defaults(subject: BenchmarkSubject) -> None:
    """What a leaderboard takes from a benchmark where its definition is silent."""
    benchmark = subject.benchmark()
    for name in ("threshold", "checkpoints", "arrivals", "criterion", "inner_lr", "update_steps", "model"):
        if not hasattr(benchmark, name):
            raise BrokenError(f"it has no .{name}")
    if benchmark.threshold is not None:
        metric, value = benchmark.threshold
        if metric not in ("accuracy", "loss") or not value > 0:
            raise BrokenError(
                f".threshold is {benchmark.threshold}: expected (accuracy or loss, number above 0) or None"
            )
    if not benchmark.inner_lr > 0 or not isinstance(benchmark.update_steps, int) or benchmark.update_steps < 1:
        raise BrokenError(f".inner_lr is {benchmark.inner_lr}, .update_steps {benchmark.update_steps}")
    sizes = cumulative_sizes(len(benchmark.train_stream[0].dataset), benchmark.arrivals)
    late = [checkpoint for checkpoint in benchmark.checkpoints if checkpoint not in sizes]
    if late:
        raise BrokenError(f"no arrival ends at the checkpoints {late}")


def _own_model_learns(subject: BenchmarkSubject) -> None:
    benchmark = subject.benchmark()
    dataset = benchmark.train_stream[0].dataset
    x, y = _batch(dataset, min(len(dataset), 8))
    model = benchmark.model()
    loss = benchmark.criterion(model(x), y)
    loss.backward()
    if not torch.isfinite(loss) or not any(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters()):
        raise BrokenError(f".criterion of .model() is {float(loss.detach())} and has no gradient")


def _batch(dataset: Any, count: int) -> tuple[Tensor, Tensor]:
    points = [dataset[i] for i in range(count)]
    return torch.stack([torch.as_tensor(p[0]) for p in points]), torch.stack([torch.as_tensor(p[1]) for p in points])


BENCHMARK_CONTRACTS: dict[str, Callable[[Any], None]] = {
    "keyword-only constructor": _keyword_only,
    "a misspelt keyword raises": _misspelt_raises,
    "takes seed and rounds": _seed_and_rounds,
    "same seed, same stream": _same_seed_same_stream,
    "another seed, another stream": _other_seed_other_stream,
    "no held-out input is training data": _held_out_is_held_out,
    "rounds are numbered and labelled": _experiences,
    "has the defaults that a leaderboard takes": _defaults,
    "its model and criterion fit its data": _own_model_learns,
}


# -- models


class ModelSubject:
    """A model, and a few datapoints of a benchmark to feed it."""

    def __init__(self, cls: type, settings: dict[str, Any], benchmark: str, benchmark_settings: dict[str, Any]) -> None:
        self.cls, self.settings = cls, settings
        source = registry.load("benchmark", benchmark)
        small = {key: size for key, size in SMALL.items() if key in inspect.signature(source).parameters}
        made = cell._construct(source, {**small, **benchmark_settings}, benchmark, hidden=set())
        self.criterion = made.criterion
        self.x, self.y = _batch(made.train_stream[0].dataset, 12)
        self.construct()  # a setting that does not exist is the caller's to mend

    def construct(self, **changes: Any) -> nn.Module:
        torch.manual_seed(0)
        return cell._construct(self.cls, {**self.settings, **changes}, self.cls.__name__, hidden=set())

    def output(self, model: nn.Module, x: Tensor) -> Tensor:
        takes_labels = isinstance(model, MultiTaskModule)
        labels = (torch.zeros(len(x), dtype=torch.long, device=x.device),) if takes_labels else ()
        return model(x, *labels)


def _output_shape(subject: ModelSubject) -> None:
    output = subject.output(subject.construct(), subject.x)
    if not torch.isfinite(output).all():
        raise BrokenError("the output is not finite")
    shape, of_targets = tuple(output.shape), tuple(subject.y.shape)
    if subject.y.is_floating_point():
        if shape != of_targets:
            raise BrokenError(f"for targets of shape {of_targets} the output has shape {shape}")
        return
    highest = int(subject.y.max())
    if len(shape) != 2 or shape[0] != len(subject.x) or shape[1] <= highest:
        raise BrokenError(f"for {len(subject.x)} points of classes up to {highest} the output has shape {shape}")


def _same_seed_same_parameters(subject: ModelSubject) -> None:
    first = subject.construct()
    _disturb()
    if not _equal([*first.state_dict().values()], [*subject.construct().state_dict().values()]):
        raise BrokenError("torch.manual_seed does not decide its parameters")


def _one_by_one(subject: ModelSubject) -> None:
    model = subject.construct()
    with torch.no_grad():
        subject.output(model, subject.x)  # running statistics
        model.eval()
        together = subject.output(model, subject.x)
        alone = torch.cat([subject.output(model, x[None]) for x in subject.x])
    if not torch.allclose(together, alone, atol=1e-4):
        raise BrokenError("in evaluation mode a prediction depends on the other points of the batch")


def _norm_is_converted(subject: ModelSubject) -> None:
    model = subject.construct()
    if not has_norm(model):
        raise NotTestedError("it has no batch norm")
    converted = convert_batch_norm(deepcopy(model))
    with torch.no_grad():
        for mode in (True, False):
            torch.manual_seed(0)  # of layers that draw
            ours = subject.output(converted.train(mode), subject.x)
            torch.manual_seed(0)
            theirs = subject.output(model.train(mode), subject.x)
            if not torch.allclose(ours, theirs, atol=1e-4):
                raise BrokenError(
                    f"converted, the model predicts otherwise ({'training' if mode else 'evaluation'} mode)"
                )


def _moves(subject: ModelSubject) -> None:
    """On a GPU; without one on PyTorch's "meta" device, whose tensors have shapes but no numbers."""
    device = "cuda" if torch.cuda.is_available() else "meta"
    model = subject.construct().to(device)
    try:
        output = subject.output(model, subject.x.to(device))
    except (NotImplementedError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        if device == "meta" and (isinstance(error, NotImplementedError) or "item()" in reason):
            raise NotTestedError("it asks for numbers on the way, and there is no GPU here") from error
        raise BrokenError(f"moved to another device it fails: {reason}") from error
    if output.device.type != device:
        raise BrokenError(f"moved to {device!r} it gives outputs on {output.device.type!r}")


def _engine_is_exact(subject: ModelSubject) -> None:
    """The meta-gradient of the engine that "auto" picks, in float64, against the definition written out."""
    model = convert_batch_norm(subject.construct()).double().eval()
    if isinstance(model, MultiTaskModule):
        raise NotTestedError("it takes task labels")
    x = subject.x.double() if subject.x.is_floating_point() else subject.x
    y = subject.y.double() if subject.y.is_floating_point() else subject.y
    support_x, support_y, query_x, query_y = (part.unflatten(0, (2, 3)) for part in (x[:6], y[:6], x[6:], y[6:]))
    engine = make_engine("auto", model, subject.criterion, inner_lr=0.01, inner_steps=2, batch_norm="transductive")
    parameters: dict[str, Tensor] = dict(model.named_parameters())

    def gradient(outputs: Tensor) -> list[Tensor]:
        loss = subject.criterion(outputs.flatten(0, 1), query_y.flatten(0, 1))
        found = torch.autograd.grad(loss, [*parameters.values()], allow_unused=True)
        return [torch.zeros_like(p) if g is None else g for g, p in zip(found, parameters.values(), strict=True)]

    def adapted(sx: Tensor, sy: Tensor, qx: Tensor) -> Tensor:
        fast = parameters
        for _ in range(2):
            loss = subject.criterion(functional_call(model, fast, (sx,)), sy)
            steps = torch.autograd.grad(loss, [*fast.values()], create_graph=True, allow_unused=True)
            fast = {n: p if g is None else p - 0.01 * g for (n, p), g in zip(fast.items(), steps, strict=True)}
        return functional_call(model, fast, (qx,))

    with batch_statistics():
        by_hand = gradient(torch.stack([adapted(*task) for task in zip(support_x, support_y, query_x, strict=True)]))
    ours = gradient(engine.predict(parameters, (support_x, support_y), query_x))
    size = max(float(g.abs().max()) for g in by_hand)
    error = max(float((a - b).abs().max()) for a, b in zip(ours, by_hand, strict=True))
    if not error <= 1e-8 * max(size, 1e-8):
        raise BrokenError(f"the meta-gradient of {engine.name!r} is off by {error:.1e}, of {size:.1e}")


MODEL_CONTRACTS: dict[str, Callable[[Any], None]] = {
    "keyword-only constructor": _keyword_only,
    "a misspelt keyword raises": _misspelt_raises,
    "output fits the benchmark's labels": _output_shape,
    "same seed, same parameters": _same_seed_same_parameters,
    "evaluation mode predicts point by point": _one_by_one,
    "batch norm can be converted": _norm_is_converted,
    "another device": _moves,
    "an engine treats it exactly": _engine_is_exact,
}
