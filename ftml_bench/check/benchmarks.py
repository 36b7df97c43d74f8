"""The contracts of benchmarks."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable
from typing import Any

import torch
from avalanche.benchmarks import CLScenario

from ftml_bench.benchmarks.arrivals import cumulative_sizes
from ftml_bench.check.contract import (
    SMALL,
    BrokenError,
    batch,
    disturb,
    keyword_only,
    misspelt_raises,
)
from ftml_bench.errors import UsageError
from ftml_bench.runs import building, streams


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
        return building.construct(self.cls, {"seed": 0, **given}, self.cls.__name__, hidden=set())


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
    disturb()
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
                f"{shared} of the {len(points)} held-out inputs of round {t + 1} are training data of some round"
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
                raise BrokenError(f"round {t + 1} of {name} has the number {number + 1} and {size} points")
            labels.append(experience.task_label)
    half = len(labels) // 2
    if labels[:half] != labels[half:] or len(set(labels[:half])) < half:
        raise BrokenError("task labels have to differ from round to round, and a round's held-out data carry its label")


def _defaults(subject: BenchmarkSubject) -> None:
    """What a leaderboard takes from a benchmark where its definition is silent."""
    benchmark = subject.benchmark()
    try:
        streams.check(benchmark, type(benchmark).__name__)
        for name in ("inner_lr", "update_steps", "model"):
            if getattr(benchmark, name, None) is None:
                raise BrokenError(f"it has no .{name}")
        sizes = cumulative_sizes(building.round_size(".train_stream", benchmark), benchmark.arrivals)
    except UsageError as error:
        raise BrokenError(str(error)) from error
    late = [checkpoint for checkpoint in benchmark.checkpoints if checkpoint not in sizes]
    if late:
        raise BrokenError(f"no arrival ends at the checkpoints {late}")


def _version(subject: BenchmarkSubject) -> None:
    building.version_of(subject.cls, subject.cls.__name__)


def _own_model_learns(subject: BenchmarkSubject) -> None:
    benchmark = subject.benchmark()
    dataset = benchmark.train_stream[0].dataset
    x, y = batch(dataset, min(len(dataset), 8))
    model = benchmark.model()
    loss = benchmark.criterion(model(x), y)
    loss.backward()
    if not torch.isfinite(loss) or not any(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters()):
        raise BrokenError(f".criterion of .model() is {float(loss.detach())} and has no gradient")


BENCHMARK_CONTRACTS: dict[str, Callable[[Any], None]] = {
    "keyword-only constructor": keyword_only,
    "a misspelt keyword raises": misspelt_raises,
    "takes seed and rounds": _seed_and_rounds,
    "same seed, same stream": _same_seed_same_stream,
    "another seed, another stream": _other_seed_other_stream,
    "no held-out input is training data": _held_out_is_held_out,
    "rounds are numbered and labelled": _experiences,
    "has the defaults that a leaderboard takes": _defaults,
    "its version is a whole number, if it says one": _version,
    "its model and criterion fit its data": _own_model_learns,
}
