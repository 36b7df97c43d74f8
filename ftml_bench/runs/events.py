"""TensorBoard's events of a cell. What the disk refuses of them is an error of the cell's, and nothing beside."""

from __future__ import annotations

import threading
from pathlib import Path

from avalanche.logging import TensorboardLogger
from tensorboard.summary.writer.event_file_writer import _AsyncWriterThread

from ftml_bench.runs.storage import storing


class Events(TensorboardLogger):
    """Writes them into a folder; what fails is a `StorageError`."""

    def __init__(self, folder: Path) -> None:
        threading.excepthook = _but_for_events
        self._folder = folder
        with storing(folder):
            super().__init__(str(folder))

    def log_single_metric(self, name, value, x_plot) -> None:
        """See Avalanche."""
        with storing(self._folder):
            super().log_single_metric(name, value, x_plot)

    def flush(self) -> None:
        """Have what was logged in its file."""
        with storing(self._folder):
            self.writer.flush()

    def close(self) -> None:
        """The same, and end."""
        try:
            with storing(self._folder):
                self.writer.close()
        finally:
            self.writer.all_writers = None  # else it is tried again when this is thrown away, and said that it failed


_before = threading.excepthook


def _but_for_events(arguments: threading.ExceptHookArgs) -> None:
    """TensorBoard writes in a thread, and gives what fails there to whoever logs next: that is where it is heard."""
    if not isinstance(arguments.thread, _AsyncWriterThread):
        _before(arguments)
