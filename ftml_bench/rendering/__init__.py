"""Pictures of one object on a table: the images of the pose stream.

The interface of a renderer is one function::

    render(mesh, camera, poses, size) -> (N, 3, size, size) uint8

with a :class:`~ftml_bench.rendering.scene.Mesh`, a :class:`~ftml_bench.rendering.scene.Camera`, and (N, 3) float64
poses: x, y, and the azimuth in radians. Two modules have it:

- `zbuffer`: a page of NumPy, runs anywhere;
- `mujoco_renderer`: MuJoCo's renderer, off screen (the extra `mujoco`, and OSMesa or EGL).

Their pictures show the same scene and differ in their pixels, so the renderer is always named and never chosen by what
happens to be installed. Nothing here imports torch: the processes that render start at once.
"""

from __future__ import annotations

import importlib
from types import ModuleType

from ftml_bench.errors import unknown

RENDERERS = {"zbuffer": "ftml_bench.rendering.zbuffer", "mujoco": "ftml_bench.rendering.mujoco_renderer"}


def renderer(name: str) -> ModuleType:
    """The module of a renderer: `render(mesh, camera, poses, size)` and `version()`.

    :raises UsageError: for an unknown name.
    """
    if name not in RENDERERS:
        raise unknown("renderer", name, RENDERERS)
    return importlib.import_module(RENDERERS[name])
