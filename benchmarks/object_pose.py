"""Object pose (Finn et al. 2019, section 6.3): where an object stands on a table, from a picture of it."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ftml_bench.benchmarks.checks import check_int
from ftml_bench.benchmarks.data import data_root
from ftml_bench.benchmarks.stacked import StackedDataset
from ftml_bench.benchmarks.stream import TaskStream, carry
from ftml_bench.cores import usable_cores
from ftml_bench.errors import UsageError, unknown
from ftml_bench.rendering import RENDERERS
from ftml_bench.rendering.cache import cache_root, key_of, load
from ftml_bench.rendering.meshes import PASCAL3D_OBJECTS, clean, parse_off, read_pascal3d
from ftml_bench.rendering.scene import Camera, Mesh, fitted
from ftml_bench.rendering.solids import SOLIDS, solid
from ftml_bench.rendering.worker import Task
from ftml_bench.rendering.workers import render_tasks, version_of
from ftml_bench.seeding import generator

OBJECTS = {"solids": SOLIDS, "pascal3d": PASCAL3D_OBJECTS}
TASKS = 90  # of 50 objects: each from one viewpoint, 40 of them from a second one
POSITION = 0.6  # x and y are uniform in [-POSITION, POSITION]
ELEVATION = (math.radians(30), math.radians(70))
EXTENT = (0.8, 1.2)  # the longest side of a task's object


@dataclass(frozen=True)
class View:
    """What makes a task: an object, its longest side, and the camera that looks at it."""

    object: str
    extent: float
    camera: Camera

    def __str__(self) -> str:
        return f"{self.object}, {self.extent:.2f} long\ncamera {self.camera}"


class ObjectPose(TaskStream):
    """Regression to (x, y, sin, cos) of an object's position and azimuth on a table, from pictures of 3 x 64 x 64.

    90 tasks: 50 objects of 9 classes from about two viewpoints each, which differ in every task, as the object's size
    does. x and y are uniform in [-0.6, 0.6], in half sides of the table, the azimuth in [-pi, pi]; nothing is scaled,
    so the ranges are part of the threshold 0.05 (the mean over the four numbers of the squared error; predicting the
    mean costs 0.31). A red dot in the corner (0.9, 0.9) shows which way the table lies.

    The pictures are rendered once, on all cores, and kept in the cache folder. Which renderer makes them is named; the
    pictures of two renderers differ, so scores on them must not be mixed.

    Each experience has `.view` (a :class:`View`) and `.poses`, (N, 3) float64: x, y and the azimuth in radians.
    """

    version = 1

    #: What is enough for a contact sheet, which need not wait for the rest.
    sheet_settings = {"images_per_round": 10, "held_out_per_round": 1}

    def __init__(
        self,
        *,
        seed: int = 0,
        rounds: int = TASKS,
        images_per_round: int = 1000,
        held_out_per_round: int = 100,
        image_size: int = 64,
        objects: str = "solids",
        renderer: str = "zbuffer",
        root: str | os.PathLike[str] | None = None,
        cache: str | os.PathLike[str] | None = None,
    ) -> None:
        """
        :param seed: decides the order of the tasks, their viewpoints and sizes, and every pose. With another number of
            rounds or images, those that both have are the same.
        :param rounds: 1 to 90.
        :param images_per_round: datapoints of each round, 1 or more.
        :param held_out_per_round: held-out images of each round, 1 or more.
        :param image_size: side of the images in pixels, 32 to 256 (the authors': 125).
        :param objects: "solids", 50 made-up ones that need no files, or "pascal3d", 50 CAD models from
            `pascal3d/CAD.tar.xz` in the data folder.
        :param renderer: "zbuffer" (NumPy) or "mujoco" (optional: `pip install 'ftml-bench[mujoco]'` and OSMesa).
        :param root: the data folder, see :func:`~ftml_bench.benchmarks.data.data_root`.
        :param cache: where rendered pictures are kept, see :func:`~ftml_bench.rendering.cache.cache_root`.
        :raises UsageError: for arguments outside these ranges, if meshes are missing or damaged, if the renderer is not
            installed or cannot draw, or if the cache cannot be written.
        """
        plan = _Plan.of(seed, rounds, images_per_round, held_out_per_round, image_size, objects, renderer, root, cache)
        self.image_size = plan.size
        self.renderer = plan.version
        base = torch.from_numpy(plan.images())
        n = plan.train_size
        rows = torch.arange(len(base)).view(len(plan.views), -1)
        poses = [torch.from_numpy(each) for each in plan.poses]
        super().__init__(
            title=f"Object pose ({objects}, {renderer})",
            train=[StackedDataset(base, labels_of(p[:n]), r[:n]) for p, r in zip(poses, rows, strict=True)],
            held_out=[StackedDataset(base, labels_of(p[n:]), r[n:]) for p, r in zip(poses, rows, strict=True)],
            threshold=("loss", 0.05),
            checkpoints=[c for c in (60, 400) if c <= n] or [n],
            # Fine where the curves are steep, coarse later.
            arrivals=[10] * 10 + [50] * 6 + [100],
            criterion=nn.MSELoss(),
            inner_lr=0.1,
            update_steps=5,
        )
        carry(self.train_stream, view=plan.views, poses=[p[:n] for p in poses])
        carry(self.test_stream, view=plan.views, poses=[p[n:] for p in poses])

    @classmethod
    def prepare(
        cls,
        *,
        seed: int = 0,
        rounds: int = TASKS,
        images_per_round: int = 1000,
        held_out_per_round: int = 100,
        image_size: int = 64,
        objects: str = "solids",
        renderer: str = "zbuffer",
        root: str | os.PathLike[str] | None = None,
        cache: str | os.PathLike[str] | None = None,
    ) -> None:
        """Render what a benchmark with these arguments needs and the cache lacks, without reading any of it."""
        plan = _Plan.of(seed, rounds, images_per_round, held_out_per_round, image_size, objects, renderer, root, cache)
        plan.render([t for t, file in enumerate(plan.files) if not os.path.isfile(file)])

    def model(self) -> nn.Module:
        """The paper's network: four convolutions of 16 filters, a spatial soft-argmax, two layers of 200."""
        from ftml_bench.models import PoseNet

        return PoseNet(image_size=self.image_size)

    def label_text(self, label: Tensor) -> str:
        """A label for people: x, y, and the azimuth in degrees."""
        x, y, sine, cosine = label.tolist()
        # + 0.0: no minus before a zero
        return f"{round(x, 1) + 0.0} {round(y, 1) + 0.0} {math.degrees(math.atan2(sine, cosine)):.0f}°"


def labels_of(poses: Tensor) -> Tensor:
    """(N, 3) x, y, azimuth -> (N, 4) float32 x, y, sin, cos."""
    x, y, azimuth = poses.unbind(1)
    return torch.stack([x, y, azimuth.sin(), azimuth.cos()], dim=1).float()


@dataclass(frozen=True)
class _Plan:
    """All that decides a stream's pictures, and the files that they are kept in."""

    renderer: str
    version: str
    size: int
    train_size: int
    views: list[View]
    poses: list[NDArray[np.float64]]  # of each round, (train + held-out, 3)
    files: list[Path]
    mesh: Callable[[str], Mesh]

    @classmethod
    def of(
        cls,
        seed: int,
        rounds: int,
        images_per_round: int,
        held_out_per_round: int,
        image_size: int,
        objects: str,
        renderer: str,
        root: str | os.PathLike[str] | None,
        cache: str | os.PathLike[str] | None,
    ) -> _Plan:
        """The plan for a stream's arguments; nothing is rendered."""
        seed = check_int("seed", seed)
        rounds = check_int("rounds", rounds, least=1, most=TASKS)
        train_size = check_int("images_per_round", images_per_round, least=1)
        held_out = check_int("held_out_per_round", held_out_per_round, least=1)
        size = check_int("image_size", image_size, least=32, most=256)
        if objects not in OBJECTS:
            raise unknown("set of objects", objects, OBJECTS)
        if renderer not in RENDERERS:
            raise unknown("renderer", renderer, RENDERERS)
        tasks = _tasks(seed, OBJECTS[objects])[:rounds]
        views = [_view(seed, name, number) for name, number in tasks]
        poses = [
            np.concatenate([_poses(seed, *task, "train", train_size), _poses(seed, *task, "test", held_out)])
            for task in tasks
        ]
        shapes, mesh = _meshes(objects, sorted({view.object for view in views}), root)
        version = version_of(renderer)
        folder = cache_root(cache) / "pose"
        keys = [
            key_of(renderer, version, shapes[v.object] + repr(v.extent).encode(), v.camera, p, size)
            for v, p in zip(views, poses, strict=True)
        ]
        files = [folder / f"{key}.npz" for key in keys]
        return cls(renderer, version, size, train_size, views, poses, files, mesh)

    def images(self) -> NDArray[np.uint8]:
        """The pictures of all rounds, (rounds * N, 3, size, size), from the cache; rendered where it lacks them."""
        n = len(self.poses[0])
        images = np.empty((len(self.views) * n, 3, self.size, self.size), dtype=np.uint8)
        pieces = np.split(images, len(self.views))
        with ThreadPoolExecutor(usable_cores()) as pool:  # most of it is unpacking, which lets other threads run
            there = list(pool.map(self._read, range(len(pieces)), pieces))
        lacking = [t for t, found in enumerate(there) if not found]
        self.render(lacking)
        for t in lacking:
            if not self._read(t, pieces[t]):
                raise UsageError(f"the cache {self.files[t]} was written and cannot be read back")
        return images

    def render(self, rounds: Sequence[int]) -> None:
        """Render some rounds into their files."""
        views = self.views
        meshes = {name: self.mesh(name) for name in sorted({views[t].object for t in rounds})}
        render_tasks(
            [
                Task(
                    renderer=self.renderer,
                    mesh=fitted(meshes[views[t].object], views[t].extent),
                    camera=views[t].camera,
                    poses=self.poses[t],
                    size=self.size,
                    file=self.files[t],
                )
                for t in rounds
            ]
        )

    def _read(self, t: int, into: NDArray[np.uint8]) -> bool:
        found = load(self.files[t], self.poses[t], self.size)
        if found is not None:
            into[:] = found
        return found is not None


def _tasks(seed: int, objects: Sequence[str]) -> list[tuple[str, int]]:
    """All tasks in their order: objects and the number of the viewpoint, 0 or 1."""
    again = torch.randperm(len(objects), generator=generator(seed, "stream", "object-pose", "second viewpoints"))
    tasks = [(name, 0) for name in objects] + [(objects[i], 1) for i in again[: TASKS - len(objects)].tolist()]
    order = torch.randperm(len(tasks), generator=generator(seed, "stream", "object-pose", "tasks"))
    return [tasks[i] for i in order.tolist()]


def _uniform(seed: int, name: str, number: int, what: str, shape: tuple[int, ...]) -> NDArray[np.float64]:
    own = generator(seed, "stream", "object-pose", name, number, what)
    return torch.rand(shape, generator=own, dtype=torch.float64).numpy()


def _view(seed: int, name: str, number: int) -> View:
    azimuth, elevation, extent = _uniform(seed, name, number, "view", (3,)).tolist()
    camera = Camera(math.pi * (2 * azimuth - 1), ELEVATION[0] + (ELEVATION[1] - ELEVATION[0]) * elevation)
    return View(name, EXTENT[0] + (EXTENT[1] - EXTENT[0]) * extent, camera)


def _poses(seed: int, name: str, number: int, split: str, n: int) -> NDArray[np.float64]:
    return (2 * _uniform(seed, name, number, split, (n, 3)) - 1) * [POSITION, POSITION, math.pi]


def _meshes(
    objects: str, names: Sequence[str], root: str | os.PathLike[str] | None
) -> tuple[dict[str, bytes], Callable[[str], Mesh]]:
    """What identifies each object's shape, and what makes its mesh when it is needed."""
    if objects == "solids":
        solids = {name: clean(solid(name), name) for name in names}
        return {
            name: mesh.vertices.tobytes() + mesh.faces.tobytes() for name, mesh in solids.items()
        }, solids.__getitem__
    files = read_pascal3d(data_root(root) / "pascal3d", names)
    digests = {name: hashlib.sha256(content).digest() for name, content in files.items()}
    return digests, lambda name: clean(parse_off(files[name], name), name)
