"""Steps of the learners without meta-learning against a plain loop of PyTorch and Avalanche's own strategies."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from avalanche.training.plugins import EvaluationPlugin
from avalanche.training.supervised import JointTraining, Naive
from torch import nn

from ftml_bench.benchmarks import arrivals
from ftml_bench.memory import keep_freed_memory
from ftml_bench.models import RainbowNet
from ftml_bench.speed.machine import description, load
from ftml_bench.speed.made_up import MadeUp
from ftml_bench.speed.measuring import interleaved, row, spread, table
from ftml_bench.speed.peers import with_stock_norms
from ftml_bench.strategies import FollowTheLeader, FromScratch, TrainOnEverything
from ftml_bench.strategies.joint import JointLearner

ROUNDS, BATCH, GROUP = 5, 500, 20  # of the stream; images of a minibatch, and of a group in it


@dataclass(frozen=True)
class Way:
    """How images are trained on: a call, and how many images it trains on."""

    train: Callable[[], Any]
    images: int


def report(*, repeats: int, steps: int = 5) -> Iterator[str]:
    """Lines of Markdown: images a second of every way.

    :param repeats: interleaved repeats, after one that is not counted.
    :param steps: that are timed together.
    """
    keep_freed_memory()
    torch.set_num_threads(1)
    stream = MadeUp(rounds=ROUNDS)
    yield "# Steps of the baselines"
    yield ""
    yield (
        f"Images a second of CPU time in training, one thread: RainbowNet on {ROUNDS} rounds of 900 images of 28 x 28, "
        f"minibatches of {BATCH}, Adam; median of {repeats} interleaved repeats (least to most)."
    )
    yield f"Machine: {description()}."
    yield ""
    yield from table(["", "images a second", "times its plain loop"])
    ways = all_ways(stream, steps)
    seconds = interleaved({title: way.train for title, way in ways.items()}, repeats, time.process_time, "baselines")
    rates = {title: [ways[title].images / t for t in times] for title, times in seconds.items()}
    plain = ""
    for title, own in rates.items():
        plain = title if title.startswith(PLAIN) else plain
        ratios = [a / b for a, b in zip(own, rates[plain], strict=True)]
        yield row([title, _whole(own), spread(ratios)])
    yield ""
    yield (
        "A plain loop is written out with PyTorch's own layers: the same network, draws and optimiser, a pass for each "
        "group, and nothing else. Naive and JointTraining have these layers, too, read image by image through their "
        "DataLoader (no worker processes) and train on every image once: Naive on a round, JointTraining on all."
    )
    yield ""
    yield f"Load of the machine at the end: {load()}."


PLAIN = "plain loop"


def all_ways(stream: MadeUp, steps: int) -> dict[str, Way]:
    """Every way; those behind a plain loop are compared with it."""
    ways: dict[str, Way] = {}
    mixed = _learner(TrainOnEverything, stream, steps, batch_norm="running")
    ways[f"{PLAIN}, mixed minibatches"] = Way(_plain_loop(mixed, steps), steps * BATCH)
    ways["TrainOnEverything"] = _of_learner(TrainOnEverything, stream, steps, batch_norm="running")
    for cls in (Naive, JointTraining):
        ways[f"Avalanche's {cls.__name__}"] = _of_avalanche(cls, stream)
    groups = _learner(TrainOnEverything, stream, steps, batch_norm="support")
    ways[f"{PLAIN}, groups of {GROUP}"] = Way(_plain_loop(groups, steps), steps * BATCH)
    ways["TrainOnEverything groups"] = _of_learner(TrainOnEverything, stream, steps, batch_norm="support")
    ways["FollowTheLeader"] = _of_learner(FollowTheLeader, stream, steps)
    scratch = _learner(FromScratch, stream, steps)
    ways[f"{PLAIN}, one round"] = Way(_plain_loop(scratch, steps), steps * BATCH)
    ways["FromScratch"] = _of_learner(FromScratch, stream, steps)
    return ways


def _parts(model: nn.Module) -> dict[str, Any]:
    return {
        "model": model,
        "optimizer": torch.optim.Adam(model.parameters(), lr=0.001),
        "criterion": nn.CrossEntropyLoss(label_smoothing=0.1),
        "train_mb_size": BATCH,
        "evaluator": EvaluationPlugin(),  # without metrics and loggers, as the plain loop
    }


def _learner(cls: type[JointLearner], stream: MadeUp, steps: int, **settings: Any) -> JointLearner:
    """A learner in the last round, with the first half of its data."""
    learner = cls(**_parts(RainbowNet()), **settings, steps=steps)
    for experience in stream.train_stream[:-1]:
        learner.buffer.add(experience)
    learner.current_round = learner.buffer.add(next(iter(arrivals(stream.train_stream[-1], BATCH))))
    return learner


def _of_learner(cls: type[JointLearner], stream: MadeUp, steps: int, **settings: Any) -> Way:
    """A learner's own training on arrivals of two images."""
    learner = _learner(cls, stream, steps, **settings)
    coming = iter(list(arrivals(stream.train_stream[-1], [BATCH, *[2] * 150]))[1:])
    return Way(lambda: learner.train(next(coming), eval_streams=[]), steps * BATCH)


def _plain_loop(learner: JointLearner, steps: int) -> Callable[[], None]:
    """What a learner computes, written out with PyTorch's own layers: its draws, its network, its optimiser."""
    model = with_stock_norms(learner.model)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.001)
    groups = learner._groups

    def train() -> None:
        model.train()
        for _ in range(steps):
            x, y, *_ = learner._draw()
            optimizer.zero_grad()
            outputs = torch.cat([model(group) for group in x.chunk(groups)])
            nn.functional.cross_entropy(outputs, y, label_smoothing=0.1).backward()
            optimizer.step()

    return train


def _of_avalanche(cls: Any, stream: MadeUp) -> Way:
    """One epoch of a new strategy of Avalanche, which JointTraining can do once: over a round, or over all of them."""
    rounds = stream.train_stream if cls is JointTraining else stream.train_stream[:1]
    images = sum(len(experience.dataset) for experience in rounds)

    def train() -> None:
        cls(**_parts(with_stock_norms(RainbowNet())), train_epochs=1).train(rounds, num_workers=0)

    return Way(train, images)


def _whole(values: list[float]) -> str:
    return f"{statistics.median(values):,.0f} ({min(values):,.0f} to {max(values):,.0f})"
