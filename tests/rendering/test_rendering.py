"""Renderers, meshes and cache of the pose stream: pictures against projected vertices, every kind of bad file."""

from __future__ import annotations

import io
import lzma
import math
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from dataclasses import replace

import numpy as np
import pytest

from ftml_bench.cli import main
from ftml_bench.errors import UsageError
from ftml_bench.rendering import cache, meshes, report, scene, workers, zbuffer
from ftml_bench.rendering.meshes import PASCAL3D_OBJECTS, clean, parse_off, read_pascal3d
from ftml_bench.rendering.readability import azimuth_score, spread_poses
from ftml_bench.rendering.scene import Camera, Mesh, fitted, placed
from ftml_bench.rendering.solids import SOLIDS, solid
from ftml_bench.rendering.worker import Task

SIZE = 64
CAMERAS = [Camera(math.radians(a), math.radians(e)) for a, e in ((-160, 33), (-40, 50), (75, 68), (170, 41))]


def mesh_of(name, extent=1.0):
    return fitted(clean(solid(name), name), extent)


def why_no_mujoco():
    """Asked in a process of its own, as the stream does it; empty if it can draw."""
    try:
        workers.version_of("mujoco")
    except UsageError as error:
        return f"{error} (the tests need libosmesa6 and the extra 'mujoco')"
    return ""


@pytest.fixture(scope="session")
def mujoco_renderer():
    if reason := why_no_mujoco():
        pytest.skip(reason)
    from ftml_bench.rendering import mujoco_renderer

    return mujoco_renderer


@pytest.fixture(scope="session", params=["zbuffer", "mujoco"])
def render(request):
    """The renderers, one after the other."""
    if request.param == "zbuffer":
        return zbuffer.render
    return request.getfixturevalue("mujoco_renderer").render


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


# -- labels and camera


def test_the_red_dot_is_where_the_camera_says(render):
    distances = []
    for camera in CAMERAS:
        (image,) = render(mesh_of("car/01", 0.3), camera, np.array([[-0.5, -0.5, 0.0]]), SIZE).astype(float)
        redness = np.clip(image[0] - image[1] - image[2], 0, None)
        centres = np.arange(SIZE) + 0.5
        seen = [(redness.sum(axis) * centres).sum() / redness.sum() for axis in (0, 1)]
        expected, _ = camera.project(np.array([*scene.DOT, 0.0]), SIZE)
        distances.append(np.hypot(*(np.array(seen) - expected)))
    assert np.median(distances) < 0.3
    assert max(distances) < 0.7


def test_the_object_is_where_its_pose_says(render):
    """The sharp test of x, y, azimuth, extent and handedness: the bounding box of the projected vertices."""
    errors = []
    for name, camera in zip(["aeroplane/02", "sofa/01", "chair/04", "boat/02"], CAMERAS, strict=True):
        mesh, poses = mesh_of(name, 0.9), spread_poses(8)
        errors += box_errors(object_masks(render, mesh, camera, poses), mesh, camera, poses)
    assert np.median(errors) < 0.8
    assert max(errors) < 3


@pytest.mark.parametrize("wrong", [(0.1, 0, 0), (0, 0.1, 0), (0, 0, 0.3)])
def test_another_azimuth_or_place_would_be_noticed(wrong):
    """The test above on wrong poses: it must be able to fail."""
    mesh, poses = mesh_of("sofa/01", 0.9), spread_poses(8)
    masks = object_masks(zbuffer.render, mesh, CAMERAS[0], poses)
    assert np.median(box_errors(masks, mesh, CAMERAS[0], poses + wrong)) > 1.2


def test_azimuth_is_counter_clockwise_from_above(render):
    """A tall arm that points along +x at azimuth 0 points along +y a quarter turn later."""
    vertices = np.array([[0, -0.1, 0], [0, 0.1, 0], [0, 0, 0.2], [1, 0, 0.1]])
    arm = Mesh(vertices, np.array([[0, 1, 2], [0, 1, 3], [1, 2, 3], [0, 2, 3]]))
    camera = Camera(math.radians(-90), math.radians(70))  # its right is +x, its up is +y
    masks = object_masks(render, arm, camera, np.array([[0, 0, 0], [0, 0, math.pi / 2], [0, 0, math.pi]]))
    middle = SIZE / 2
    left, top, right, bottom = zip(*(bounding_box(mask) for mask in masks), strict=True)
    assert right[0] - middle > 10 > middle - left[0]
    assert middle - top[1] > 10 > bottom[1] - middle
    assert middle - left[2] > 10 > right[2] - middle


