"""Where tasks run on more than one machine, or on this one, with Ray: it finds a machine with room, and says what came.

On that machine a task runs as it does here: in a process of its own (`Worker`), which writes into the folder that all
machines share, and only while the run that it belongs to holds that (`locking`). The process of Ray's that has made it
sends on what it says. Whatever happens to machines and processes, what is run again, and where from, the schedule and
the files decide: Ray tries nothing anew.
"""

from __future__ import annotations

import atexit
import logging
import os
import pickle
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

from ftml_bench import __version__
from ftml_bench.errors import UsageError
from ftml_bench.runs import locking
from ftml_bench.runs.pool import POLL
from ftml_bench.runs.progress import say
from ftml_bench.runs.signals import Stopped
from ftml_bench.runs.tasks import STOPPED, OnEvaluation, Outcome, Task
from ftml_bench.runs.worker import Death, End, Message, Worker

HERE = "local"  # the address that stands for a cluster of this machine alone, which ends with the run
_OBJECTS = 80 * 2**20  # bytes for what tasks hand over, the least that Ray takes: ours say a line now and then
_LATE = 5.0  # seconds in which a cluster answers, and the last word of a task that has ended arrives
_LOOK = 1.0  # seconds between two looks whether the run still holds its folder


class RayPool:
    """Ray's cluster, as a `Pool`. A task asks for what the definition says of its row.

    :param address: "auto" or HOST:PORT of a cluster that this machine is one of, or `HERE`.
    :param cores: how many a cluster of this machine has.
    :raises UsageError: no Ray, or no cluster there.
    """

    def __init__(self, address: str, cores: int) -> None:
        self._ray = ray = imported()
        self._here = address == HERE
        if address not in (HERE, "auto"):
            _see_that_one_answers(address)
        own = {"num_cpus": cores, "include_dashboard": False, "object_store_memory": _OBJECTS} if self._here else {}
        with _signals_kept():
            try:
                ray.init(address=address, log_to_driver=False, logging_level=logging.CRITICAL, **own)
            except (OSError, ValueError, RuntimeError, ray.exceptions.RayError) as error:
                why = str(error).strip().splitlines() or [type(error).__name__]
                raise UsageError(f"--ray {address}: {why[0]}") from error
        # No retries of Ray's: what is run again, the schedule decides.
        self._origin = Origin.here()
        self._serve = ray.remote(num_returns="streaming", max_retries=0)(_server(self._origin.path, __version__))
        self._running: dict[Any, Task] = {}  # by the stream of its messages
        self._told: set[str] = set()  # what was asked for so far

    def submit(self, task: Task) -> None:
        """See `Pool`.

        :raises UsageError: this machine is the whole cluster, and has less than the task asks for.
        """
        asked = asked_by(task)
        self._see_room(task, asked)
        where = {"num_cpus": asked["CPU"], "num_gpus": asked.get("GPU", 0), "memory": asked.get("memory")}
        data = task.data and os.path.abspath(task.data)
        sent = replace(task, root=task.root.absolute(), data=data)
        self._running[
            self._serve.options(name=str(task.cells[0]), **where).remote(pickle.dumps((sent, self._origin)))
        ] = task

    def outcome(self, on_evaluation: OnEvaluation) -> tuple[Task, End] | None:
        """See `Pool`.

        :raises UsageError: a machine cannot run the suite, does not see the run's folder, or is not heard.
        """
        ready, _ = self._ray.wait(list(self._running), timeout=POLL)
        if not ready:
            self._see_that_messages_come()
        for stream in ready:
            message = self._next(stream)
            if isinstance(message, tuple):
                on_evaluation(*message)
            elif isinstance(message, str):
                say(message)
            else:
                return self._running.pop(stream), message
        return None

    def cancel(self) -> None:
        """See `Pool`."""
        self._ray.shutdown()  # ends the tasks of this run, on all machines
        for root in {task.root for task in self._running.values()}:
            locking.await_writers(root)
        self._running.clear()

    def _next(self, stream: Any) -> Message:
        exceptions = self._ray.exceptions
        try:
            return self._ray.get(next(stream))
        except StopIteration:
            return Death("since its machine did not see that the run goes on")
        except exceptions.RayTaskError as error:
            return self._of_machine(self._running[stream], error)
        except exceptions.OutOfMemoryError:
            return Death("by Ray (its machine is out of memory)")
        except exceptions.RayError as error:
            return Death(f"from outside, alone or with its machine ({type(error).__name__})")

    def _see_that_messages_come(self) -> None:
        """Where run and cluster do not trust each other, tasks end, and not a word of them arrives."""
        ended, _ = self._ray.wait([stream.completed() for stream in self._running], timeout=0)
        if ended and not self._ray.wait(list(self._running), timeout=_LATE)[0]:
            raise UsageError(
                "--ray: a task has ended and was not heard: expected the RAY_AUTH_MODE of the cluster here"
            )

    def _of_machine(self, task: Task, error: Any) -> End:
        """What was raised on a machine before a cell could begin."""
        if not locking.is_held(task.root, task.holder):  # nor does it here
            reason = f"{task.root}: was removed while it was run"
            return [Outcome(cell, STOPPED, reason) for cell in task.cells]
        raise UsageError(str(error.cause)) from error

    def _see_room(self, task: Task, asked: dict[str, float]) -> None:
        """Says what no machine has: else Ray would wait without a word."""
        said = ", ".join(f"{amount:.15g} {name}" for name, amount in asked.items())
        if said in self._told:
            return
        self._told.add(said)
        machines = [node["Resources"] for node in self._ray.nodes() if node["Alive"]]
        if any(all(machine.get(name, 0) >= amount for name, amount in asked.items()) for machine in machines):
            return
        if self._here:
            has = ", ".join(f"{machines[0].get(name, 0):.15g} {name}" for name in asked)
            raise UsageError(f"{task.cells[0]}: asks for {said}: this machine has {has}")
        say(f"{task.cells[0]}: asks for {said}: no machine of the cluster has that; it waits for one")


