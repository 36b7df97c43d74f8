"""A picture that explains the pose stream's labels and camera: `python -m ftml_bench.rendering.picture FILE.png`."""

from __future__ import annotations

import math
import sys
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Arc, Circle, Polygon, Rectangle

from ftml_bench.rendering import scene, zbuffer
from ftml_bench.rendering.meshes import clean
from ftml_bench.rendering.scene import Camera, Mesh
from ftml_bench.rendering.solids import solid

_POSE = np.array([0.35, -0.25, math.radians(50)])  # seen from above, a car drives towards its own -y
_CAMERA = Camera(math.radians(-60), math.radians(40))
_SIZE = 240
_POSITION = 0.6
_LABEL = {"facecolor": "white", "edgecolor": "none", "pad": 1.5}


def draw(file: str) -> None:
    """From above with all that a label names, as the camera sees it, and as the learner does."""
    mesh = scene.fitted(clean(solid("car/02"), "car/02"), 0.9)
    figure = Figure(figsize=(11, 4.4), dpi=110, layout="constrained")
    above, seen, small = figure.subplots(1, 3)
    _from_above(above, mesh)
    _through_the_camera(seen, mesh)
    small.imshow(zbuffer.render(mesh, _CAMERA, _POSE[None], 64)[0].transpose(1, 2, 0))
    x, y, azimuth = _POSE
    small.set_title(
        f"what is learned: 64 x 64 pixels ->\n(x, y, sin, cos) = ({x:.2f}, {y:.2f}, {math.sin(azimuth):.2f}, "
        f"{math.cos(azimuth):.2f})",
        fontsize=9,
    )
    small.axis("off")
    FigureCanvasAgg(figure).print_png(file)


def _from_above(axes: Any, mesh: Mesh) -> None:
    x, y, azimuth = _POSE
    axes.add_patch(Rectangle((-1, -1), 2, 2, color=scene.TABLE_COLOUR))
    axes.add_patch(Circle(scene.DOT, scene.DOT_RADIUS, color=scene.DOT_COLOUR))
    axes.add_patch(Rectangle((-_POSITION, -_POSITION), 2 * _POSITION, 2 * _POSITION, fill=False, linestyle=":"))
    axes.text(-_POSITION, _POSITION + 0.03, "centres, within ±0.6", fontsize=8)
    placed = scene.placed(mesh.vertices, _POSE)
    for face in placed[mesh.faces]:
        axes.add_patch(Polygon(face[:, :2], color=scene.OBJECT_COLOUR, linewidth=0))
    axes.plot([-1, 1], [0, 0], [0, 0], [-1, 1], color="black", linewidth=0.6)
    axes.plot([x, x, 0], [0, y, y], "--", color="black", linewidth=0.8)
    axes.text(x, 0.03, f"x = {x}", ha="center", fontsize=8, bbox=_LABEL)
    axes.text(-0.03, y, f"y = {y}", ha="right", va="center", fontsize=8, bbox=_LABEL)
    axes.plot([x, x + 0.65], [y, y], color="tab:orange")
    end = (x + 0.65 * math.cos(azimuth), y + 0.65 * math.sin(azimuth))
    axes.annotate("", end, (x, y), arrowprops={"color": "tab:orange", "width": 1, "headwidth": 6})
    axes.add_patch(Arc((x, y), 1, 1, theta1=0, theta2=math.degrees(azimuth), color="tab:orange"))
    axes.text(
        x + 0.36, y + 0.52, "azimuth 50°, of the\nobject's own +x axis", fontsize=8, color="saddlebrown", bbox=_LABEL
    )
    direction = _CAMERA.position[:2] / np.linalg.norm(_CAMERA.position[:2])
    axes.annotate("", 1.15 * direction, 1.5 * direction, arrowprops={"color": "tab:blue", "width": 1, "headwidth": 6})
    axes.text(*(1.58 * direction), f"camera,\n{_CAMERA}", fontsize=8, color="tab:blue", ha="center", va="top")
    axes.set(xlim=(-1.25, 1.45), ylim=(-1.85, 1.15), aspect="equal")
    axes.set_title("from above: the table is [-1, 1] x [-1, 1]", fontsize=9)
    axes.axis("off")


def _through_the_camera(axes: Any, mesh: Mesh) -> None:
    axes.imshow(zbuffer.render(mesh, _CAMERA, _POSE[None], _SIZE)[0].transpose(1, 2, 0))

    def line(points: list[list[float]], style: str, **how: Any) -> None:
        axes.plot(*_CAMERA.project(np.array(points), _SIZE)[0].T - 0.5, style, **how)

    x, y, _ = _POSE
    line([[-1, 0, 0], [1, 0, 0]], "-", color="white", linewidth=0.6)
    line([[0, -1, 0], [0, 1, 0]], "-", color="white", linewidth=0.6)
    line([[x, 0, 0], [x, y, 0], [0, y, 0]], "--", color="white", linewidth=0.8)
    points, _ = _CAMERA.project(scene.placed(mesh.vertices, _POSE), _SIZE)
    low, high = points.min(axis=0) - 0.5, points.max(axis=0) - 0.5
    axes.add_patch(Rectangle(low, *(high - low), fill=False, color="yellow", linewidth=0.8))
    for end, name in (([1.08, 0, 0], "x"), ([0, 1.08, 0], "y")):
        axes.text(*(_CAMERA.project(np.array(end), _SIZE)[0] - 0.5), name, color="white", fontsize=9, ha="center")
    dot, _ = _CAMERA.project(np.array([*scene.DOT, 0.0]), _SIZE)
    axes.annotate(
        f"red dot at {scene.DOT}",
        dot - 0.5,
        (dot[0] - 20, dot[1] - 45),
        color="white",
        fontsize=8,
        ha="center",
        arrowprops={"color": "white", "arrowstyle": "->"},
    )
    axes.set_title("through the camera, with the box of the\nprojected vertices that the tests compare", fontsize=9)
    axes.axis("off")


if __name__ == "__main__":
    draw(sys.argv[1])
