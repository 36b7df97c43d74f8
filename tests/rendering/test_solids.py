"""The solids, and whether their azimuth can be read."""

from __future__ import annotations

import numpy as np

from ftml_bench.rendering import zbuffer
from ftml_bench.rendering.meshes import clean
from ftml_bench.rendering.readability import azimuth_score
from ftml_bench.rendering.scene import Mesh, fitted
from ftml_bench.rendering.solids import SOLIDS, solid
from tests.rendering.views import CAMERAS, SIZE, mesh_of


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
