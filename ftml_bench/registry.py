"""Names of strategies, benchmarks and models -> the classes that they stand for. Nothing is imported before `load`.

A name is one of the tables below, an entry point that an installed package declares in the group
`ftml_bench.strategies`, `ftml_bench.benchmarks` or `ftml_bench.models`, or `module:Class`.
"""

from __future__ import annotations

import importlib
import inspect
import re
import sys
from dataclasses import dataclass
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from ftml_bench.errors import UsageError, unknown


@dataclass(frozen=True)
class Entry:
    """What a name stands for: `target` is "module:Class", `summary` one line for people."""

    target: str
    summary: str


STRATEGIES = {
    "FTML": Entry(
        "ftml_bench.strategies:FTML", "follow the meta leader: meta-trains on all rounds, adapts to this one"
    ),
    "TrainOnEverything": Entry("ftml_bench.strategies:TrainOnEverything", "one model on all data so far, not adapted"),
    "FromScratch": Entry("ftml_bench.strategies:FromScratch", "new parameters every round; the control"),
    "FollowTheLeader": Entry(
        "ftml_bench.strategies:FollowTheLeader", "joint training on earlier rounds, then fine-tuned on this one"
    ),
    "Reptile": Entry("ftml_bench.strategies:Reptile", "moves towards the weights that tasks are adapted to"),
    "ANIL": Entry("ftml_bench.strategies:ANIL", "FTML whose inner steps change the last layer alone"),
    "MetaSGD": Entry("ftml_bench.strategies:MetaSGD", "FTML that learns an inner rate for every weight"),
    "MAMLPlusPlus": Entry(
        "ftml_bench.strategies:MAMLPlusPlus", "FTML with a learned rate a layer and step, and a loss of every step"
    ),
    "FTMLVS": Entry("ftml_bench.strategies:FTMLVS", "FTML with an inner rate that depends on the number of points"),
    "MOGD": Entry("ftml_bench.strategies:MOGD", "FTML's meta-steps on the current round alone"),
    "MOML": Entry("ftml_bench.strategies:MOML", "FTML with two vectors in the place of earlier rounds' data"),
    "TaskAverages": Entry(
        "ftml_bench.strategies:TaskAverages", "starts from the average of what tasks were adapted to"
    ),
    "IMAML": Entry("ftml_bench.strategies:IMAML", "FTML with a proximal inner problem and its implicit gradient"),
    "ContinualMAML": Entry(
        "ftml_bench.strategies:ContinualMAML", "takes a jump of its fast weights' loss for a boundary; meta-learns then"
    ),
    "FOML": Entry("ftml_bench.strategies:FOML", "fast weights that are never reset, pulled towards meta-learned ones"),
}
BENCHMARKS = {
    "RainbowMNIST": Entry("ftml_bench.benchmarks:RainbowMNIST", "56 colours, scales and rotations of MNIST"),
    "RainbowDigits": Entry("ftml_bench.benchmarks:RainbowDigits", "the same on scikit-learn's digits: no download"),
    "FiveWayCIFAR100": Entry(
        "ftml_bench.benchmarks:FiveWayCIFAR100", "five-way tasks on CIFAR-100, one new class a round"
    ),
    "ColoredMNIST": Entry(
        "ftml_bench.benchmarks:ColoredMNIST", "MNIST on a new background colour each round, digit after digit"
    ),
    "ColoredDigits": Entry("ftml_bench.benchmarks:ColoredDigits", "the same on scikit-learn's digits: no download"),
    "ObjectPose": Entry("ftml_bench.benchmarks:ObjectPose", "where an object stands on a table: regression of images"),
    "Sinusoids": Entry("ftml_bench.benchmarks:Sinusoids", "regression of sinusoids of random amplitude and phase"),
    "LinearRegression": Entry(
        "ftml_bench.benchmarks:LinearRegression", "convex regression whose best meta-learner is known exactly"
    ),
    "HiddenBoundaries": Entry(
        "ftml_bench.benchmarks:HiddenBoundaries",
        "another stream's tasks in small windows that do not say where one ends",
    ),
}
MODELS = {
    "RainbowNet": Entry("ftml_bench.models:RainbowNet", "the paper's convolutional network"),
    "MultiHeadNet": Entry("ftml_bench.models:MultiHeadNet", "the same with a head of its own for every task"),
    "PoseNet": Entry("ftml_bench.models:PoseNet", "convolutions, a spatial soft-argmax, two layers of 200"),
    "SinusoidMLP": Entry("ftml_bench.models:SinusoidMLP", "two hidden layers of 40"),
}
# kind -> (our own names, the group of entry points that adds to them)
_KINDS = {
    "strategy": (STRATEGIES, "ftml_bench.strategies"),
    "benchmark": (BENCHMARKS, "ftml_bench.benchmarks"),
    "model": (MODELS, "ftml_bench.models"),
}
# Avalanche's own, which are written "module:Class"; here so that one who leaves the module out is told, at once.
AVALANCHE = {
    "strategy": (
        "avalanche.training",
        "AETraining AGEM AR1 CWRStar CoPE Cumulative DER ER_ACE EWC ExpertGateStrategy FeatureReplay GDumb GEM "
        "GSS_greedy GenerativeReplay LFL LearningToPrompt LwF MAS MER MIR Naive PNNStrategy PackNet Replay SCR "
        "StreamingLDA SynapticIntelligence VAETraining",
    ),
    "model": (
        "avalanche.models",
        "LeNet5 MTSimpleCNN MTSimpleMLP MTSlimResNet18 MobilenetV1 PNN SimpleCNN SimpleMLP SimpleMLP_TinyImageNet "
        "SimpleSequenceClassifier",
    ),
}
_MODULE_CLASS = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")


@cache
def _added(group: str, path: tuple[str, ...]) -> list[EntryPoint]:
    """Asked for once a path that modules are looked for in: it takes a look into all installed packages."""
    return sorted(entry_points(group=group), key=lambda point: point.name)


def entries(kind: str) -> dict[str, Entry]:
    """All names of a kind ("strategy", "benchmark" or "model"): ours first, then those of other installed packages.

    A name of ours cannot be taken over by another package.
    """
    own, group = _KINDS[kind]
    found = dict(own)
    for point in _added(group, tuple(sys.path)):
        package = point.dist.name if point.dist else point.value
        found.setdefault(point.name, Entry(point.value, f"from {package}"))
    return found


def resolve(kind: str, name: str) -> str:
    """The "module:Class" that a name stands for, without importing it.

    :raises UsageError: no such name; says the nearest one.
    """
    if _MODULE_CLASS.fullmatch(name):
        return name
    known = entries(kind)
    if name not in known:
        module, names = AVALANCHE.get(kind, ("", ""))
        raise unknown(kind, name, known, {own: f"{module}:{own}" for own in names.split()})
    return known[name].target


def load(kind: str, name: str) -> Any:
    """The class that a name stands for, imported.

    :raises UsageError: no such name, a module that cannot be imported, or no such class in it.
    """
    module_name, class_name = resolve(kind, name).split(":")
    try:
        module = importlib.import_module(module_name)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # somebody else's module may fail in any way, SystemExit: one line that names it
        reason = " ".join(str(error).split())
        raise UsageError(f"{kind} {name!r}: cannot import {module_name} ({type(error).__name__}: {reason})") from error
    try:
        return getattr(module, class_name)
    except Exception:  # of a module's own __getattr__, too
        public = [public for public, one in vars(module).items() if inspect.isclass(one) and not public.startswith("_")]
        raise unknown(f"class of {module_name} for {kind}", class_name, public) from None
