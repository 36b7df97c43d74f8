"""What is audited: every registered stream, learner and engine with each other, but for a list of exceptions.

The tables say in which size; that all names stand in them is seen to (`missing`). A scenario takes a tenth of a second.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from ftml_bench import registry
from ftml_bench.adaptation import ENGINES
from ftml_bench.adaptation.inner_loop import MEMORY


@dataclass(frozen=True)
class Stream:
    """A stream in small: two rounds of two arrivals."""

    settings: dict[str, Any]
    arrivals: int
    lr: float  # of SGD, which hides no factor of a gradient
    model: dict[str, Any] | None = None  # None: the stream's own
    data: str | None = None  # what has to lie in the data folder


@dataclass(frozen=True)
class Row:
    """A learner with its settings; one that takes `engine` is audited with all of them."""

    strategy: str
    settings: dict[str, Any]
    model: dict[str, Any] | None = None  # None: the stream's
    streams: tuple[str, ...] | None = None  # None: all
    by_auto_alone: bool = False  # what FTML has with every engine, and nothing more of engines


@dataclass(frozen=True)
class Scenario:
    """What is run; `engine` and `memory` are empty for a learner that takes none."""

    stream: str
    row: str
    engine: str = ""
    memory: str = ""

    def __str__(self) -> str:
        return f"{self.stream} {self.row}" + (f" {self.engine}/{self.memory}" if self.engine else "")


_NET = {"name": "RainbowNet", "layers": 3, "filters": 4, "image_size": 14}
_POINTS = {"rounds": 2, "images_per_round": 12, "held_out_per_round": 10}
_TENS = {**_POINTS, "images_per_round": 20}  # as many of each digit
STREAMS = {
    "RainbowMNIST": Stream({**_POINTS, "image_size": 14}, 6, 0.1, _NET, "MNIST/raw"),
    "RainbowDigits": Stream({**_POINTS, "image_size": 14}, 6, 0.1, _NET),
    "FiveWayCIFAR100": Stream(
        {"rounds": 2, "images_per_class": 4, "held_out_per_class": 2, "subset": True},
        10,
        0.1,
        {**_NET, "image_size": 32, "classes": 5},
        "cifar-100-subset/train",
    ),
    "ColoredMNIST": Stream({**_TENS, "image_size": 14}, 10, 0.1, _NET, "MNIST/raw"),
    "ColoredDigits": Stream({**_TENS, "image_size": 14}, 10, 0.1, _NET),
    "ObjectPose": Stream(
        {**_POINTS, "image_size": 32},
        6,
        0.001,  # with more a net as small as this one diverges
        {"name": "PoseNet", "layers": 3, "filters": 4, "hidden": 8, "image_size": 32},
    ),
    "Sinusoids": Stream(_POINTS, 6, 0.01),
    "LinearRegression": Stream({**_POINTS, "rounds": 3}, 12, 0.1),  # whole rounds, as the closed forms are of
    "HiddenBoundaries": Stream({**_POINTS, "of": "RainbowDigits"}, 6, 0.1, _NET),
}

STEPS = 2  # training steps an arrival
_META = {"inner_steps": 2, "update_steps": 2, "meta_batch_size": 2, "support_size": 3, "query_size": 2}


def _without(settings: dict[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in settings.items() if key != name}


ROWS = {
    "FTML": Row("FTML", _META),
    "TrainOnEverything": Row("TrainOnEverything", {"train_mb_size": 8}),
    "FromScratch": Row("FromScratch", {"train_mb_size": 8}),
    "FollowTheLeader": Row("FollowTheLeader", {"train_mb_size": 8, "group_size": 4, "update_steps": 2}),
    "Reptile": Row("Reptile", _without(_META, "query_size"), by_auto_alone=True),
    "ANIL": Row("ANIL", _META, by_auto_alone=True),
    "MetaSGD": Row("MetaSGD", {**_META, "inner_clip": 1.0}, by_auto_alone=True),
    "MAMLPlusPlus": Row("MAMLPlusPlus", {**_META, "multi_loss_steps": 8, "inner_clip": 1.0}, by_auto_alone=True),
    "FTMLVS": Row("FTMLVS", {**_META, "inner_clip": 0.1, "batch_norm": "transductive"}, by_auto_alone=True),
    "MOGD": Row("MOGD", _META, by_auto_alone=True),
    "MOML": Row("MOML", {**_META, "window": 2}, by_auto_alone=True),
    "TaskAverages": Row("TaskAverages", {"inner_steps": 2, "update_steps": 2}, by_auto_alone=True),
    "IMAML": Row("IMAML", {**_META, "cg_steps": 2}, by_auto_alone=True),
    "ContinualMAML": Row("ContinualMAML", {**_META, "gamma": -1.0}, by_auto_alone=True),
    "FOML": Row("FOML", _META, by_auto_alone=True),
    # all data in every step, as in the closed forms of appendix A
    "FTML-exact": Row(
        "FTML",
        {"inner_steps": 1, "update_steps": 1, "meta_batch_size": None, "support_size": None, "query_size": None},
        streams=("LinearRegression",),
    ),
    "FTML-heads": Row("FTML", _META, {**_NET, "name": "MultiHeadNet", "heads": 2, "classes": 10}, ("RainbowDigits",)),
    "Naive": Row("avalanche.training:Naive", {"train_mb_size": 4}, streams=("RainbowDigits", "Sinusoids")),
    "EWC": Row("avalanche.training:EWC", {"train_mb_size": 4, "ewc_lambda": 1.0}, streams=("RainbowDigits",)),
    "Replay": Row(
        "avalanche.training:Replay", {"train_mb_size": 4, "mem_size": 8}, streams=("RainbowDigits", "Sinusoids")
    ),
}

_UNROLL_ALONE = "engine 'higher' takes memory='unroll' only, not 'adjoint': use engine='loop' or 'auto'"
_ADJOINT_ALONE = "engine 'vmap' takes memory='adjoint' only, not 'unroll': use engine='loop' or 'auto'"
_NO_LABELS = "engine={!r} passes no task labels, which MultiHeadNet takes: expected engine='loop' or 'auto'"
# What cannot be: a pattern of scenarios -> the line by which each of them is refused.
EXCEPTIONS = {
    "* FTML higher/adjoint": _UNROLL_ALONE,
    "* FTML-exact higher/adjoint": _UNROLL_ALONE,
    "* FTML vmap/unroll": _ADJOINT_ALONE,
    "* FTML-exact vmap/unroll": _ADJOINT_ALONE,
    **{f"* FTML-heads {name}/*": _NO_LABELS.format(name) for name in ("higher", "vmap", "batched", "native")},
    "Sinusoids Replay": "Replay needs classes: it cannot be run on a regression stream",
}


def scenarios() -> Iterator[Scenario]:
    """Every scenario whose names stand in the tables, exceptions included; those of one stream after each other."""
    for stream in filter(STREAMS.__contains__, registry.BENCHMARKS):
        for name, row in ROWS.items():
            if not _is_there(row) or (row.streams is not None and stream not in row.streams):
                continue
            if "engine" in inspect.signature(registry.load("strategy", row.strategy)).parameters:
                of = [("auto", "auto")] if row.by_auto_alone else ways()
                yield from (Scenario(stream, name, engine, memory) for engine, memory in of)
            else:
                yield Scenario(stream, name)


def _is_there(row: Row) -> bool:
    return ":" in row.strategy or row.strategy in registry.STRATEGIES


def ways() -> Iterator[tuple[str, str]]:
    """Every engine with each way to spare memory; "auto" also where it may choose that."""
    for engine in (*ENGINES, "auto"):
        yield from ((engine, memory) for memory in MEMORY if memory != "auto" or engine == "auto")


def refusal(scenario: Scenario) -> str | None:
    """The line by which an exception is refused; None for what is no exception."""
    return next((line for pattern, line in EXCEPTIONS.items() if fnmatchcase(str(scenario), pattern)), None)


def missing() -> Iterator[str]:
    """What the tables and the registry do not have in common, a line each."""
    streams, everywhere = registry.BENCHMARKS, {row.strategy for row in ROWS.values() if row.streams is None}
    yield from (f"stream {name} is registered and not in STREAMS" for name in streams if name not in STREAMS)
    yield from (f"stream {name} is in STREAMS and not registered" for name in STREAMS if name not in streams)
    yield from (
        f"learner {name} is registered and in no row of ROWS for all streams"
        for name in registry.STRATEGIES
        if name not in everywhere
    )
    yield from (f"learner {row.strategy} is in ROWS and not registered" for row in ROWS.values() if not _is_there(row))
    names = [str(scenario) for scenario in scenarios()]
    yield from (
        f"exception {pattern!r} is of no scenario"
        for pattern in EXCEPTIONS
        if not any(fnmatchcase(name, pattern) for name in names)
    )
