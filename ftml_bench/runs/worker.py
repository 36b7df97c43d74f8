"""A process in which tasks run, one after the other: as the one that has made it sees it, and from inside.

It ends with the process that has made it, however that ends.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess

from ftml_bench.runs import locking, progress
from ftml_bench.runs.definition import Cell
from ftml_bench.runs.noise import without_noise
from ftml_bench.runs.storage import of_disk
from ftml_bench.runs.tasks import STOPPED, Outcome, Task, one_thread

GRACE = 5.0  # seconds for a worker without work to end by itself


@dataclass(frozen=True)
class Death:
    """A process ended in the middle of its task; `how`, in words."""

    how: str


End = list[Outcome] | Death  # of a task
Message = tuple[Cell, int, int] | str | End  # an evaluation, as `OnEvaluation` takes it; a line for people; the last


class Worker:
    """The process, seen from the one that has made it.

    :ivar task: what it works at; None: nothing.
    """

    def __init__(self) -> None:
        # spawn: a forked process would inherit torch's threads in a state in which they hang.
        context = multiprocessing.get_context("spawn")
        # A pipe of its own: a queue that all share has a lock, which one that is killed may take with it.
        self.connection, its = context.Pipe()
        self.process = context.Process(target=_serve, args=(its,))
        self.process.start()
        its.close()  # so that the end of the process is the end of the pipe
        self.task: Task | None = None

    def give(self, task: Task) -> None:
        """Have it run a task, when it has none."""
        self.task = task
        with suppress(OSError):  # it is dead; `messages` will find that
            self.connection.send(task)

    def messages(self) -> Iterator[Message]:
        """What it has said and nobody has heard; after the last of its task it has none."""
        while True:
            # Asked first: what it had said before its end is heard.
            dead = self.process.exitcode is not None
            try:
                if self.connection.poll():
                    message: Message = self.connection.recv()
                    if isinstance(message, list):
                        self.task = None
                    yield message
                    if self.task is None:
                        return
                    continue
            except (EOFError, OSError):
                dead = True
                self.process.join(1.0)  # it is about to say how it ended
            if dead:
                self.end()
                self.task = None
                yield Death(_in_words(self.process.exitcode))
            return

    def end(self) -> None:
        """End the process: one that works at once, another by telling it."""
        self.connection.close()
        if self.task is None:
            self.process.join(GRACE)
        self.process.kill()
        self.process.join()


def _in_words(code: int | None) -> str:
    if code is not None and code < 0:
        name = signal.Signals(-code).name
        return f"by {name} (out of memory?)" if name == "SIGKILL" else f"by {name}"
    return f"with exit code {code}"


# -- in a worker


def _serve(connection: Connection) -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    _end_with(parent)
    # A terminal sends these to every process; the parent decides, and ends this one.
    for name in ("SIGINT", "SIGHUP"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    one_thread()
    without_noise()
    progress.say_by(connection.send)
    while True:
        try:
            task: Task = connection.recv()
        except EOFError:
            return
        try:
            with locking.writing(task.root, task.holder, [task.root / cell.folder for cell in task.cells]):
                outcomes = _outcomes(task, connection)
        except locking.LostError:  # the run has ended, and another may have begun
            return
        except OSError as error:
            disk = of_disk(error, task.root)
            reason = str(disk) if disk else f"{task.root}: {error.strerror or error}"
            outcomes = [Outcome(cell, STOPPED, reason) for cell in task.cells]
        connection.send(outcomes)


def _outcomes(task: Task, connection: Connection) -> list[Outcome]:
    try:
        return task.run(lambda *told: connection.send(told))
    except KeyboardInterrupt as error:  # Ctrl-C does not come here: foreign code has raised it
        return [task.fail(cell, f"KeyboardInterrupt: {error}", "") for cell in task.cells]


def _end_with(parent: BaseProcess) -> None:
    """Has this process end when its parent does, however that ends, also in the middle of foreign code."""

    def watch() -> None:
        parent.join()
        os._exit(1)

    if sys.platform == "linux":  # also where the thread does not get its turn, in code that holds Python's lock
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # 1: PR_SET_PDEATHSIG
    threading.Thread(target=watch, daemon=True).start()
