"""What a contract is, what came of it, and the contracts that hold for all kinds of classes."""

from __future__ import annotations

import inspect
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from ftml_bench import registry
from ftml_bench.errors import printable
from ftml_bench.random_state import preserved_random_state
from ftml_bench.runs.definition import BenchmarkSpec, from_dict
from ftml_bench.runs.signatures import parameters_of
from ftml_bench.runs.values import folder_for

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
        return f"{self.verdict:<11} {self.contract}" + (f": {printable(self.why)}" if self.why else "")


class BrokenError(Exception):
    """The contract does not hold; says what was found."""


class NotTestedError(Exception):
    """The contract cannot be tried here; says why."""


def outcome_of(title: str, contract: Callable[[Any], None], subject: Any) -> Outcome:
    """What becomes of a contract on a subject."""
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


def small(benchmark: str, settings: dict[str, Any], row: dict[str, Any]) -> BenchmarkSpec:
    """A benchmark of a leaderboard with one row, of few rounds where it can be.

    :param settings: of the benchmark.
    :param row: the strategy and its settings.
    :raises UsageError: for what a definition cannot say.
    """
    taken = parameters_of(registry.load("benchmark", benchmark), benchmark)
    entry = {
        "benchmark": benchmark,
        "settings": {**{key: size for key, size in SMALL.items() if key in taken}, **settings},
        "steps": STEPS,
        "optimizer": {"name": "SGD", "lr": 0.01},
        "checkpoints": [sum(ARRIVALS)],
        "strategies": {folder_for(row["strategy"]): row},  # errors name both by these names
    }
    content = {"name": "check", "seeds": [0], "benchmarks": {folder_for(benchmark): entry}}
    return from_dict(content, "check").benchmarks[0]


def disturb() -> None:
    """Whatever else may have been drawn in a process before."""
    torch.rand(3)
    disturb_host()


def disturb_host() -> None:
    """The same of `random` and NumPy alone, which no layer of PyTorch's draws from."""
    random.random()
    np.random.rand(3)


def keyword_only(subject: Any) -> None:
    """No argument can be given by position."""
    for parameter in inspect.signature(subject.cls).parameters.values():
        if parameter.kind not in (parameter.KEYWORD_ONLY, parameter.VAR_KEYWORD):
            raise BrokenError(f"{parameter.name!r} can be given by position: put a * before it")


def misspelt_raises(subject: Any) -> None:
    """A keyword that does not exist is not taken."""
    try:
        subject.construct(**{_MISSPELT: 1})
    except (TypeError, ValueError):
        return
    raise BrokenError(f"{_MISSPELT}=1 was taken without a word")


def equal(a: list[Tensor], b: list[Tensor]) -> bool:
    """Whether all tensors are equal."""
    return len(a) == len(b) and all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def batch(dataset: Any, count: int) -> tuple[Tensor, Tensor]:
    """The first points of a dataset, stacked: inputs and targets."""
    points = [dataset[i] for i in range(count)]
    return torch.stack([torch.as_tensor(p[0]) for p in points]), torch.stack([torch.as_tensor(p[1]) for p in points])
