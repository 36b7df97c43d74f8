"""What pictures show: masks, boxes and greys, and the cameras that look."""

from __future__ import annotations

import math

import numpy as np
import pytest

from ftml_bench.rendering import scene
from ftml_bench.rendering.meshes import clean
from ftml_bench.rendering.scene import Camera, fitted, placed
from ftml_bench.rendering.solids import solid

SIZE = 64
CAMERAS = [Camera(math.radians(a), math.radians(e)) for a, e in ((-160, 33), (-40, 50), (75, 68), (170, 41))]


def mesh_of(name, extent=1.0):
    return fitted(clean(solid(name), name), extent)


def grey(images):
    return images.astype(int).sum(axis=1)


def object_masks(render, mesh, camera, poses, size=SIZE):
    """Where the object is, (N, size, size): rendered in green on a blue table."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scene, "OBJECT_COLOUR", (0.0, 1.0, 0.0))
        patch.setattr(scene, "TABLE_COLOUR", (0.0, 0.0, 1.0))
        patch.setattr(scene, "DOT_COLOUR", (1.0, 0.0, 0.0))
        return render(mesh, camera, poses, size)[:, 1] > 50


def inside(mask):
    """The pixels of a mask whose neighbours are in it too."""
    return mask & np.roll(mask, 1, 0) & np.roll(mask, -1, 0) & np.roll(mask, 1, 1) & np.roll(mask, -1, 1)


def box_errors(masks, mesh, camera, poses):
    """How far, in pixels, the masks' bounding boxes are from those of the vertices in these poses."""
    errors = []
    for mask, pose in zip(masks, poses, strict=True):
        points, _ = camera.project(placed(mesh.vertices, pose), SIZE)
        errors.append(np.abs(bounding_box(mask) - np.concatenate([points.min(axis=0), points.max(axis=0)])).max())
    return errors


def bounding_box(mask):
    """Left, top, right, bottom edge of the pixels that are set."""
    rows, columns = np.nonzero(mask)
    return np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
