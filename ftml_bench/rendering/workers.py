"""Renders tasks on all cores: processes of our own, which import NumPy and a renderer, and neither torch nor Avalanche.

(`multiprocessing` would fork torch's threads, or run the user's script a second time.)
"""

from __future__ import annotations

import os
import pickle
import queue
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from tqdm import tqdm

from ftml_bench import bars
from ftml_bench.cores import usable_cores
from ftml_bench.errors import UsageError
from ftml_bench.rendering import zbuffer
from ftml_bench.rendering.worker import Task


def version_of(renderer: str) -> str:
    """What the renderer says of itself; MuJoCo is asked in a process of its own, so that this one imports none of it.

    :raises UsageError: if it is not installed or cannot draw.
    """
    if renderer == "zbuffer":
        return zbuffer.version()
    with tempfile.TemporaryDirectory() as folder, _Process(Path(folder), renderer) as process:
        return process.ask(renderer)


def render_tasks(tasks: Sequence[Task]) -> None:
    """Render every task into its file, with a bar; in a log, one of what takes longer than its lines are apart.

    :raises UsageError: if the renderer cannot draw or a file cannot be written. Tasks that are done stay done.
    """
    if not tasks:
        return
    waiting: queue.SimpleQueue[Task] = queue.SimpleQueue()
    for task in tasks:
        waiting.put(task)
    stop = threading.Event()
    failures: list[UsageError] = []
    images = sum(len(task.poses) for task in tasks)
    with (
        tempfile.TemporaryDirectory() as folder,
        _bar(images) as bar,
        ExitStack() as stack,
    ):

        def serve(process: _Process) -> None:
            """Hand a process task after task, until none is left or one has failed."""
            while not stop.is_set():
                try:
                    process.ask(waiting.get_nowait(), bar.update)
                except queue.Empty:
                    return
                except UsageError as error:
                    if not stop.is_set():  # else it is the end that we have put to the process
                        failures.append(error)
                    stop.set()

        count = min(usable_cores(), len(tasks))
        processes = [stack.enter_context(_Process(Path(folder), tasks[0].renderer)) for _ in range(count)]
        threads = [threading.Thread(target=serve, args=(process,)) for process in processes]
        try:
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        finally:  # also at Ctrl-C: a process that is ended lets its thread go
            stop.set()
            for process in processes:
                process.kill()
            for thread in threads:
                thread.join()
    if failures:
        raise failures[0]


class _Process:
    """One worker process."""

    def __init__(self, folder: Path, renderer: str) -> None:
        self.renderer = renderer
        self._log = folder / f"{id(self)}.txt"
        # The same ftml_bench as here, however this process has found it.
        place = str(Path(__file__).resolve().parents[2])
        code = f"import sys; sys.path.append({place!r}); from ftml_bench.rendering.worker import main; main()"
        # One thread each: there is a process a core. MuJoCo leaves its log in the folder that it runs in.
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "LP_NUM_THREADS": "0"}
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-c", code],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                cwd=folder,
                env=environment,
            )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._orders: IO[bytes] = self._process.stdin
        self._answers: IO[bytes] = self._process.stdout

    def __enter__(self) -> _Process:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def ask(self, order: Task | str, show: Callable[[int], Any] = lambda images: None) -> Any:
        """Have an order carried out.

        :param show: called with the number of images after every few.
        :raises UsageError: if it fails, or the process ends.
        """
        try:
            pickle.dump(order, self._orders)
            self._orders.flush()
            while True:
                kind, content = pickle.load(self._answers)
                if kind == "done":
                    return content
                if kind == "failed":
                    raise UsageError(content)
                show(content)
        except (OSError, EOFError, pickle.UnpicklingError) as error:
            raise UsageError(self._ended()) from error

    def kill(self) -> None:
        """End the process, whatever it is doing."""
        self._process.kill()
        self._process.wait()

    def close(self) -> None:
        """End the process and let go of its streams."""
        self.kill()
        for stream in (self._orders, self._answers):
            with suppress(OSError):  # what was still to be written to a process that is gone
                stream.close()

    def _ended(self) -> str:
        code = self._process.wait(timeout=60)
        how = f"signal {-code}" if code < 0 else f"exit code {code}"
        lines = self._log.read_text(errors="replace").splitlines()
        last = next((line.strip() for line in reversed(lines) if line.strip()), "it said nothing")
        return f"a process that renders with {self.renderer!r} has ended ({how}): {last}"


def _bar(images: int) -> tqdm:
    kind, delay = (tqdm, 0) if bars.watched() else (bars.Lines, bars.SECONDS_IN_A_LOG)
    return kind(total=images, desc="rendering", unit=" images", delay=delay, **bars.settings())
