"""Rendered pictures on disk: one compressed file a task, named by a key of everything that decides its pixels."""

from __future__ import annotations

import hashlib
import inspect
import io
import os
import zipfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ftml_bench.errors import UsageError
from ftml_bench.files import in_home, replacing
from ftml_bench.rendering import meshes, renderer, scene
from ftml_bench.rendering.scene import Bytes, Camera

_HEADERS = 2**12  # bytes of a file that are neither pixels nor poses, at most


def cache_root(folder: str | os.PathLike[str] | None = None) -> Path:
    """The folder of caches: `folder`, else `FTML_BENCH_CACHE`, else `ftml-bench/cache` in the user's cache folder.

    The user's cache folder is `XDG_CACHE_HOME`, else `~/.cache`. A variable set to nothing counts as unset.
    """
    given = folder or os.environ.get("FTML_BENCH_CACHE")
    if given:
        return in_home(given)
    return in_home(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "ftml-bench" / "cache"


def key_of(
    renderer_name: str, version: str, shape: bytes, camera: Camera, poses: NDArray[np.float64], size: int
) -> str:
    """32 hexadecimal digits that change with whatever could change a pixel: scene, renderer, their code and versions.

    :param version: what the renderer's `version()` says where the pictures are made.
    :param shape: what the mesh is made from, its file's content and its extent, so that no file has to be parsed.
    """
    digest = hashlib.sha256()
    for module in (scene, meshes, renderer(renderer_name)):
        digest.update(inspect.getsource(module).encode())
    for part in (shape, poses.tobytes(), repr((renderer_name, version, camera, poses.shape, size)).encode()):
        digest.update(len(part).to_bytes(8, "big") + part)
    return digest.hexdigest()[:32]


def save(file: Path, images: Bytes, poses: NDArray[np.float64]) -> None:
    """Write a task's pictures, whole or not at all; another process may write the same.

    :param file: its name, without the suffix, is the key.
    :raises UsageError: if it cannot be written.
    """
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with replacing(file) as stream:
            np.savez_compressed(stream, images=images, poses=poses, key=np.array(file.stem))
    except OSError as error:
        raise UsageError(
            f"cannot write the cache {file} ({error.strerror}): make room or name another folder with FTML_BENCH_CACHE"
        ) from error


def load(file: Path, poses: NDArray[np.float64], size: int) -> Bytes | None:
    """A task's pictures, (N, 3, size, size) uint8; None if they are not there, or the file is damaged or another's."""
    try:
        with zipfile.ZipFile(file) as members:
            # A few bytes can be packed so that they fill the memory.
            if sum(member.file_size for member in members.infolist()) > len(poses) * (3 * size**2 + 24) + _HEADERS:
                return None
            # `read` compares the checksum before anything is made of the bytes.
            arrays = {name: np.lib.format.read_array(io.BytesIO(members.read(name))) for name in members.namelist()}
        images, kept_poses, key = arrays["images.npy"], arrays["poses.npy"], str(arrays["key.npy"])
    except Exception:  # a damaged archive fails in any of a dozen ways, and each means that it cannot be used
        return None
    right = key == file.stem and images.dtype == np.uint8 and images.shape == (len(poses), 3, size, size)
    return images if right and np.array_equal(kept_poses, poses) else None
