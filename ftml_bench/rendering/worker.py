"""A process that renders tasks: pickled orders on its standard input, pickled answers on its standard output.

An order is a `Task`, or the name of a renderer, whose version is wanted. Answers are ("rendered", images since the last
answer), ("done", what was asked for: None or the version), or ("failed", one line).
"""

from __future__ import annotations

import os
import pickle
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ftml_bench.errors import UsageError
from ftml_bench.rendering import cache, renderer
from ftml_bench.rendering.scene import Camera, Mesh

# Images between two signs of progress; MuJoCo makes its model anew for each.
_AT_ONCE = 200


@dataclass(frozen=True)
class Task:
    """The pictures of one task, to be rendered into a file.

    :param renderer: "zbuffer" or "mujoco".
    :param mesh: in the object's frame.
    :param poses: (N, 3) float64: x, y, azimuth.
    :param size: side of the pictures in pixels.
    :param file: see `ftml_bench.rendering.cache`.
    """

    renderer: str
    mesh: Mesh
    camera: Camera
    poses: NDArray[np.float64]
    size: int
    file: Path


def main() -> None:
    """Serve until the standard input ends."""
    orders, answers = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever a library prints must not get between the answers

    def answer(*message: Any) -> None:
        pickle.dump(message, answers)
        answers.flush()

    while True:
        try:
            order = pickle.load(orders)
        except EOFError:
            return
        try:
            if isinstance(order, str):
                answer("done", renderer(order).version())
                continue
            render = renderer(order.renderer).render
            pieces = []
            for start in range(0, len(order.poses), _AT_ONCE):
                poses = order.poses[start : start + _AT_ONCE]
                pieces.append(render(order.mesh, order.camera, poses, order.size))
                answer("rendered", len(poses))
            cache.save(order.file, np.concatenate(pieces), order.poses)
            answer("done", None)
        except UsageError as error:
            answer("failed", str(error))
        except Exception as error:
            answer("failed", f"{type(error).__name__}: {' '.join(str(error).split())}")
