"""A z-buffer in NumPy: runs wherever NumPy does, and is the oracle that other renderers are tested against.

2 x 2 samples a pixel, the nearest face a sample, flat Lambert shading of the side that faces the camera (so neither
winding nor closedness of a mesh matters), and the object's shadow on the table; an object casts no shadow on itself.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ftml_bench.rendering import scene
from ftml_bench.rendering.scene import LIGHT, Bytes, Camera, Floats, Mesh

_SAMPLES = 2  # a pixel, in each direction


def version() -> str:
    """What decides the pixels beside the package's own code."""
    return f"zbuffer, numpy {np.__version__}"


def render(mesh: Mesh, camera: Camera, poses: Floats, size: int) -> Bytes:
    """The object in each pose.

    :param mesh: in the object's frame, see :func:`~ftml_bench.rendering.scene.fitted`.
    :param poses: (N, 3): x, y, azimuth.
    :param size: side of the pictures in pixels.
    :return: (N, 3, size, size) uint8, RGB.
    """
    side = _SAMPLES * size
    lit, dark = _table(camera, side)
    corners = np.ascontiguousarray(mesh.faces.T)  # (3, F)
    normals = _normals(mesh)
    vertices = mesh.vertices.astype(np.float32)
    colour = 255 * np.array(scene.OBJECT_COLOUR, dtype=np.float32)[:, None]
    # Along the light onto the table: (x, y, z) -> (x, y, 0) - z * (light's slope).
    flat = np.eye(3)
    flat[:, 2] -= LIGHT / LIGHT[2]
    images = np.empty((len(poses), 3, size, size), dtype=np.uint8)
    for image, (x, y, azimuth) in zip(images, poses, strict=True):
        turn = scene.turn(azimuth)
        offset = camera.axes @ (np.array([x, y, 0.0]) - camera.position)
        samples = lit.copy()
        shadow, _, _ = _rasterise(vertices, camera.axes @ flat @ turn, offset, corners, side, nearest=False)
        samples[:, shadow] = dark[:, shadow]
        sample, face, towards = _rasterise(vertices, camera.axes @ turn, offset, corners, side, nearest=True)
        slope = normals[face] @ (turn.T @ LIGHT).astype(np.float32) * towards
        samples[:, sample] = colour * (scene.AMBIENT + scene.DIFFUSE * np.maximum(slope, 0))
        grid = samples.reshape(3, side, side)
        rows = grid[:, 0::2] + grid[:, 1::2]
        image[:] = (rows[:, :, 0::2] + rows[:, :, 1::2]) * np.float32(1 / _SAMPLES**2) + np.float32(0.5)
    return images


def _normals(mesh: Mesh) -> NDArray[np.float32]:
    a, b, c = (mesh.vertices[mesh.faces[:, i]] for i in range(3))
    normals = np.cross(b - a, c - a)
    length = np.linalg.norm(normals, axis=1, keepdims=True)
    return (normals / np.where(length > 0, length, 1)).astype(np.float32)


def _table(camera: Camera, side: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """The empty scene, (3, side * side), 0 to 255: in the light, and all in shadow."""
    centre = (np.arange(side) + 0.5 - side / 2) / scene.focal_length(side)
    right, up, forward = camera.axes
    rays = forward + centre[None, :, None] * right - centre[:, None, None] * up  # (row, column, 3)
    down = np.maximum(-rays[..., 2], 1e-9)  # a ray that does not go down meets the table's plane far away
    x, y = np.moveaxis(camera.position[:2] + rays[..., :2] * (camera.position[2] / down)[..., None], -1, 0)
    on_table = (np.abs(x) <= scene.TABLE_HALF) & (np.abs(y) <= scene.TABLE_HALF)
    in_dot = np.hypot(x - scene.DOT[0], y - scene.DOT[1]) <= scene.DOT_RADIUS
    colour = np.where(in_dot[..., None], scene.DOT_COLOUR, scene.TABLE_COLOUR) * on_table[..., None]
    flat = (255 * colour).reshape(-1, 3).T.astype(np.float32)
    return flat * np.float32(scene.AMBIENT + scene.DIFFUSE * LIGHT[2]), flat * np.float32(scene.AMBIENT)


def _rasterise(
    vertices: NDArray[np.float32],
    matrix: NDArray[np.float64],
    offset: NDArray[np.float64],
    corners: NDArray[np.int64],
    side: int,
    *,
    nearest: bool,
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]:
    """Which samples of the picture the faces cover.

    :param matrix, offset: from the vertices' frame to the camera's (right, up, forward).
    :param nearest: find the nearest face of each sample; otherwise samples may come repeatedly, with any face.
    :return: samples (row * side + column), their faces, and 1 or -1 as the face's winding is seen from the camera.
    """
    right, up, depth = matrix.astype(np.float32) @ vertices.T + offset.astype(np.float32)[:, None]
    inverse = np.float32(scene.focal_length(side)) / depth
    half = np.float32(side / 2 - 0.5)  # so that whole numbers are the samples' centres
    x, y = (half + right * inverse)[corners], (half - up * inverse)[corners]  # (3, F)
    # Samples in each face's bounding box; most faces of a fine mesh lie between the samples and end here.
    left, top = np.ceil(x.min(axis=0)), np.ceil(y.min(axis=0))
    wide, high = np.floor(x.max(axis=0)) - left + 1, np.floor(y.max(axis=0)) - top + 1
    ux, uy, vx, vy = x[1] - x[0], y[1] - y[0], x[2] - x[0], y[2] - y[0]
    area = ux * vy - uy * vx
    some = np.flatnonzero((wide > 0) & (high > 0) & (np.abs(area) > 1e-7))
    left, top, wide, high = (a[some].astype(np.int64) for a in (left, top, wide, high))
    # All (face, sample) pairs at once.
    count = wide * high
    face = np.repeat(np.arange(len(some)), count)
    place = np.arange(len(face)) - np.repeat(np.cumsum(count) - count, count)
    row, column = np.divmod(place, wide[face])
    row += top[face]
    column += left[face]
    inverse_area = 1 / area[some]
    first = x[0, some], y[0, some]
    dx, dy = column - first[0][face], row - first[1][face]
    u = dx * (vy[some] * inverse_area)[face] - dy * (vx[some] * inverse_area)[face]
    v = dy * (ux[some] * inverse_area)[face] - dx * (uy[some] * inverse_area)[face]
    hit = (u >= -1e-5) & (v >= -1e-5) & (u + v <= 1 + 1e-5)
    hit &= (column >= 0) & (column < side) & (row >= 0) & (row < side)
    hit = np.flatnonzero(hit)
    sample, face = row[hit] * side + column[hit], face[hit]
    if nearest:
        # 1 / depth is linear on the screen; depth itself is not.
        near = inverse[corners[:, some]]
        nearness = near[0][face] + u[hit] * (near[1] - near[0])[face] + v[hit] * (near[2] - near[0])[face]
        # The last of repeated places stays, which is the nearest.
        order = np.argsort(nearness, kind="stable")
        winner = np.full(side * side, -1)
        winner[sample[order]] = face[order]
        sample = np.flatnonzero(winner >= 0)
        face = winner[sample]
    # Rows grow downwards: a face that is counter-clockwise to the camera has a negative area here.
    return sample, some[face], -np.sign(area[some[face]])
