"""Can the azimuth of an object be read off its pictures? A score that does not depend on the object's size.

The object is turned by 60 to 300 degrees, in steps of 15, and the change of the picture (root mean square) is divided
by that which a movement of 0.05 makes. The median over poses and three cameras is taken, and the least over all turns
is the score. Below 0.3 the object looks the same after some turn, and the loss cannot fall below 0.25 however well it
is learned; from 0.3 to 0.8 it is worth a look. (Divided by the median change over all turns a can would pass, because
all its turns look alike.)
"""

from __future__ import annotations

import math

import numpy as np

from ftml_bench.rendering import zbuffer
from ftml_bench.rendering.scene import Bytes, Camera, Mesh

CAMERAS = tuple(Camera(math.radians(a), math.radians(e)) for a, e in ((20, 35), (140, 50), (260, 65)))
TURNS = tuple(range(60, 301, 15))
MOVEMENT = 0.05


def azimuth_score(mesh: Mesh, *, poses: int = 12, size: int = 64) -> tuple[float, int]:
    """The score, and the turn in degrees after which the object looks most like itself.

    :param mesh: fitted, see :func:`~ftml_bench.rendering.scene.fitted`: its footprint's centre must be at the origin,
        or a symmetric object would trade azimuth for position.
    """
    ratios = np.array([_ratios(mesh, camera, pose, size) for camera in CAMERAS for pose in spread_poses(poses)])
    scores = np.median(ratios, axis=0)
    return float(scores.min()), TURNS[int(scores.argmin())]


def spread_poses(count: int) -> np.ndarray:
    """Places and azimuths that cover their ranges evenly: (count, 3), the same each time."""
    steps = np.arange(count)[:, None] * np.array([0.7548776662, 0.5698402910, 0.6180339887]) % 1
    return (2 * steps - 1) * [0.6, 0.6, math.pi]


def _ratios(mesh: Mesh, camera: Camera, pose: np.ndarray, size: int) -> list[float]:
    moves = MOVEMENT * np.array([[1, 0, 0], [-1, 0, 0], [0, 1, 0], [0, -1, 0]])
    turns = np.array([[0, 0, math.radians(turn)] for turn in TURNS])
    first, *others = zbuffer.render(mesh, camera, np.concatenate([pose[None], pose + moves, pose + turns]), size)
    moved = np.mean([_difference(first, image) for image in others[:4]])
    return [float(_difference(first, image) / moved) for image in others[4:]]


def _difference(a: Bytes, b: Bytes) -> float:
    return float(np.sqrt(np.mean((a.astype(np.float64) - b) ** 2)))
