"""Where the time of a run goes: a whole arrival of a paper-size run, early and late in the stream, and a small run.

CPU time of the process by part, so that other work on the machine disturbs little; on a GPU wall time, for which the
device is waited for at both ends of each part. A part that runs inside another is taken out of it, and what no part
claims is Avalanche's loop and the little that stands between.
"""

from __future__ import annotations

import functools
import time
from collections import defaultdict
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager, nullcontext
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from avalanche.logging import TensorboardLogger
from avalanche.training.plugins import EvaluationPlugin

from ftml_bench.benchmarks import arrivals
from ftml_bench.benchmarks.stream import TaskStream
from ftml_bench.buffer import TaskBuffer
from ftml_bench.memory import keep_freed_memory
from ftml_bench.protocol import held_out
from ftml_bench.recorded.training_step import RecordedStep
from ftml_bench.runs import cell as cells
from ftml_bench.runs import definition as definitions
from ftml_bench.runs.building import build_strategy
from ftml_bench.runs.definition import Definition
from ftml_bench.runs.record import RunWriter
from ftml_bench.speed.machine import clock_of
from ftml_bench.speed.made_up import MadeUp
from ftml_bench.speed.measuring import at
from ftml_bench.strategies import FTML

EARLY, LATE = 6, 56  # rounds, counted from 1
META_GRADIENT, UPDATE = "meta-gradient", "update procedure"
META_STEP = "whole meta-steps (GPU)"
LOOP = "Avalanche's loop, and the rest"
# What is watched: class, method, and whose time it is.
WATCHED: list[tuple[type, str, str]] = [
    (FTML, "forward", META_GRADIENT),
    (FTML, "backward", META_GRADIENT),
    (FTML, "_adapted_copy", UPDATE),
    (FTML, "_note_support_statistics", "running statistics of norms"),
    (FTML, "optimizer_step", "optimiser"),
    (FTML, "eval_epoch", "prediction of held-out data"),
    (FTML, "_draw", "sampling"),
    (TaskBuffer, "add", "filing arrivals"),
    (EvaluationPlugin, "_update_metrics_and_loggers", "metrics and loggers"),
    (RunWriter, "append", "records"),
    (RunWriter, "start", "records"),
    (RunWriter, "finish", "records"),
]

# On a GPU a recorded step is one replay, into which nobody can look.
_IN_A_STEP = {"forward", "backward", "_note_support_statistics", "optimizer_step", "_draw"}
WATCHED_ON_GPU = [
    *((owner, name, part) for owner, name, part in WATCHED if name not in _IN_A_STEP),
    (RecordedStep, "train", META_STEP),
]


class Stopwatch:
    """Seconds by part; every moment counts for the innermost part that runs."""

    def __init__(self, device: str = "cpu") -> None:
        self._clock = (lambda: time.process_time()) if device == "cpu" else clock_of(device)
        self._watched = WATCHED if device == "cpu" else WATCHED_ON_GPU
        self.seconds: dict[str, float] = defaultdict(float)
        self._running: list[str] = []
        self._since = 0.0

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Inside, time counts for `name`."""
        self._charge()
        self._running.append(name)
        try:
            yield
        finally:
            self._charge()
            self._running.pop()

    def _charge(self) -> None:
        now = self._clock()
        if self._running:
            self.seconds[self._running[-1]] += now - self._since
        self._since = now

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Inside, the methods that are watched count for their parts."""
        own = [(owner, name, vars(owner).get(name)) for owner, name, _ in self._watched]
        try:
            for owner, name, part in self._watched:
                setattr(owner, name, self._timed(getattr(owner, name), part))
            yield
        finally:
            for owner, name, before in own:
                if before is None:
                    delattr(owner, name)  # it was inherited
                else:
                    setattr(owner, name, before)

    def _timed(self, method: Callable[..., Any], part: str) -> Callable[..., Any]:
        @functools.wraps(method)
        def timed(*args: Any, **kwargs: Any) -> Any:
            with self.part(part):
                return method(*args, **kwargs)

        return staticmethod(timed) if hasattr(method, "__self__") else timed


def report(*, repeats: int, device: str = "cpu") -> str:
    """Time arrivals of a paper-size run of FTML on Rainbow MNIST in an early and in a late round, and a small run.

    Images and labels are made up, so that nothing has to be fetched. Early and late arrivals are interleaved; on a CPU
    they are of the later half of their round, on a GPU a whole round is timed without looking at its parts, too.

    :param repeats: arrivals in each of the two rounds, after one that is not counted.
    """
    keep_freed_memory()  # as in every cell
    torch.backends.cudnn.allow_tf32 = False
    paper = definitions.load("rainbow_mnist")
    spec = paper.benchmarks[0]
    on_gpu = device != "cpu"
    columns = {f"round {number}": Stopwatch(device) for number in (EARLY, LATE)}
    assert isinstance(spec.arrivals, int)
    benchmark = MadeUp(rounds=LATE, images_per_round=900, held_out_per_round=178, arrival=spec.arrivals)
    lines = []
    with TemporaryDirectory() as folder:
        for number in (EARLY, LATE) if on_gpu else ():
            at(f"the whole round {number}")
            lines.append(_whole_round(paper, benchmark, number, Path(folder, f"whole {number}"), device))
        steps = [
            arrivals_of(paper, benchmark, number - 1, Path(folder, name), watch, device)
            for number, (name, watch) in zip((EARLY, LATE), columns.items(), strict=True)
        ]
        for repeat in range(repeats + 1):
            for arrival, (name, watch) in zip(steps, columns.items(), strict=True):
                at(f"an arrival of {name}", f", {f'repeat {repeat} of {repeats}' if repeat else 'warming up'}")
                next(arrival)
                if not repeat:
                    watch.seconds.clear()
        at(SMALL.partition(",")[0])
        small = columns["a small run"] = Stopwatch(device)
        _small_run(Path(folder, "small"), small, device)
    what = "Wall seconds, waiting for the device at every part" if on_gpu else "CPU seconds"
    title = (
        f"{what} ({torch.get_num_threads()} thread): an arrival of a paper-size FTML run ({spec.steps} meta-steps "
        f"of 25 tasks; mean of {repeats}), and {SMALL}"
    )
    return "\n".join([*lines, title, *_table(columns, dict.fromkeys(list(columns)[:2], repeats))])


