"""Meshes: OFF files and archives of models, every kind of bad file."""

from __future__ import annotations

import io
import lzma
import os
import shutil
import tarfile

import numpy as np
import pytest

from ftml_bench.errors import UsageError
from ftml_bench.rendering import meshes
from ftml_bench.rendering.meshes import PASCAL3D_OBJECTS, clean, parse_off, read_pascal3d
from ftml_bench.rendering.scene import Mesh

TETRAHEDRON = b"OFF\n4 4 0\n0 0 0\n1 0 0\n0 1 0\n0 0 1\n3 0 1 2\n3 0 1 3\n3 0 2 3\n3 1 2 3\n"


def test_off_files():
    mesh = parse_off(TETRAHEDRON, "t")
    assert mesh.vertices.tolist() == [[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]]
    assert mesh.faces.tolist() == [[0, 1, 2], [0, 1, 3], [0, 2, 3], [1, 2, 3]]
    for same in (TETRAHEDRON.replace(b"OFF\n", b"OFF"), TETRAHEDRON.replace(b"OFF\n", b"OFF # by hand\n\n")):
        assert np.array_equal(parse_off(same, "t").faces, mesh.faces)
    fan = b"OFF\n5 2 0\n0 0 0\n1 0 0\n1 1 0\n0 1 0\n0 0 1\n4 0 1 2 3\n3 0 1 4\n"
    assert parse_off(fan, "t").faces.tolist() == [[0, 1, 2], [0, 2, 3], [0, 1, 4]]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "mesh car/01 is damaged: it does not begin with OFF"),
        (b"ply\n", "mesh car/01 is damaged: it does not begin with OFF"),
        (TETRAHEDRON[:-3], "mesh car/01 is damaged"),
        (TETRAHEDRON[:30], "mesh car/01 is damaged"),
        (TETRAHEDRON.replace(b"1 0 0", b"1 x 0"), "mesh car/01 is damaged: could not convert"),
        (TETRAHEDRON.replace(b"1 0 0", b"1 nan 0"), "mesh car/01 is damaged: a vertex is no number"),
        (TETRAHEDRON.replace(b"3 1 2 3", b"3 1 2 4"), "mesh car/01 is damaged: a face refers to vertex 4 of 4"),
        (TETRAHEDRON.replace(b"3 1 2 3", b"3 1 2 -3"), "mesh car/01 is damaged: a face refers to vertex -3 of 4"),
        (b"OFF\n-1 1 0\n0 0 0\n1 0 0\n0 1 0\n3 0 1 2\n", "mesh car/01 is damaged: -1 vertices and 1 faces"),
        (b"OFF\n3 -1 0\n0 0 0\n1 0 0\n0 1 0\n3 0 1 2\n", "mesh car/01 is damaged: 3 vertices and -1 faces"),
        (TETRAHEDRON.replace(b"3 1 2 3", b"3 1 2 99999999999999999999"), "mesh car/01 is damaged"),
        (b"OFF\n3 0 0\n0 0 0\n1 0 0\n0 1 0\n", "mesh car/01 has no faces"),
        (b"OFF\n3 1 0\n0 0 0\n1 0 0\n2 0 0\n3 0 1 2\n", "mesh car/01 has no faces with an area"),
    ],
)
def test_a_bad_mesh_is_one_line(content, message):
    with pytest.raises(UsageError, match=message) as error:
        clean(parse_off(content, "car/01"), "car/01")
    assert "\n" not in str(error.value)


def test_cleaning_drops_repeats_unused_vertices_and_faces_without_area():
    mesh = parse_off(TETRAHEDRON, "t")
    vertices = np.concatenate([mesh.vertices, mesh.vertices, [[9.0, 9, 9]]])  # copies at the same places, one unused
    extra = np.array([[6, 5, 4], [2, 0, 1], [0, 4, 1], [3, 3, 1]])  # two repeats, two without an area
    cleaned = clean(Mesh(vertices, np.concatenate([mesh.faces, extra])), "t")
    assert len(cleaned.faces) == 4
    assert len(cleaned.vertices) == 4
    corners = {tuple(sorted(map(tuple, cleaned.vertices[face]))) for face in cleaned.faces}
    assert corners == {tuple(sorted(map(tuple, mesh.vertices[face]))) for face in mesh.faces}


def archive(path, files):
    path.mkdir(exist_ok=True)
    with tarfile.open(path / "CAD.tar.xz", "w:xz") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(f"CAD/{name}.off")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