def imported() -> Any:
    """Ray.

    :raises UsageError: it is not installed.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", ".")  # what it would print of workers that die, on the output
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # or it warns that this will be so
    try:
        import ray
        import ray.exceptions
    except ImportError as error:
        raise UsageError("--ray: Ray is not installed: pip install 'ftml-bench[ray]'") from error
    return ray


def _see_that_one_answers(address: str) -> None:
    """Ray would try for minutes."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_LATE).close()
    except (OSError, OverflowError) as error:
        raise UsageError(f"--ray {address}: nobody answers there: {error}") from error


def asked_by(task: Task) -> dict[str, float]:
    """What the cells of a task, a row's, ask for, by Ray's names."""
    definition, cell = task.definition, task.cells[0]
    resources = definition.resources.but(definition.benchmark(cell.benchmark).row(cell.row).resources)
    asked = {"CPU": resources.cpus or 1.0}
    if task.device != "cpu":
        asked["GPU"] = resources.gpus or 1.0
    if resources.memory is not None:
        asked["memory"] = resources.memory
    return asked


@contextmanager
def _signals_kept() -> Iterator[None]:
    """Inside, handlers of signals are replaced in vain: Ray has one for SIGTERM that prints a stack, and exits."""
    kept = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    except SystemExit as error:  # of that handler
        raise Stopped(signal.SIGTERM) from error
    finally:
        for number, handler in kept.items():
            signal.signal(number, handler)


@dataclass(frozen=True)
class Origin:
    """What a process inherits from the one that has made it, on the same machine: command, where Python looks for
    modules, working folder, variables of ours."""

    command: tuple[str, ...]
    path: tuple[str, ...]
    folder: Path
    variables: dict[str, str]

    @classmethod
    def here(cls) -> Origin:
        """This process's."""
        variables = {name: value for name, value in os.environ.items() if name.startswith("FTML_BENCH_")}
        return cls(tuple(sys.argv), tuple(map(os.path.abspath, sys.path)), Path.cwd(), variables)

    def take(self) -> None:
        """Has this process hand it on to those that it makes."""
        sys.argv = list(self.command)
        sys.path[:] = [*self.path, *(folder for folder in sys.path if folder not in self.path)]
        with suppress(OSError):  # this machine has no such folder
            os.chdir(self.folder)
        os.environ.update(self.variables)
        vars(sys.modules["__main__"]).pop("__file__", None)  # Ray's, which a new process would import


# -- in a process of Ray's


def _server(path: tuple[str, ...], version: str) -> Callable[[bytes], Iterator[Message]]:
    """What is sent to Ray's processes. It imports nothing before it looks for modules where the run does: Ray has them
    look into the working folder first, where another version of the suite may lie."""

    def serve(sent: bytes) -> Iterator[Message]:
        import pickle
        import socket
        import sys

        sys.path[:] = [*path, *(folder for folder in sys.path if folder not in path)]
        try:
            import ftml_bench

            if ftml_bench.__version__ != version:
                raise ValueError(f"it has ftml-bench {ftml_bench.__version__}, the run {version}: expected the same")
            from ftml_bench.runs.cluster import _serve

            yield from _serve(*pickle.loads(sent))
        except Exception as error:
            raise RuntimeError(f"machine {socket.gethostname()}: {error}") from error

    return serve


_worker: Worker | None = None  # kept from task to task: what cells import takes seconds


def _serve(task: Task, origin: Origin) -> Iterator[Message]:
    """Runs a task, and gives what it says. It is cut off, without a last word, when the run has lost its folder."""
    if not locking.is_held(task.root, task.holder):
        raise UsageError(
            f"{task.root} is not the folder that is run: expected one that all machines share, its locks included"
        )
    worker = _worker_for(origin)
    worker.give(task)
    looked = time.monotonic()
    while worker.task is not None:
        wait([worker.connection], timeout=POLL)
        yield from worker.messages()
        if time.monotonic() > looked + _LOOK:
            if not locking.is_held(task.root, task.holder):
                worker.end()
                return
            looked = time.monotonic()


def _worker_for(origin: Origin) -> Worker:
    global _worker
    if _worker is None or not _worker.process.is_alive():
        origin.take()
        _worker = Worker()
        atexit.register(_worker.end)  # before multiprocessing waits for it, which waits for its next task
    return _worker
