"""Going on with a cell that was interrupted: its state is saved now and then while it runs."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from avalanche.benchmarks import DatasetExperience
from avalanche.training.templates import SupervisedTemplate

from ftml_bench import saving
from ftml_bench.errors import UsageError
from ftml_bench.runs.events import Events
from ftml_bench.runs.progress import say
from ftml_bench.runs.record import SAVED_STATE, RunWriter
from ftml_bench.runs.storage import is_passing, of_disk
from ftml_bench.strategies.avalanche.base import Learner

SAVE_EVERY = 60.0  # seconds of work that an interruption may cost, beside the arrival that it falls in


@dataclass
class Begun:
    """A run that has begun.

    :param done: how many evaluations it has made.
    :param seconds: that it has worked.
    :param spoiled: whether the strategy was changed in vain and has to be built anew.
    """

    writer: RunWriter
    done: int = 0
    seconds: float = 0.0
    spoiled: bool = False


def begin_or_go_on(
    folder: Path,
    header: dict[str, Any],
    strategy: SupervisedTemplate,
    stream: Iterable[DatasetExperience],
    is_ours: Callable[[str | None], bool],
) -> Begun:
    """Brings a strategy that was just built to where its cell was interrupted, if that left a saved state; else begins.

    A saved state that cannot be used is said, and the cell done from its start. What passes, such as a lack of memory,
    is raised, and the state stays.

    :param is_ours: whether a hash is that of the definition, or of the same before seeds were added.
    """
    file = folder / SAVED_STATE
    if not file.is_file():
        return Begun(RunWriter.start(folder, header))
    try:
        state = saving.load_file(file, strategy.device)
        saving.load_state_dict(strategy, state, stream)
        more = state["more"]
        writer = RunWriter.go_on(folder, header, more["contents"], is_ours)
    except (UsageError, KeyError, TypeError) as error:
        if is_passing(error):  # it may be read later
            raise
        reason = error if isinstance(error, UsageError) else f"{file}: damaged"
        say(f"{reason}: the cell is done again from its start")
        return Begun(RunWriter.start(folder, header), spoiled=True)
    return Begun(writer, more["done"], more["seconds"])


class StateSaver:
    """Saves the state of a run after an evaluation, whenever `SAVE_EVERY` seconds have passed.

    If it cannot be written, that is said once, the last one kept, and the next one tried when it is due.

    :param possible: False if the run cannot go on from the middle. A strategy that is not ours, or that holds a plugin
        whose state is not known how to save, is not saved either: interrupted, its cell is done from the start.
    """

    def __init__(self, begun: Begun, strategy: SupervisedTemplate, events: Events, *, possible: bool) -> None:
        self._begun = begun
        self._strategy = strategy
        self._events = events
        self._possible = possible and isinstance(strategy, Learner)
        self._told = False
        self._start = self._last = time.perf_counter()

    @property
    def seconds(self) -> float:
        """That the run has worked, those before an interruption included."""
        return self._begun.seconds + time.perf_counter() - self._start

    def after_evaluation(self, done: int) -> None:
        """Save, if it is time to; `done`: how many evaluations there have been."""
        if not self._possible or time.perf_counter() - self._last < SAVE_EVERY:
            return
        writer = self._begun.writer
        file = writer.folder / SAVED_STATE
        writer.check_tables()  # else the state would vouch for what another process has written
        try:
            self._events.flush()
            saving.save(self._strategy, file, done=done, seconds=self.seconds, contents=writer.contents())
        except UsageError as error:
            say(f"{writer.folder}: {error}; if it is interrupted, the cell will be done again from its start")
            self._possible = False
        except OSError as error:  # what was saved last is still there, and the next time there may be room
            if not self._told:
                say(f"{of_disk(error, file) or error}: no state is saved until that has gone; the cell runs on")
            self._told = True
        else:
            self._told = False
        self._last = time.perf_counter()
