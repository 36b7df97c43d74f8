"""Both renderers, and a task for their processes."""

from __future__ import annotations

import pytest

from ftml_bench.errors import UsageError
from ftml_bench.rendering import cache, workers, zbuffer
from ftml_bench.rendering.readability import spread_poses
from ftml_bench.rendering.worker import Task
from tests.rendering.views import CAMERAS, mesh_of


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


@pytest.fixture
def task(tmp_path):
    poses = spread_poses(3)
    key = cache.key_of("zbuffer", "1", b"shape", CAMERAS[0], poses, 32)
    return Task("zbuffer", mesh_of("car/01"), CAMERAS[0], poses, 32, tmp_path / "pose" / f"{key}.npz")