def test_the_camera_sees_the_whole_table():
    corners = np.array([[x, y, 0.0] for x in (-1, 1) for y in (-1, 1)])
    for azimuth in np.linspace(-math.pi, math.pi, 60):
        for elevation in (30, 50, 70):
            points, depth = Camera(azimuth, math.radians(elevation)).project(corners, SIZE)
            assert (points > 0).all()
            assert (points < SIZE).all()
            assert (depth > 2).all()


def test_fitted():
    mesh = mesh_of("boat/04", 1.15)
    low, high = mesh.vertices.min(axis=0), mesh.vertices.max(axis=0)
    assert np.allclose((low + high)[:2], 0)
    assert low[2] == pytest.approx(0)
    assert (high - low).max() == pytest.approx(1.15)


# -- pictures


def test_what_is_nearer_hides_what_is_behind(render):
    """A level plate over one that leans, so that they differ in brightness; and the other way round."""
    level = np.array([[-0.4, -0.4, 0], [0.4, -0.4, 0], [0.4, 0.4, 0], [-0.4, 0.4, 0]])
    leaning = level @ np.array([[1, 0, 0.4], [0, 1, 0], [0, 0, 1]])
    faces = np.array([[0, 1, 2], [0, 2, 3]])
    view = Camera(0.3, math.radians(65)), np.zeros((1, 3))
    for heights, nearer in (((0.5, 0.2), 0), ((0.2, 0.5), 1)):
        two = [Mesh(v + np.array([0, 0, h]), faces) for v, h in zip((level, leaning), heights, strict=True)]
        both = Mesh(np.concatenate([mesh.vertices for mesh in two]), np.concatenate([faces, faces + 4]))
        alone = [grey(render(mesh, *view, SIZE))[0] for mesh in two]
        masks = [object_masks(render, mesh, *view)[0] for mesh in two]
        overlap = inside(masks[0] & masks[1])
        assert overlap.sum() > 50
        assert np.abs(alone[0] - alone[1])[overlap].min() > 60
        seen = grey(render(both, *view, SIZE))[0]
        assert np.abs(seen - alone[nearer])[overlap].max() < 10


def test_winding_and_repeats_change_nothing(render):
    mesh = solid("car/01")
    poses = spread_poses(3)
    flipped = mesh.faces.copy()
    flipped[::2] = flipped[::2, ::-1]
    repeated = Mesh(mesh.vertices, np.concatenate([flipped, mesh.faces[:50, [2, 0, 1]]]))
    first = render(fitted(clean(mesh, "first"), 1.0), CAMERAS[1], poses, SIZE)
    assert np.array_equal(first, render(fitted(clean(repeated, "again"), 1.0), CAMERAS[1], poses, SIZE))


def test_the_object_throws_a_shadow_away_from_the_light(render):
    corners = np.array([[-0.15, -0.15, 0.6], [0.15, -0.15, 0.6], [0.15, 0.15, 0.6], [-0.15, 0.15, 0.6]])
    plate = Mesh(corners, np.array([[0, 1, 2], [0, 2, 3]]))  # in the air
    (image,) = grey(render(plate, CAMERAS[2], np.zeros((1, 3)), SIZE))
    away = -scene.LIGHT * (0.6 / scene.LIGHT[2]) + [0, 0, 0.6]
    points = np.stack([away, -away])
    (shadow, light), _ = CAMERAS[2].project(points, SIZE)
    dark, lit = (image[int(row), int(column)] for column, row in (shadow, light))
    assert dark / lit == pytest.approx(scene.AMBIENT / (scene.AMBIENT + scene.DIFFUSE * scene.LIGHT[2]), abs=0.03)