def test_models_are_read_in_place_packed_or_not(tmp_path):
    files = {"car/02": b"two", "car/01": b"one", "bus/01": b"bus"}
    folder = archive(tmp_path / "pascal3d", files)
    assert read_pascal3d(folder, ["car/01", "bus/01"]) == {"bus/01": b"bus", "car/01": b"one"}
    assert read_pascal3d(folder) == files
    assert os.listdir(folder) == ["CAD.tar.xz"]
    with tarfile.open(folder / "CAD.tar.xz") as tar:
        tar.extractall(tmp_path / "unpacked", filter="data")
    assert read_pascal3d(tmp_path / "unpacked") == files


def test_missing_and_damaged_archives_are_one_line(tmp_path):
    with pytest.raises(UsageError, match=r"not in .*nothing: put CAD\.tar\.xz .* 'solids', which need no files"):
        read_pascal3d(tmp_path / "nothing", ["car/01"])
    folder = archive(tmp_path / "pascal3d", {"car/01": TETRAHEDRON * 999})
    with pytest.raises(UsageError, match=r"lacks 2 of 3 models \(bus/01, car/02\)"):
        read_pascal3d(folder, ["car/01", "car/02", "bus/01"])
    whole = (folder / "CAD.tar.xz").read_bytes()
    for damaged in (
        whole[: len(whole) // 2],
        whole[:100] + b"xxxx" + whole[104:],
        b"no archive",
        b"",
        lzma.compress(b"?"),
    ):
        (folder / "CAD.tar.xz").write_bytes(damaged)
        with pytest.raises(UsageError, match=r"CAD\.tar\.xz (is damaged|lacks)") as error:
            read_pascal3d(folder, ["car/01"])
        assert "\n" not in str(error.value)


def test_an_archive_that_is_cut_off_anywhere_is_damaged_and_lacks_nothing(tmp_path):
    noise = np.random.default_rng(0).bytes(40_000)  # does not pack
    folder = archive(tmp_path / "pascal3d", {"car/01": noise, "car/02": noise, "car/03": noise})
    file = folder / "CAD.tar.xz"
    whole = file.read_bytes()
    assert read_pascal3d(folder, ["car/03"]) == {"car/03": noise}
    for length in [*range(1, len(whole), len(whole) // 23), len(whole) - 1]:
        file.write_bytes(whole[:length])
        for names in (["car/01"], ["car/03"], None):
            with pytest.raises(UsageError, match=r"CAD\.tar\.xz is damaged: .*; remove it and fetch it again$"):
                read_pascal3d(folder, names)


def test_models_that_cannot_be_read_are_not_called_missing(tmp_path, monkeypatch):
    folder = tmp_path / "pascal3d"
    (folder / "CAD" / "car" / "01.off").mkdir(parents=True)
    for names in (["car/01"], None):
        with pytest.raises(UsageError, match=r"CAD/car/01\.off cannot be read: it is a folder$"):
            read_pascal3d(folder, names)
    shutil.rmtree(folder / "CAD" / "car")
    (folder / "CAD" / "car").symlink_to("car")
    with pytest.raises(UsageError, match=r"CAD/car/01\.off cannot be read: Too many levels of symbolic links$"):
        read_pascal3d(folder, ["car/01"])
    shutil.rmtree(folder / "CAD")
    (folder / "CAD.tar.xz").mkdir()
    with pytest.raises(UsageError, match=r"CAD\.tar\.xz cannot be read: it is a folder$"):
        read_pascal3d(folder, ["car/01"])


def test_models_that_would_fill_the_memory_are_not_read(tmp_path, monkeypatch):
    folder = archive(tmp_path / "pascal3d", {"car/01": b"0" * 1000, "car/02": b"1" * 900})
    monkeypatch.setattr(meshes, "_LARGEST", 950)
    assert read_pascal3d(folder, ["car/02"]) == {"car/02": b"1" * 900}
    with pytest.raises(UsageError, match=r"CAD\.tar\.xz is damaged: its car/01 is larger than 950 bytes"):
        read_pascal3d(folder, ["car/01"])
    with tarfile.open(folder / "CAD.tar.xz") as tar:
        tar.extractall(folder, filter="data")
    with pytest.raises(UsageError, match=r"CAD/car/01\.off is damaged: it is larger than 950 bytes"):
        read_pascal3d(folder, ["car/01"])


def test_the_fifty_models():
    assert len(set(PASCAL3D_OBJECTS)) == 50
    assert len({name.split("/")[0] for name in PASCAL3D_OBJECTS}) == 9
