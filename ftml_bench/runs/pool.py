"""Where tasks run: in this process, or in several of this machine. What runs, and what its end means, is decided
elsewhere (`schedule`); several machines (`cluster`) are another class with the methods of `Pool`.
"""

from __future__ import annotations

from collections import deque
from multiprocessing.connection import wait
from typing import Protocol

from ftml_bench.runs.progress import say
from ftml_bench.runs.tasks import OnEvaluation, Task, one_thread
from ftml_bench.runs.worker import End, Worker

POLL = 0.2  # seconds after which `outcome` returns although nothing has ended


class Pool(Protocol):
    """A place where tasks run."""

    def submit(self, task: Task) -> None:
        """Have a task run as soon as there is room, after those that came before."""

    def outcome(self, on_evaluation: OnEvaluation) -> tuple[Task, End] | None:
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

    def outcome(self, on_evaluation: OnEvaluation) -> tuple[Task, End] | None:
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
        self._workers: list[Worker] = []

    def submit(self, task: Task) -> None:
        """See `Pool`."""
        self._waiting.append(task)

    def outcome(self, on_evaluation: OnEvaluation) -> tuple[Task, End] | None:
        """See `Pool`."""
        self._hand_out()
        busy = [worker for worker in self._workers if worker.task is not None]
        wait([worker.connection for worker in busy], timeout=POLL)
        for worker in busy:
            task = worker.task
            assert task is not None
            for message in worker.messages():
                if isinstance(message, tuple):
                    on_evaluation(*message)
                elif isinstance(message, str):
                    say(message)
                else:
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
                idle = Worker()
                self._workers.append(idle)
            idle.give(self._waiting.popleft())
