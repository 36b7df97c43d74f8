"""The scene: a table with a red dot in one corner, an object on it, a light, a camera. Lengths in half tables.

The table is the square [-1, 1] x [-1, 1] at z = 0 and z points up. An object's own frame has its footprint's centre at
the origin and its lowest point at z = 0; a pose (x, y, azimuth) turns it counter-clockwise, seen from above, and puts
that centre at (x, y).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating]
Bytes = NDArray[np.uint8]

TABLE_HALF = 1.0
DOT = (0.9, 0.9)
DOT_RADIUS = 0.08

# RGB in [0, 1]. What is drawn is colour * (AMBIENT + DIFFUSE * max(0, normal . LIGHT)), the second term not in shadow.
OBJECT_COLOUR = (1.0, 0.98, 0.94)
TABLE_COLOUR = (0.36, 0.46, 0.50)
DOT_COLOUR = (0.90, 0.08, 0.08)
AMBIENT = 0.4
DIFFUSE = 0.6
# Towards the light, which is far away: high, but from one side, so that opposite sides differ in brightness.
LIGHT = np.array([0.40, -0.25, 0.88]) / math.hypot(0.40, 0.25, 0.88)

FIELD_OF_VIEW = 45.0  # vertical, degrees
# All four corners of the table are inside the picture for every elevation from 30 to 70 degrees.
DISTANCE = 3.8


@dataclass(frozen=True)
class Mesh:
    """Triangles: `vertices` (V, 3) float64, `faces` (F, 3) int64, counted from 0. Winding means nothing."""

    vertices: NDArray[np.float64]
    faces: NDArray[np.int64]


@dataclass(frozen=True)
class Camera:
    """A camera that looks at the table's centre. Angles in radians; azimuth from the x axis towards the y axis."""

    azimuth: float
    elevation: float

    def __str__(self) -> str:
        return f"{math.degrees(self.azimuth):.0f}° around, {math.degrees(self.elevation):.0f}° up"

    @property
    def position(self) -> NDArray[np.float64]:
        """(3,)."""
        level = math.cos(self.elevation)
        return DISTANCE * np.array(
            [level * math.cos(self.azimuth), level * math.sin(self.azimuth), math.sin(self.elevation)]
        )

    @property
    def axes(self) -> NDArray[np.float64]:
        """(3, 3): unit vectors to the right of the picture, upwards in it, and into it."""
        forward = -self.position / DISTANCE
        right = np.cross(forward, [0.0, 0.0, 1.0])
        right /= np.linalg.norm(right)
        return np.stack([right, np.cross(right, forward), forward])

    def project(self, points: Floats, size: int) -> tuple[Floats, Floats]:
        """Where points are seen in a picture of `size` x `size` pixels.

        :param points: (..., 3) in the table's frame.
        :return: (..., 2) column and row, from the left and the top edge of the picture (the centre of the first pixel
            is at 0.5), and (...) the depth, along the direction that the camera looks in.
        """
        seen = (points - self.position) @ self.axes.T
        depth = seen[..., 2]
        scale = focal_length(size) / depth
        return np.stack([size / 2 + seen[..., 0] * scale, size / 2 - seen[..., 1] * scale], axis=-1), depth


def focal_length(size: int) -> float:
    """Pixels for one unit sideways at a depth of one unit."""
    return size / 2 / math.tan(math.radians(FIELD_OF_VIEW) / 2)


def turn(azimuth: float) -> NDArray[np.float64]:
    """(3, 3): the rotation by `azimuth` (radians) about the z axis."""
    c, s = math.cos(azimuth), math.sin(azimuth)
    return np.array([[c, -s, 0.0], [s, c, 0.0], [0.0, 0.0, 1.0]])


def placed(vertices: Floats, pose: Floats) -> Floats:
    """The vertices, (V, 3), of an object in a pose (x, y, azimuth), in the table's frame."""
    return vertices @ turn(float(pose[2])).T + [pose[0], pose[1], 0.0]


def fitted(mesh: Mesh, extent: float) -> Mesh:
    """The mesh in its own frame: footprint's centre at the origin, lowest point at z = 0, longest side `extent`."""
    low, high = mesh.vertices.min(axis=0), mesh.vertices.max(axis=0)
    origin = np.array([(low[0] + high[0]) / 2, (low[1] + high[1]) / 2, low[2]])
    return Mesh((mesh.vertices - origin) * (extent / (high - low).max()), mesh.faces)
