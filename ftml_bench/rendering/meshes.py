"""Meshes of real things: PASCAL3D+'s CAD models, read from their archive where it lies.

Y. Xiang, R. Mottaghi, S. Savarese: Beyond PASCAL: A Benchmark for 3D Object Detection in the Wild, WACV 2014. Twelve
classes of models in OFF files, upright, z up.
"""

from __future__ import annotations

import lzma
import os
import tarfile
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ftml_bench.errors import UsageError
from ftml_bench.files import damaged, is_there, opened
from ftml_bench.rendering.scene import Mesh

# Of twelve classes without bottle, diningtable and train, whose azimuth cannot be read off a picture, and without five
# models of the others for the same reason (docs/pose.md has the scores): 50 objects of 9 classes, the paper's numbers.
PASCAL3D_NUMBERS = {
    "aeroplane": (1, 2, 3, 4, 5, 6, 7, 8),
    "bicycle": (1, 2, 3, 4, 5, 6),
    "boat": (1, 2, 3, 4, 6),
    "bus": (1, 3, 6),
    "car": (1, 3, 4, 6, 8),
    "chair": (1, 2, 3, 4, 5, 6, 7, 8, 9, 10),
    "motorbike": (1, 2, 3, 5),
    "sofa": (1, 2, 3, 4, 5, 6),
    "tvmonitor": (2, 3, 4),
}
PASCAL3D_OBJECTS = tuple(f"{kind}/{number:02}" for kind, numbers in PASCAL3D_NUMBERS.items() for number in numbers)
_LARGEST = 2**28  # bytes of a model, a hundred times what the largest of these has


def read_pascal3d(folder: Path, names: Iterable[str] | None = None) -> dict[str, bytes]:
    """The OFF files of some models, from `CAD.tar.xz` in `folder`, or from `CAD/` where it is unpacked.

    :param folder: `pascal3d` in the data folder. Nothing is written there.
    :param names: such as "car/01"; None: all that are there.
    :return: name -> content.
    :raises UsageError: if models are missing or cannot be read, or the archive is damaged.
    """
    wanted = None if names is None else set(names)
    if is_there(where := folder / "CAD"):
        if wanted is None:
            paths = {_name_of(path.relative_to(folder).as_posix()): path for path in where.glob("*/*.off")}
        else:  # not what a search finds: that passes over what cannot be read
            paths = {name: path for name in wanted if is_there(path := where / f"{name}.off")}
        found = {name: _content(path) for name, path in paths.items()}
    elif is_there(where := folder / "CAD.tar.xz"):
        found = _unpacked(where, wanted)
    else:
        raise UsageError(
            f"the CAD models of PASCAL3D+ are not in {folder}: put CAD.tar.xz or the folder CAD there, name another "
            "data folder with --data or FTML_BENCH_DATA, or take objects 'solids', which need no files"
        )
    if missing := sorted((wanted or set()) - set(found)):
        some = ", ".join(missing[:3]) + (", ..." if len(missing) > 3 else "")
        raise UsageError(f"{where} lacks {len(missing)} of {len(wanted or ())} models ({some}): fetch it again")
    return dict(sorted(found.items()))


def _name_of(path: str) -> str:
    """ "car/01" of "CAD/car/01.off"; other paths stay what they are, which is no model's name."""
    return path.removeprefix("CAD/").removesuffix(".off") if path.endswith(".off") else path


def _content(path: Path) -> bytes:
    with opened(path) as file:
        if os.fstat(file.fileno()).st_size > _LARGEST:
            raise damaged(path, f"it is larger than {_LARGEST:,} bytes")
        return file.read()