def test_the_two_renderers_agree(mujoco_renderer):
    names = ["aeroplane/01", "bicycle/03", "bus/02", "chair/02", "motorbike/05", "tvmonitor/04"]
    different, offsets = [], []
    for index, name in enumerate(names):
        arguments = mesh_of(name, 1.1), CAMERAS[index % 4], spread_poses(6), SIZE
        ours, theirs = zbuffer.render(*arguments), mujoco_renderer.render(*arguments)
        assert ours.shape == theirs.shape == (6, 3, SIZE, SIZE)
        assert ours.dtype == theirs.dtype == np.uint8
        difference = np.abs(ours.astype(int) - theirs)
        offsets.append(difference.mean())
        different += (difference.max(axis=1) > 40).mean(axis=(1, 2)).tolist()
    # Edges differ by samples, and MuJoCo's objects cast shadows on themselves.
    assert max(offsets) < 2
    assert max(different) < 0.03


def test_the_same_arguments_give_the_same_bytes(render):
    arguments = mesh_of("bicycle/01"), CAMERAS[2], spread_poses(4), SIZE
    first = render(*arguments)
    assert np.array_equal(first, render(*arguments))
    # in any order and number
    assert np.array_equal(first[2:3], render(mesh_of("bicycle/01"), CAMERAS[2], spread_poses(4)[2:3], SIZE))


def test_other_sizes(render):
    small, large = (render(mesh_of("sofa/02"), CAMERAS[0], spread_poses(2), size) for size in (50, 125))
    assert large.shape == (2, 3, 125, 125)
    assert np.abs(small.mean(axis=(2, 3)) - large.mean(axis=(2, 3))).max() < 2


# -- solids, and whether they can be read


def test_there_are_fifty_distinct_solids_of_nine_kinds():
    assert len(set(SOLIDS)) == 50
    assert len({name.split("/")[0] for name in SOLIDS}) == 9
    camera, pose = CAMERAS[1], np.array([[0, 0, 0.7]])
    pictures = np.concatenate([zbuffer.render(mesh_of(name), camera, pose, SIZE) for name in SOLIDS]).astype(float)
    for index, picture in enumerate(pictures[:-1]):
        assert np.abs(pictures[index + 1 :] - picture).mean(axis=(1, 2, 3)).min() > 0.3, SOLIDS[index]
    for name in SOLIDS:
        assert len(clean(solid(name), name).faces) <= 300


def test_every_solids_azimuth_can_be_read():
    assert min(azimuth_score(mesh_of(name), poses=2, size=40)[0] for name in SOLIDS) > 0.8


def test_the_azimuth_of_symmetric_objects_cannot_be_read():
    angles = 2 * np.pi * np.arange(24) / 24
    ring = np.stack([np.cos(angles), np.sin(angles), 0 * angles], axis=1)
    after = (np.arange(24) + 1) % 24
    here = np.arange(24)
    sides = np.concatenate([np.stack([here, after, 24 + after], 1), np.stack([here, 24 + after, 24 + here], 1)])
    lid = np.stack([np.full(22, 24), np.arange(25, 47), np.arange(26, 48)], 1)
    can = fitted(Mesh(np.concatenate([ring, ring + np.array([0, 0, 1.5])]), np.concatenate([sides, lid])), 1.0)
    score, _ = azimuth_score(can, poses=2, size=40)
    assert score < 0.1
    box = solid("car/01")
    box = Mesh(box.vertices[:8], box.faces[:12])  # its lower block alone: the same after half a turn
    score, turn = azimuth_score(fitted(box, 1.0), poses=4, size=40)
    assert turn == 180
    assert score < 0.3


# -- meshes

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


# -- the cache


@pytest.fixture
def task(tmp_path):
    poses = spread_poses(3)
    key = cache.key_of("zbuffer", "1", b"shape", CAMERAS[0], poses, 32)
    return Task("zbuffer", mesh_of("car/01"), CAMERAS[0], poses, 32, tmp_path / "pose" / f"{key}.npz")


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


# -- processes


def test_a_process_that_dies_is_one_line(task):
    broken = replace(task, mesh=None)
    with pytest.raises(UsageError, match="AttributeError") as error:
        workers.render_tasks([broken, task])
    assert "\n" not in str(error.value)
    process = workers._Process(task.file.parents[1], "zbuffer")
    process.kill()
    with pytest.raises(UsageError, match=r"a process that renders with 'zbuffer' has ended \(signal 9\)"), process:
        process.ask("zbuffer")


