"""Both renderers: pictures against projected vertices, shadows, and each other."""

from __future__ import annotations

import math

import numpy as np
import pytest

from ftml_bench.rendering import scene, zbuffer
from ftml_bench.rendering.meshes import clean
from ftml_bench.rendering.readability import spread_poses
from ftml_bench.rendering.scene import Camera, Mesh, fitted
from ftml_bench.rendering.solids import solid
from tests.rendering.views import CAMERAS, SIZE, bounding_box, box_errors, grey, inside, mesh_of, object_masks

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
