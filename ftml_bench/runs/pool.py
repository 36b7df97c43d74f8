"""Where tasks run: in this process, or in several of this machine. What runs, and what its end means, is decided
elsewhere (`schedule`); another place, such as a cluster, is another class with the methods of `Pool`.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import sys
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, Protocol

from ftml_bench.runs import locking
from ftml_bench.runs.tasks import STOPPED, OnEvaluation, Outcome, Task, one_thread

POLL = 0.2  # seconds after which `outcome` returns although nothing has ended
GRACE = 5.0  # seconds for a worker without work to end by itself


@dataclass(frozen=True)
class Death:
    """A process ended in the middle of its task; `how`, in words."""

    how: str


class Pool(Protocol):
    """A place where tasks run."""

    def submit(self, task: Task) -> None:
        """Have a task run as soon as there is room, after those that came before."""

    def outcome(self, on_evaluation: OnEvaluation) -> tuple[Task, list[Outcome] | Death] | None:
        """The next task that has ended; None now and then while none has. Tells of evaluations meanwhile."""

    def cancel(self) -> None:
        """End what runs at once; when this returns, nothing does."""


class ThisProcess:
    """One task after the other, here: a second process would import Avalanche (seconds) once more."""

    def __init__(self) -> None:
        one_thread()
        self._waiting: deque[Task] = deque()

    def submit(self, task: Task) -> None:
        """See `Pool`."""
        self._waiting.append(task)

    def outcome(self, on_evaluation: OnEvaluation) -> tuple[Task, list[Outcome] | Death] | None:
        """See `Pool`."""
        task = self._waiting.popleft()
        return task, task.run(on_evaluation)

    def cancel(self) -> None:
        """See `Pool`; what runs here has ended whenever this is called."""


class LocalPool:
    """Processes of this machine, each with one task at a time, so that one which dies takes nothing else with it.

    They end with the process that has made them, however that ends.

    :param processes: how many at most.
    """

    def __init__(self, processes: int) -> None:
        self._processes = processes
        self._waiting: deque[Task] = deque()
        self._workers: list[_Worker] = []

    def submit(self, task: Task) -> None:
        """See `Pool`."""
        self._waiting.append(task)

    def outcome(self, on_evaluation: OnEvaluation) -> tuple[Task, list[Outcome] | Death] | None:
        """See `Pool`."""
        self._hand_out()
        busy = [worker for worker in self._workers if worker.task is not None]
        wait([worker.connection for worker in busy], timeout=POLL)
        for worker in busy:
            for message in worker.messages():
                if isinstance(message, tuple):
                    on_evaluation(*message)
                    continue
                task, worker.task = worker.task, None
                assert task is not None
                if isinstance(message, Death):
                    self._workers.remove(worker)
                return task, message
        return None

    def cancel(self) -> None:
        """See `Pool`."""
        self._waiting.clear()
        while self._workers:
            self._workers[-1].end()
            self._workers.pop()

    def _hand_out(self) -> None:
        for worker in [worker for worker in self._workers if worker.task is None and not worker.process.is_alive()]:
            worker.end()
            self._workers.remove(worker)
        while self._waiting:
            idle = next((worker for worker in self._workers if worker.task is None), None)
            if idle is None and len(self._workers) == self._processes:
                return
            if idle is None:
                idle = _Worker()
                self._workers.append(idle)
            idle.give(self._waiting.popleft())


class _Worker:
    """A process, seen from the one that has made it."""

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
        self.task = task
        with suppress(OSError):  # it is dead; `messages` will find that
            self.connection.send(task)

    def messages(self) -> Iterator[Any]:
        """What it has said and nobody has heard: evaluations, as the last the outcomes of its task, or its death."""
        while True:
            # Asked first: what it had said before its end is heard.
            dead = self.process.exitcode is not None
            try:
                if self.connection.poll():
                    message = self.connection.recv()
                    yield message
                    if not isinstance(message, tuple):
                        return
                    continue
            except (EOFError, OSError):
                dead = True
                self.process.join(1.0)  # it is about to say how it ended
            if dead:
                self.end()
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
    lock = None
    while True:
        try:
            task: Task = connection.recv()
        except EOFError:
            return
        try:
            lock = lock or locking.writing(task.root)
        except OSError as error:
            reason = f"{task.root}: {error.strerror or error}"
            connection.send([Outcome(cell, STOPPED, reason) for cell in task.cells])
            continue
        if not parent.is_alive():  # from here on another process that begins waits until this one has ended
            return
        connection.send(_outcomes(task, connection))


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
