"""Loggers that take every metric: a CSV file, and Weights & Biases.

Avalanche's own `CSVLogger` knows accuracy, loss and forgetting and leaves everything else out; its `WandBLogger`
(0.6.0) stops with an AttributeError in today's wandb, which besides drops every value whose x is below the one before.
Its interactive, text and TensorBoard loggers take all our metrics, which are plain numbers.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import avalanche.logging
import numpy as np
from avalanche.evaluation.metric_results import AlternativeValues, TensorImage
from avalanche.logging import BaseLogger
from matplotlib.figure import Figure
from PIL.Image import Image
from torch import Tensor

from ftml_bench.errors import UsageError


def number(value: object) -> float | int | None:
    """`value` as a plain number; None if it is none. Tensors and arrays of one element are numbers.

    >>> number(np.float32(0.5)), number("0.5")
    (0.5, None)
    """
    if isinstance(value, (Tensor, np.ndarray, np.generic)):
        return value.item() if np.size(value) == 1 or getattr(value, "numel", lambda: 0)() == 1 else None
    return value if isinstance(value, (bool, int, float)) else None


def _text(value: object) -> object:
    """What stands in a table for a value: a number, JSON for several, else what kind of thing it is."""
    if isinstance(value, AlternativeValues):
        value = value.best_supported_value(float, int, Tensor)
    if number(value) is not None:
        return number(value)
    if isinstance(value, (Tensor, np.ndarray)):
        return json.dumps(value.tolist())
    if value is None or isinstance(value, (str, list, tuple)):
        return value if isinstance(value, str) else json.dumps(value, default=str)
    if isinstance(value, bytes):
        return f"<{len(value)} bytes>"
    return f"<{type(value).__name__}>"


def _line(*row: object) -> bytes:
    text = io.StringIO()
    csv.writer(text).writerow(row)
    return text.getvalue().encode()


_HEADER = _line("metric", "x", "value")


class CSVLogger(BaseLogger):
    """Writes every metric value to a CSV file as a row `metric,x,value`, as soon as it is there.

    Numbers are written as numbers, tensors and lists as JSON, a dictionary as a row a key; of pictures and saved
    weights a row says that they were there.

    A run that begins replaces the file of an earlier one when its first value comes. One that goes on from a saved
    state (`ftml_bench.saving`) goes on in the file as it was when the state was saved: what was logged since is cut
    off, as it is logged again. If the file has been moved away, a new one is begun.

    :param path: the file. Its folder is made.
    :raises UsageError: the file is there and no such table.

    >>> import tempfile
    >>> logger = CSVLogger(Path(tempfile.mkdtemp()) / "metrics.csv")
    >>> logger.log_single_metric("Loss_Exp/eval_phase/test_stream/Task000/Exp000", 0.25, 7)
    >>> logger.close()
    >>> print(logger.path.read_text().splitlines()[1])
    Loss_Exp/eval_phase/test_stream/Task000/Exp000,7,0.25
    """

    def __init__(self, path: str | Path) -> None:
        super().__init__()
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = self.path.open("a+b")  # whether what is there is replaced is known when something is logged
        self._file.seek(0)
        if not _HEADER.startswith(self._file.read(len(_HEADER))):
            self._file.close()
            raise UsageError(f"{self.path} is there and no table of a CSVLogger: expected another name")
        self._length, self._hash = 0, hashlib.sha256()  # of what was written to it

    def _write(self, line: bytes) -> None:
        self._file.write(line)
        self._file.flush()
        self._length += len(line)
        self._hash.update(line)

    def state_dict(self) -> dict[str, Any]:
        """How much of the file has been written, which is on the disk then."""
        if not self._file.closed:
            os.fsync(self._file.fileno())
        return {"bytes": self._length, "sha256": self._hash.hexdigest()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on in the file as it was then.

        :raises UsageError: it does not begin so; then it stays as it is.
        """
        content = self.path.read_bytes()
        if not content:  # moved away
            return
        known = content[: state["bytes"]]
        if len(known) < state["bytes"] or hashlib.sha256(known).hexdigest() != state["sha256"]:
            raise UsageError(
                f"{self.path} does not begin with what had been logged when the state was saved: move it away, and a "
                "new one is begun"
            )
        self._file.truncate(len(known))
        self._length, self._hash = len(known), hashlib.sha256(known)

    def log_single_metric(self, name: str, value: object, x_plot: int) -> None:
        """Add a value."""
        if isinstance(value, dict):
            for key, part in value.items():
                self.log_single_metric(f"{name}/{key}", part, x_plot)
        else:
            if not self._length:
                self._file.truncate(0)
                self._write(_HEADER)
            self._write(_line(name, x_plot, _text(value)))

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class WandBLogger(avalanche.logging.WandBLogger):
    """Avalanche's `WandBLogger`, mended: it starts, takes numbers of every type, and no value is lost.

    Arguments are those of Avalanche's; `params={"mode": "offline"}` writes to the disk alone. Every metric has its own
    axis, `<metric>/x`: Weights & Biases drops what is logged at a smaller step than something before, and our metrics
    count datapoints where Avalanche's count iterations. May go when Avalanche's own does all this (it does not in
    0.6.0).
    """

    def before_run(self) -> None:
        """Start a run; wandb chooses its name and id if none are given."""
        self.wandb.init(**self.init_kwargs)
        self._defined: set[str] = set()

    def after_training_exp(self, strategy, metric_values, **kwargs) -> None:
        """Count the experience; its metric values are logged where they are emitted."""
        self.wandb.log({"TrainingExperience": self.exp_count})
        self.exp_count += 1

    def log_single_metric(self, name: str, value: object, x_plot: int) -> None:
        """Add a value."""
        if isinstance(value, dict):
            for key, part in value.items():
                self.log_single_metric(f"{name}/{key}", part, x_plot)
            return
        if name.startswith("WeightCheckpoint"):
            if self.log_artifacts:
                self._log_checkpoint(name, value, x_plot)
            return
        if name not in self._defined:
            self.wandb.define_metric(name, step_metric=f"{name}/x")
            self._defined.add(name)
        self.wandb.log({name: self._logged(value), f"{name}/x": x_plot})

    def _logged(self, value: object) -> object:
        """The value in a form that wandb shows."""
        if isinstance(value, AlternativeValues):
            value = value.best_supported_value(Image, TensorImage, Figure, float, int, Tensor)
        if number(value) is not None:
            return number(value)
        if isinstance(value, (Image, Figure)):
            return self.wandb.Image(value)
        if isinstance(value, TensorImage):
            return self.wandb.Image(np.array(value))
        if isinstance(value, (Tensor, np.ndarray)):
            return self.wandb.Histogram(np.asarray(value).ravel())
        return _text(value)
