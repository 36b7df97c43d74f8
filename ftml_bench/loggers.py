"""Loggers that take every metric: a CSV file, and Weights & Biases.

Avalanche's own `CSVLogger` knows accuracy, loss and forgetting and leaves everything else out; its `WandBLogger`
(0.6.0) stops with an AttributeError in today's wandb, which besides drops every value whose x is below the one before.
Its interactive, text and TensorBoard loggers take all our metrics, which are plain numbers.
"""

from __future__ import annotations

import csv
import json
from pathlib import Path

import avalanche.logging
import numpy as np
from avalanche.evaluation.metric_results import AlternativeValues, TensorImage
from avalanche.logging import BaseLogger
from matplotlib.figure import Figure
from PIL.Image import Image
from torch import Tensor


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


class CSVLogger(BaseLogger):
    """Writes every metric value to a CSV file as a row `metric,x,value`, as soon as it is there.

    Numbers are written as numbers, tensors and lists as JSON, a dictionary as a row a key; of pictures and saved
    weights a row says that they were there.

    :param path: the file; an older one is replaced. Its folder is made.

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
        self._file = self.path.open("w", newline="", encoding="utf-8")
        self._rows = csv.writer(self._file)
        self._write("metric", "x", "value")

    def _write(self, *row: object) -> None:
        self._rows.writerow(row)
        self._file.flush()

    def log_single_metric(self, name: str, value: object, x_plot: int) -> None:
        """Add a value."""
        if isinstance(value, dict):
            for key, part in value.items():
                self.log_single_metric(f"{name}/{key}", part, x_plot)
        else:
            self._write(name, x_plot, _text(value))

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
