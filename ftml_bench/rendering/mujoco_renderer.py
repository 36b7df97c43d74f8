"""MuJoCo's renderer, off screen, without a display or a GPU: OpenGL in software, by OSMesa or EGL.

Optional: nothing is imported before it is used, and what is missing is said in one line. `MUJOCO_GL` chooses between
"osmesa" (the default here: Debian's libosmesa6 is all that it needs) and "egl".
"""

from __future__ import annotations

import os
from types import ModuleType
from typing import Any

import numpy as np

from ftml_bench.errors import UsageError
from ftml_bench.rendering import scene
from ftml_bench.rendering.scene import Bytes, Camera, Floats, Mesh

_SHADOW_MAP = 1024  # MuJoCo's own 4096 costs four times the time and shows no difference at these sizes
_SAMPLES = 4


def version() -> str:
    """What decides the pixels beside the package's own code: MuJoCo, and the OpenGL that draws for it.

    :raises UsageError: if MuJoCo is not installed or cannot draw.
    """
    mujoco = _import()
    try:
        context = mujoco.gl_context.GLContext(8, 8)
        context.make_current()
        from OpenGL import GL

        names = [GL.glGetString(name).decode() for name in (GL.GL_RENDERER, GL.GL_VERSION)]
        context.free()
    except Exception as error:
        raise _cannot_draw(error) from error
    return f"mujoco {mujoco.__version__}, {os.environ['MUJOCO_GL']}, {', '.join(names)}"


def render(mesh: Mesh, camera: Camera, poses: Floats, size: int) -> Bytes:
    """The object in each pose; arguments and result as of the z-buffer's `render`.

    :raises UsageError: if MuJoCo is not installed or cannot draw.
    """
    mujoco = _import()
    model = _model(mujoco, mesh, camera, size)
    data = mujoco.MjData(model)
    images = np.empty((len(poses), 3, size, size), dtype=np.uint8)
    try:
        drawing = mujoco.Renderer(model, size, size)
    except Exception as error:
        raise _cannot_draw(error) from error
    with drawing:
        for image, (x, y, azimuth) in zip(images, poses, strict=True):
            data.mocap_pos[0] = x, y, 0
            data.mocap_quat[0] = np.cos(azimuth / 2), 0, 0, np.sin(azimuth / 2)
            mujoco.mj_kinematics(model, data)
            mujoco.mj_camlight(model, data)
            drawing.update_scene(data, "camera")
            image[:] = drawing.render().transpose(2, 0, 1)
    return images


def _model(mujoco: ModuleType, mesh: Mesh, camera: Camera, size: int) -> Any:
    spec = mujoco.MjSpec()
    # Nothing moves by itself, and a flat object's moments of inertia may by rounding be those of no body.
    spec.compiler.balanceinertia = True
    visual = spec.visual
    visual.quality.shadowsize = _SHADOW_MAP
    visual.quality.offsamples = _SAMPLES
    visual.global_.offwidth = visual.global_.offheight = size
    visual.headlight.ambient = [scene.AMBIENT] * 3
    visual.headlight.diffuse = visual.headlight.specular = [0.0] * 3
    spec.stat.center = [0, 0, 0]
    spec.stat.extent = 2.0  # of the near and far plane and the shadow map, the same for all objects
    world = spec.worldbody
    world.add_light(
        type=mujoco.mjtLightType.mjLIGHT_DIRECTIONAL,
        pos=4 * scene.LIGHT,
        dir=-scene.LIGHT,
        ambient=[0.0] * 3,
        diffuse=[scene.DIFFUSE] * 3,
        specular=[0.0] * 3,
        castshadow=True,
    )
    quaternion = np.empty(4)
    right, up, forward = camera.axes
    mujoco.mju_mat2Quat(quaternion, np.stack([right, up, -forward], axis=1).ravel())
    world.add_camera(name="camera", pos=camera.position, quat=quaternion, fovy=scene.FIELD_OF_VIEW)
    unseen = {"contype": 0, "conaffinity": 0}  # by the physics: no convex hull is built
    world.add_geom(
        type=mujoco.mjtGeom.mjGEOM_PLANE,
        size=[scene.TABLE_HALF, scene.TABLE_HALF, 1],
        rgba=[*scene.TABLE_COLOUR, 1],
        **unseen,
    )
    world.add_geom(
        type=mujoco.mjtGeom.mjGEOM_CYLINDER,
        size=[scene.DOT_RADIUS, 0.001, 0],
        pos=[*scene.DOT, 0.001],
        rgba=[*scene.DOT_COLOUR, 1],
        **unseen,
    )
    # Back faces are not drawn, and shared vertices would round off the edges: every face twice, with either winding,
    # on vertices of its own. (Meshes come without repeated faces: coincident ones would receive the light twice.)
    soup = mesh.vertices[mesh.faces].reshape(-1, 3)
    faces = np.arange(len(soup)).reshape(-1, 3)
    spec.add_mesh(
        name="object",
        uservert=np.vstack([soup, soup]).ravel().tolist(),
        userface=np.vstack([faces, faces[:, ::-1] + len(soup)]).ravel().tolist(),
        inertia=mujoco.mjtMeshInertia.mjMESH_INERTIA_SHELL,  # the others refuse open meshes
    )
    body = world.add_body(mocap=True)
    body.add_geom(type=mujoco.mjtGeom.mjGEOM_MESH, meshname="object", rgba=[*scene.OBJECT_COLOUR, 1], **unseen)
    return spec.compile()


def _import() -> ModuleType:
    # MuJoCo reads it when it is imported, and would look for a window system without it.
    os.environ.setdefault("MUJOCO_GL", "osmesa")
    try:
        import mujoco
        import mujoco.gl_context
    except ModuleNotFoundError as error:
        if error.name != "mujoco":
            raise _cannot_draw(error) from error
        raise UsageError("renderer 'mujoco' is not installed: pip install 'ftml-bench[mujoco]'") from error
    except Exception as error:  # a missing library shows as an AttributeError or an ImportError of PyOpenGL
        raise _cannot_draw(error) from error
    return mujoco


def _cannot_draw(error: Exception) -> UsageError:
    return UsageError(
        f"MuJoCo cannot open a context to draw in (MUJOCO_GL={os.environ['MUJOCO_GL']}; {type(error).__name__}: "
        f"{' '.join(str(error).split())}): install OSMesa (Debian, Ubuntu: apt-get install libosmesa6), or set "
        "MUJOCO_GL=egl where EGL is installed, or take renderer 'zbuffer'"
    )