def _whole_round(definition: Definition, benchmark: TaskStream, number: int, folder: Path, device: str) -> str:
    """Wall time of a round as it is in a run."""
    watch = Stopwatch(device)
    count = 0
    for _ in arrivals_of(definition, benchmark, number - 1, folder, watch, device, first=0, watched=False):
        count += 1
    seconds = watch.seconds[LOOP]
    rounds = len(benchmark.train_stream)
    return (
        f"round {number}: {seconds:.1f} s for its {count} arrivals, {1e3 * seconds / count:.0f} ms each; "
        f"{rounds} such rounds: {rounds * seconds / 60:.1f} min"
    )


def _table(columns: dict[str, Stopwatch], arrivals: dict[str, int]) -> list[str]:
    parts = list(dict.fromkeys([META_GRADIENT, META_STEP, UPDATE, *(part for _, _, part in WATCHED), LOOP]))
    lines = [f"{'':32}" + "".join(f"{name:>22}" for name in columns)]
    parts = [part for part in parts if any(watch.seconds[part] for watch in columns.values())]
    rest = [part for part in parts if part not in (META_GRADIENT, META_STEP, UPDATE)]
    totals = {name: sum(watch.seconds.values()) for name, watch in columns.items()}

    def line(title: str, seconds: Callable[[Stopwatch], float]) -> str:
        cells = [
            f"{seconds(watch) / arrivals.get(name, 1):13.4f} {seconds(watch) / totals[name]:7.2%}"
            for name, watch in columns.items()
        ]
        return f"{title:32}" + "".join(f"{text:>22}" for text in cells)

    lines += [line(part, lambda watch, part=part: watch.seconds[part]) for part in parts]  # type: ignore[misc]
    lines.append(line("all", lambda watch: sum(watch.seconds.values())))
    lines.append(line("neither gradient nor update", lambda watch: sum(watch.seconds[part] for part in rest)))
    return lines


def arrivals_of(
    definition: Definition,
    benchmark: TaskStream,
    round_index: int,
    folder: Path,
    watch: Stopwatch,
    device: str,
    *,
    first: int | None = None,
    watched: bool = True,
) -> Generator[None, None, None]:
    """The protocol on a round from its arrival `first` on (None: its later half); the data before have arrived, but
    were not trained on."""
    spec = definition.benchmarks[0]
    writer = RunWriter.start(folder, {"definition": definition.hash, "protocol": {}})
    logger = TensorboardLogger(str(folder / "tb"))
    strategy = build_strategy(spec, spec.row("FTML"), benchmark, 0, loggers=[logger], device=device)
    for round in benchmark.train_stream[:round_index]:
        strategy.buffer.add(round)
    round = benchmark.train_stream[round_index]
    pieces = list(arrivals(round, benchmark.arrivals))
    first = len(pieces) // 2 if first is None else first
    for arrival in pieces[:first]:
        strategy.buffer.add(arrival)
    with closing(logger.writer):
        for arrival in pieces[first:]:
            with watch.watching() if watched else nullcontext(), watch.part(LOOP):
                strategy.train(arrival, eval_streams=[])
                strategy.eval([held_out(benchmark, round)])
                row = {"round": round_index, "evaluated_round": round_index, "datapoints": arrival.n_seen_in_round}
                cost = {"steps": strategy.cost.steps, "gradient_evaluations": strategy.cost.gradient_evaluations}
                writer.append({**row, "loss": 0.0, "accuracy": 0.0, **cost}, 0.0)
            yield


SMALL = "a whole run of FTML of the quick leaderboard's digits, 5 rounds, benchmark and files included"


def _small_run(folder: Path, watch: Stopwatch, device: str) -> None:
    content = definitions.load("quick").to_dict()
    digits = content["benchmarks"]["digits"]
    digits["settings"]["rounds"] = 5
    digits["strategies"] = {"FTML": digits["strategies"]["FTML"]}
    content |= {"benchmarks": {"digits": digits}, "seeds": [0]}
    definition = definitions.from_dict(content, "small run")
    with watch.watching(), watch.part(LOOP):
        cells.run_cell(definition, definition.cells()[0], folder, None, lambda done, total: None, device)