def test_the_processes_import_neither_torch_nor_avalanche():
    code = (
        "import sys; import ftml_bench.rendering.worker, ftml_bench.rendering.zbuffer;"
        "print([m for m in ('torch', 'avalanche', 'mujoco') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_mujoco_that_is_not_installed_is_one_line(tmp_path, monkeypatch):
    code = (
        "import sys; sys.modules['mujoco'] = None; from ftml_bench.rendering import mujoco_renderer as m\n"
        "try: m.version()\nexcept Exception as e: print(type(e).__name__, e)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "UsageError renderer 'mujoco' is not installed: pip install 'ftml-bench[mujoco]'\n"


def test_mujoco_that_cannot_draw_is_one_line(monkeypatch):
    pytest.importorskip("mujoco", reason="the extra 'mujoco' is not installed")
    monkeypatch.setenv("MUJOCO_GL", "osmesa")
    monkeypatch.setenv("PYOPENGL_PLATFORM", "osmesa")
    monkeypatch.setenv("LD_LIBRARY_PATH", "")
    # As if there were no OSMesa: the name under which PyOpenGL looks for it leads nowhere.
    code = (
        "import ctypes.util\n"
        "find = ctypes.util.find_library\n"
        "ctypes.util.find_library = lambda name: None if 'OSMesa' in name else find(name)\n"
        "load = ctypes.CDLL.__init__\n"
        "def refuse(self, name, *a, **k):\n"
        "    if name and 'OSMesa' in str(name): raise OSError(f'{name}: cannot open shared object file')\n"
        "    load(self, name, *a, **k)\n"
        "ctypes.CDLL.__init__ = refuse\n"
        "from ftml_bench.errors import UsageError\n"
        "from ftml_bench.rendering import mujoco_renderer as m\n"
        "try: m.version()\n"
        "except UsageError as e: print(e)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("MuJoCo cannot open a context to draw in (MUJOCO_GL=osmesa; ")
    assert "apt-get install libosmesa6" in done.stdout
    assert done.stdout.count("\n") == 1


# -- what the command line says


def test_the_state_names_what_is_missing(tmp_path, monkeypatch):
    monkeypatch.setenv("FTML_BENCH_CACHE", str(tmp_path))
    lines = list(report.state(tmp_path / "pascal3d"))
    assert lines[0] == "solids: 50 made-up objects, built in"
    assert "the CAD models of PASCAL3D+ are not in" in lines[1]
    assert lines[2].startswith("renderer zbuffer: zbuffer, numpy")
    assert lines[-1] == f"rendered: 0 tasks, 0.0 MB, in {tmp_path / 'pose'}"
    assert all("\n" not in line for line in lines)


def test_times_and_scores_have_a_line_an_object(tmp_path, monkeypatch):
    monkeypatch.setattr(report, "SOLIDS", ("car/01", "sofa/03"))
    monkeypatch.setattr(report, "RENDERERS", {"zbuffer": ""})
    monkeypatch.setattr(report, "_IMAGES", 3)
    lines = list(report.speed(tmp_path))
    assert "pascal3d" in lines[1]
    assert lines[-1].startswith("zbuffer  solids")
    lines = list(report.scores(tmp_path))
    assert {line.split()[1] for line in lines if line.startswith("solids")} == {"car/01", "sofa/03"}


def test_the_command_line_says_what_there_is(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("FTML_BENCH_CACHE", str(tmp_path))
    assert main(["data", "pose", "--data", str(tmp_path)]) == 0
    assert capsys.readouterr().out.startswith("solids: 50 made-up objects, built in\npascal3d: ")
    assert main(["data", "ObjectPose", "--sheet", str(tmp_path / "sheet.png")]) == 0
    assert (tmp_path / "sheet.png").is_file()


@pytest.mark.parametrize("arguments", [["mnist", "--time"], ["--scores"], ["pose", "--download"], ["poses"]])
def test_what_the_data_command_does_not_have_is_one_line(arguments, capsys):
    assert main(["data", *arguments]) == 2
    assert capsys.readouterr().err.count("\n") == 1
