"""The cache of rendered tasks: its key, damage, and where it is."""

from __future__ import annotations

import shutil
import zipfile
from dataclasses import replace

import numpy as np
import pytest

from ftml_bench.errors import UsageError
from ftml_bench.rendering import cache, meshes, scene, workers, zbuffer
from tests.rendering.views import CAMERAS


def test_tasks_are_rendered_into_their_files(task):
    workers.render_tasks([task, replace(task, file=task.file.with_name("other.npz"))])
    images = cache.load(task.file, task.poses, 32)
    assert np.array_equal(images, zbuffer.render(task.mesh, task.camera, task.poses, 32))
    assert sorted(file.name for file in task.file.parent.iterdir()) == sorted([task.file.name, "other.npz"])


def test_a_damaged_file_and_anothers_are_never_used(task, tmp_path):
    workers.render_tasks([task])
    whole = task.file.read_bytes()
    assert cache.load(task.file, task.poses, 32) is not None
    for at in range(40, len(whole) - 1, len(whole) // 60):
        task.file.write_bytes(whole[:at] + bytes([whole[at] ^ 0x55]) + whole[at + 1 :])
        images = cache.load(task.file, task.poses, 32)
        # (some bytes of a zip's headers, such as dates, mean nothing)
        assert images is None or np.array_equal(images, zbuffer.render(task.mesh, task.camera, task.poses, 32))
    for content in (b"", whole[: len(whole) // 2], b"nothing of the kind", whole[:-20]):
        task.file.write_bytes(content)
        assert cache.load(task.file, task.poses, 32) is None
    task.file.write_bytes(whole)
    assert cache.load(task.file, task.poses + 1e-9, 32) is None
    assert cache.load(task.file, task.poses, 33) is None
    assert cache.load(tmp_path / "none.npz", task.poses, 32) is None
    other = task.file.with_name("0" * 32 + ".npz")  # a file that was given another's name
    shutil.copy(task.file, other)
    assert cache.load(other, task.poses, 32) is None


def test_a_small_file_of_many_zeros_is_not_unpacked(task, monkeypatch):
    task.file.parent.mkdir()
    zeros = np.zeros((300, 3, 32, 32), np.uint8)  # a hundred times what belongs there
    np.savez_compressed(task.file, images=zeros, poses=task.poses, key=np.array(task.file.stem))
    monkeypatch.setattr(zipfile.ZipFile, "read", lambda *_: pytest.fail("it was unpacked"))
    assert cache.load(task.file, task.poses, 32) is None


def test_everything_that_decides_the_pixels_is_in_the_key(task, monkeypatch):
    arguments = ["zbuffer", "1", b"shape", CAMERAS[0], task.poses, 32]
    keys = {cache.key_of(*arguments)}
    changes = [(0, "mujoco"), (1, "2"), (2, b"other"), (3, CAMERAS[1]), (4, task.poses + 1e-12), (5, 33)]
    for index, other in changes:
        keys.add(cache.key_of(*arguments[:index], other, *arguments[index + 1 :]))
    assert cache.key_of(*arguments) in keys
    assert len(keys) == 1 + len(changes)
    source = cache.inspect.getsource
    for module in (scene, zbuffer, meshes):
        monkeypatch.setattr(cache.inspect, "getsource", lambda m, module=module: source(m) + "#" * (m is module))
        keys.add(cache.key_of(*arguments))
    assert len(keys) == 4 + len(changes)


def test_a_cache_that_cannot_be_written_is_one_line(task, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UsageError, match=r"cannot write the cache .* FTML_BENCH_CACHE") as error:
        workers.render_tasks([replace(task, file=tmp_path / "file" / "a.npz")])
    assert "\n" not in str(error.value)


def test_nothing_is_left_of_a_file_that_could_not_be_written(task, monkeypatch):
    def full(stream, **arrays):
        stream.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez_compressed", full)
    with pytest.raises(UsageError, match="No space left on device"):
        cache.save(task.file, np.zeros((3, 3, 32, 32), np.uint8), task.poses)
    assert list(task.file.parent.iterdir()) == []


def test_where_the_cache_is(monkeypatch, tmp_path):
    monkeypatch.setenv("FTML_BENCH_CACHE", str(tmp_path / "own"))
    assert cache.cache_root() == tmp_path / "own"
    assert cache.cache_root(tmp_path / "given") == tmp_path / "given"
    monkeypatch.delenv("FTML_BENCH_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache.cache_root() == tmp_path / "xdg" / "ftml-bench" / "cache"
