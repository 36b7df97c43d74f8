"""What the command line says about the pose stream's data: what is there, how fast it renders, how readable it is."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from ftml_bench.errors import UsageError
from ftml_bench.rendering import RENDERERS, renderer
from ftml_bench.rendering.cache import cache_root
from ftml_bench.rendering.meshes import PASCAL3D_OBJECTS, clean, parse_off, read_pascal3d
from ftml_bench.rendering.readability import azimuth_score, spread_poses
from ftml_bench.rendering.scene import Camera, Mesh, fitted
from ftml_bench.rendering.solids import SOLIDS, solid
from ftml_bench.rendering.workers import version_of

_IMAGES = 60  # of each object, when renderers are timed
_SIZE = 64


def state(folder: Path) -> Iterator[str]:
    """Lines that say which meshes, renderers and rendered pictures there are.

    :param folder: `pascal3d` in the data folder.
    """
    yield f"solids: {len(SOLIDS)} made-up objects, built in"
    try:
        yield f"pascal3d: {len(read_pascal3d(folder, PASCAL3D_OBJECTS))} CAD models in {folder}, complete"
    except UsageError as error:
        yield f"pascal3d: {error}"
    for name in RENDERERS:
        try:
            yield f"renderer {name}: {version_of(name)}"
        except UsageError as error:
            yield f"renderer {name}: {error}"
    cache = cache_root() / "pose"
    sizes = [file.stat().st_size for file in cache.glob("*.npz")]
    yield f"rendered: {len(sizes)} tasks, {sum(sizes) / 1e6:.1f} MB, in {cache}"


def speed(folder: Path) -> Iterator[str]:
    """Lines with the images per CPU second of every renderer on every set of objects, set-up included.

    :param folder: `pascal3d` in the data folder.
    """
    yield f"{_SIZE} x {_SIZE} with shadows, {_IMAGES} images of each object; images per CPU second (slowest object)"
    sets = {"solids": _solids()}
    try:
        sets["pascal3d"] = _pascal3d(folder, PASCAL3D_OBJECTS)
    except UsageError as error:
        yield f"pascal3d: {error}"
    poses = spread_poses(_IMAGES)
    camera = Camera(0.5, 0.8)
    for name in RENDERERS:
        try:
            renderer(name).render(sets["solids"]["car/01"], camera, poses[:1], _SIZE)  # imports are not counted
        except UsageError as error:
            yield f"{name}: {error}"
            continue
        for title, meshes in sets.items():
            seconds = {}
            for key, mesh in meshes.items():
                start = time.process_time()
                renderer(name).render(mesh, camera, poses, _SIZE)
                seconds[key] = time.process_time() - start
            slowest = max(seconds, key=lambda key: seconds[key])
            mean = len(seconds) * _IMAGES / sum(seconds.values())
            faces = np.mean([len(mesh.faces) for mesh in meshes.values()])
            yield (
                f"{name:8} {title:9} {mean:7.0f} ({_IMAGES / seconds[slowest]:.0f}, {slowest}); "
                f"{len(meshes)} objects of {faces:,.0f} faces on average"
            )


def scores(folder: Path) -> Iterator[str]:
    """Lines with the azimuth score of every object that there is, those that are left out included, lowest first.

    :param folder: `pascal3d` in the data folder.
    """
    yield "the azimuth is unreadable below 0.3, doubtful below 0.8; - : not among the stream's objects"
    sets = {"solids": (_solids(), SOLIDS)}
    try:
        sets["pascal3d"] = (_pascal3d(folder, None), PASCAL3D_OBJECTS)
    except UsageError as error:
        yield f"pascal3d: {error}"
    for title, (meshes, used) in sets.items():
        found = sorted((azimuth_score(mesh), name) for name, mesh in meshes.items())
        for (score, turn), name in found:
            yield f"{title:9} {'' if name in used else '-':1} {name:15} {score:5.2f} at {turn} degrees"


def _solids() -> dict[str, Mesh]:
    return {name: fitted(clean(solid(name), name), 1.0) for name in SOLIDS}


def _pascal3d(folder: Path, names: tuple[str, ...] | None) -> dict[str, Mesh]:
    files = read_pascal3d(folder, names)
    return {name: fitted(clean(parse_off(content, name), name), 1.0) for name, content in files.items()}