def _unpacked(archive: Path, wanted: set[str] | None) -> dict[str, bytes]:
    found = {}
    with opened(archive) as packed:
        try:
            # As a stream: an archive of this kind can only be read from its start.
            with lzma.open(packed) as content, tarfile.open(fileobj=content, mode="r|") as tar:
                for member in tar:
                    name = _name_of(member.name)
                    if member.isfile() and (wanted is None or name in wanted):
                        if member.size > _LARGEST:
                            raise damaged(archive, f"its {name} is larger than {_LARGEST:,} bytes")
                        file = tar.extractfile(member)
                        assert file is not None
                        found[name] = file.read()
                # To the end, where the checksums are: tarfile takes an archive that is cut off for a short one.
                while content.read(1 << 20):
                    pass
        except (tarfile.TarError, lzma.LZMAError, EOFError) as error:
            raise damaged(archive, str(error)) from error
    return found


def parse_off(content: bytes, name: str) -> Mesh:
    """The mesh in an OFF file; polygons become fans of triangles.

    :param name: what to call it in errors.
    :raises UsageError: if it is no OFF file, is cut off, or refers to vertices that it does not have.
    """
    words = b" ".join(line.partition(b"#")[0] for line in content.splitlines()).split()
    if not words or not words[0].startswith(b"OFF"):
        raise UsageError(f"mesh {name} is damaged: it does not begin with OFF")
    # Some files have the first number directly behind the word.
    words = [words[0][3:], *words[1:]] if words[0] != b"OFF" else words[1:]
    try:
        n_vertices, n_faces = int(words[0]), int(words[1])
        if n_vertices < 0 or n_faces < 0:
            raise ValueError(f"{n_vertices} vertices and {n_faces} faces")
        rest = words[3:]
        vertices = np.array(rest[: 3 * n_vertices], dtype=np.float64).reshape(n_vertices, 3)
        faces = _faces(rest[3 * n_vertices :], n_faces)
    except (ValueError, IndexError, OverflowError) as error:
        raise UsageError(f"mesh {name} is damaged: {error}") from error
    if not np.isfinite(vertices).all():
        raise UsageError(f"mesh {name} is damaged: a vertex is no number")
    if not n_faces:
        raise UsageError(f"mesh {name} has no faces")
    if faces.min() < 0 or faces.max() >= n_vertices:
        wrong = faces.min() if faces.min() < 0 else faces.max()
        raise UsageError(f"mesh {name} is damaged: a face refers to vertex {wrong} of {n_vertices}")
    return Mesh(vertices, faces)


def _faces(words: list[bytes], n_faces: int) -> NDArray[np.int64]:
    numbers = np.array(words[: 4 * n_faces], dtype=np.int64)
    if len(numbers) == 4 * n_faces and (numbers[::4] == 3).all():
        return numbers.reshape(n_faces, 4)[:, 1:]
    triangles, at = [], 0
    for index in range(n_faces):
        corners = [int(word) for word in words[at + 1 : at + 1 + int(words[at])]]
        if len(corners) != int(words[at]) or len(corners) < 3:
            raise ValueError(f"face {index} of {n_faces} is cut off")
        triangles += [(corners[0], b, c) for b, c in pairwise(corners[1:])]
        at += 1 + len(corners)
    return np.array(triangles, dtype=np.int64)


def clean(mesh: Mesh, name: str) -> Mesh:
    """The mesh without repeated faces, faces without an area, and vertices that no face uses.

    Repeated are faces whose corners are at the same places, in whatever order. MuJoCo lights coincident faces twice,
    and unused vertices would move the bounding box.

    :param name: what to call it in errors.
    :raises UsageError: if nothing is left.
    """
    places, at = np.unique(mesh.vertices, axis=0, return_inverse=True)
    faces = at.reshape(-1)[mesh.faces]
    a, b, c = (places[faces[:, i]] for i in range(3))
    area = np.linalg.norm(np.cross(b - a, c - a), axis=1)
    with_area = np.flatnonzero(area > 1e-12 * max(float(np.ptp(places, axis=0).max()), 1e-300) ** 2)
    _, first = np.unique(np.sort(faces[with_area], axis=1), axis=0, return_index=True)
    faces = faces[with_area[np.sort(first)]]
    if not len(faces):
        raise UsageError(f"mesh {name} has no faces with an area")
    used, corners = np.unique(faces, return_inverse=True)
    return Mesh(places[used], corners.reshape(-1, 3).astype(np.int64))
