"""Fifty made-up solids of nine kinds, from a few lines each: for those who have no CAD models.

Each is put together of blocks, prisms and wheels whose measures are drawn by its kind and number, the same on every
machine; no two are alike, and none looks the same after a turn. In each the front is towards -y, as in PASCAL3D+.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from ftml_bench.rendering.scene import Mesh

Part = tuple[NDArray[np.float64], NDArray[np.int64]]  # vertices (V, 3), faces (F, 3)
Draw = Callable[[str, float, float], float]  # (what, least, most) -> a number between

# 50 = 5 of each kind, and a sixth of five kinds.
_NUMBERS = {
    "aeroplane": 6,
    "bicycle": 5,
    "boat": 6,
    "bus": 5,
    "car": 6,
    "chair": 6,
    "motorbike": 5,
    "sofa": 6,
    "tvmonitor": 5,
}
SOLIDS = tuple(f"{kind}/{number:02}" for kind, count in _NUMBERS.items() for number in range(1, count + 1))


def solid(name: str) -> Mesh:
    """The solid of that name, one of `SOLIDS`; its size and place are arbitrary.

    >>> solid("car/01").vertices.shape[1]
    3
    """
    kind = name.split("/")[0]

    def draw(what: str, least: float, most: float) -> float:
        digest = hashlib.sha256(f"{name}/{what}".encode()).digest()
        return least + (most - least) * int.from_bytes(digest[:4], "big") / 2**32

    parts = _KINDS[kind](draw)
    offsets = np.cumsum([0, *(len(vertices) for vertices, _ in parts)])
    return Mesh(
        np.concatenate([vertices for vertices, _ in parts]),
        np.concatenate([faces + offset for (_, faces), offset in zip(parts, offsets, strict=False)]),
    )


# -- parts


def _prism(outline: Sequence[tuple[float, float]], low: float, high: float, axis: int, taper: float = 1.0) -> Part:
    """A convex outline drawn out along an axis from `low` to `high`, where it is `taper` times as large.

    The outline is in the two other coordinates, in their order; it shrinks towards its middle.
    """
    base = np.array(outline, dtype=np.float64)
    n = len(base)
    middle = base.mean(axis=0)
    ends = [np.insert(base, axis, low, axis=1), np.insert(middle + taper * (base - middle), axis, high, axis=1)]
    ring = np.arange(n)
    after = (ring + 1) % n
    sides = np.concatenate([np.stack([ring, after, n + after], 1), np.stack([ring, n + after, n + ring], 1)])
    fan = np.stack([np.zeros(n - 2, dtype=np.int64), ring[1:-1], ring[2:]], 1)
    return np.concatenate(ends), np.concatenate([sides, fan, fan + n])


def _block(x: float, y: float, z: float, wide: float, deep: float, high: float, taper: float = 1.0) -> Part:
    """A box with its middle at (x, y) that stands on z; its top is `taper` times as large."""
    a, b = wide / 2, deep / 2
    return _prism([(x - a, y - b), (x + a, y - b), (x + a, y + b), (x - a, y + b)], z, z + high, 2, taper)


def _wheel(x: float, y: float, radius: float, width: float, corners: int = 12) -> Part:
    """A wheel that stands on z = 0 and rolls along y."""
    angles = 2 * np.pi * np.arange(corners) / corners
    outline = [(y + radius * np.cos(a), radius + radius * np.sin(a)) for a in angles]
    return _prism(outline, x - width / 2, x + width / 2, 0)


def _bar(start: Sequence[float], end: Sequence[float], thick: float) -> Part:
    """A square bar between two points."""
    a, b = np.array(start, dtype=np.float64), np.array(end, dtype=np.float64)
    along = (b - a) / np.linalg.norm(b - a)
    side = np.cross(along, [0.0, 0.0, 1.0] if abs(along[2]) < 0.9 else [1.0, 0.0, 0.0])
    side *= thick / 2 / np.linalg.norm(side)
    other = np.cross(along, side)
    ring = np.array([side + other, side - other, -side - other, -side + other])
    _, faces = _prism([(0, 0), (1, 0), (1, 1), (0, 1)], 0, 1, 2)
    return np.concatenate([a + ring, b + ring]), faces


# -- kinds


def _aeroplane(draw: Draw) -> list[Part]:
    length, span, body = draw("length", 0.9, 1.1), draw("span", 0.7, 1.1), draw("body", 0.1, 0.15)
    wing, chord, sweep = draw("wing", -0.15, 0.05), draw("chord", 0.14, 0.24), draw("sweep", -0.02, 0.2)
    z, tail = 0.18, length / 2
    angles = 2 * np.pi * np.arange(8) / 8
    tube = [(body / 2 * np.cos(a), z + body / 2 * np.sin(a)) for a in angles]
    parts = [_prism(tube, -tail * 0.7, tail, 1, draw("tail taper", 0.25, 0.6))]
    parts.append(_prism(tube, -tail * 0.7, -tail, 1, 0.3))
    for side in (-1, 1):
        root, tip = [(0, wing), (0, wing + chord)], [(side * span / 2, wing + sweep + chord * 0.6)]
        parts.append(_prism([*root, *tip, (side * span / 2, wing + sweep)], z - 0.015, z + 0.015, 2))
        back = [(0, tail - 0.14), (0, tail), (side * span / 5, tail), (side * span / 5, tail - 0.08)]
        parts.append(_prism(back, z, z + 0.025, 2))
    fin = draw("fin", 0.15, 0.28)
    parts.append(_prism([(tail - 0.18, z), (tail, z), (tail, z + fin), (tail - 0.08, z + fin)], -0.012, 0.012, 0))
    parts += [_wheel(x, wing + chord / 2, 0.05, 0.03, 8) for x in (-0.1, 0.1)]
    if draw("engines", 0, 1) > 0.5:
        parts += [_block(s * span / 4, wing + sweep / 2, z - 0.1, 0.07, 0.18, 0.08) for s in (-1, 1)]
    return parts


def _bicycle(draw: Draw) -> list[Part]:
    radius, base, thick = draw("radius", 0.17, 0.28), draw("base", 0.52, 0.7), draw("thick", 0.03, 0.06)
    saddle, handle = draw("saddle", 0.42, 0.65), draw("handle", 0.5, 0.8)
    front, back, pedal = -base / 2, base / 2, (0.0, draw("pedal", -0.02, 0.08), radius)
    top = (0.0, back - 0.2, saddle)
    head = (0.0, front + 0.08, handle - 0.05)
    parts = [_wheel(0, front, radius, 0.05), _wheel(0, back, radius, 0.05)]
    parts += [_bar(a, b, thick) for a, b in [(pedal, top), (pedal, head), (top, head), (pedal, (0, back, radius))]]
    parts += [_bar((0, back, radius), top, thick), _bar((0, front, radius), (0, front + 0.1, handle), thick)]
    parts.append(_block(0, back - 0.2, saddle, 0.12, 0.22, 0.05, 0.8))
    wide = draw("wide", 0.3, 0.45)
    parts.append(_bar((-wide / 2, front + 0.1, handle), (wide / 2, front + 0.1, handle), thick))
    if draw("basket", 0, 1) > 0.4:
        parts.append(_block(0, front - 0.05, handle - 0.2, 0.24, 0.2, draw("basket high", 0.12, 0.2)))
    return parts


def _boat(draw: Draw) -> list[Part]:
    length, wide, high = draw("length", 0.9, 1.1), draw("wide", 0.28, 0.42), draw("high", 0.12, 0.22)
    bow, b = -length / 2, wide / 2
    hull = [(0, bow), (b, bow + draw("bow", 0.25, 0.45)), (b, length / 2), (-b, length / 2)]
    hull.append((-b, hull[1][1]))
    parts = [_prism(hull, high, 0, 2, draw("keel", 0.55, 0.8))]
    cabin = draw("cabin", 0.05, 0.25)
    parts.append(
        _block(0, cabin, high, wide * 0.6, draw("cabin deep", 0.2, 0.35), draw("cabin high", 0.12, 0.25), 0.85)
    )
    if draw("mast", 0, 1) > 0.5:
        mast, sail = draw("mast high", 0.5, 0.8), draw("sail", 0.25, 0.4)
        parts.append(_bar((0, -0.08, high), (0, -0.08, high + mast), 0.035))
        parts.append(_prism([(-0.06, high + 0.1), (-0.06 + sail, high + 0.1), (-0.06, high + mast)], -0.01, 0.01, 0))
    else:
        parts.append(_block(0, cabin + 0.05, high + 0.2, 0.1, 0.1, draw("funnel", 0.15, 0.3)))
        parts.append(_block(0, bow + 0.3, high, 0.1, 0.12, 0.08))
    return parts


def _bus(draw: Draw) -> list[Part]:
    length, wide, high = draw("length", 0.95, 1.1), draw("wide", 0.26, 0.34), draw("high", 0.26, 0.4)
    nose, floor = draw("nose", 0.12, 0.24), 0.07
    parts = [_block(0, nose / 2, floor, wide, length - nose, high, draw("taper", 0.9, 1.0))]
    parts.append(_block(0, -length / 2 + nose / 2, floor, wide * 0.85, nose, high * draw("bonnet", 0.35, 0.55)))
    parts += [_wheel(s * wide / 2, y, 0.085, 0.05) for s in (-1, 1) for y in (-length * 0.33, length * 0.3)]
    rack = draw("rack", 0.2, 0.4)
    parts.append(_block(wide * 0.12, length / 2 - rack / 2 - 0.05, floor + high, wide * 0.6, rack, 0.08))
    parts += [_block(s * (wide / 2 + 0.04), -length / 2 + nose, floor + high * 0.6, 0.06, 0.03, 0.1) for s in (-1, 1)]
    return parts


def _car(draw: Draw) -> list[Part]:
    length, wide, high = draw("length", 0.85, 1.1), draw("wide", 0.34, 0.5), draw("high", 0.1, 0.2)
    floor, radius = draw("floor", 0.05, 0.1), draw("radius", 0.08, 0.13)
    cabin, deep, tall = draw("cabin", 0.04, 0.22), draw("deep", 0.26, 0.55), draw("tall", 0.1, 0.26)
    parts = [_block(0, 0, floor, wide, length, high, draw("taper", 0.86, 0.98))]
    parts.append(_block(0, cabin, floor + high, wide * 0.9, deep, tall, draw("slope", 0.55, 0.9)))
    parts += [_wheel(s * wide / 2, y, radius, 0.07) for s in (-1, 1) for y in (-length * 0.3, length * 0.3)]
    if draw("spoiler", 0, 1) > 0.5:
        y = length / 2 - 0.05
        parts.append(_block(0, y, floor + high + 0.06, wide, 0.09, 0.03))
        parts += [_block(s * wide / 3, y, floor + high, 0.03, 0.05, 0.07) for s in (-1, 1)]
    return parts


def _chair(draw: Draw) -> list[Part]:
    wide, deep, seat = draw("wide", 0.4, 0.55), draw("deep", 0.4, 0.5), draw("seat", 0.35, 0.5)
    back, thick, leg = draw("back", 0.35, 0.6), draw("thick", 0.05, 0.1), draw("leg", 0.04, 0.07)
    a, b = wide / 2 - leg / 2, deep / 2 - leg / 2
    parts = [_block(x, y, 0, leg, leg, seat) for x in (-a, a) for y in (-b, b)]
    parts.append(_block(0, 0, seat, wide, deep, thick))
    if draw("slats", 0, 1) > 0.5:
        parts += [_block(x, b, seat + thick, leg, leg, back) for x in (-a, 0, a)]
        parts.append(_block(0, b, seat + thick + back * 0.75, wide, leg, back * 0.25))
    else:
        parts.append(_block(0, b, seat + thick, wide, leg, back, draw("taper", 0.7, 1.0)))
    if draw("arms", 0, 1) > 0.5:
        for x in (-a, a):
            parts.append(_block(x, -0.02, seat + thick + 0.16, leg, deep * 0.9, 0.04))
            parts.append(_block(x, -b * 0.7, seat + thick, leg, leg, 0.16))
    return parts


def _motorbike(draw: Draw) -> list[Part]:
    radius, base = draw("radius", 0.13, 0.22), draw("base", 0.55, 0.75)
    front, back = -base / 2, base / 2
    parts = [_wheel(0, front, radius, 0.08), _wheel(0, back, radius * draw("rear", 0.9, 1.3), draw("tyre", 0.08, 0.16))]
    parts.append(_block(0, 0.02, radius * 0.6, draw("wide", 0.14, 0.26), draw("engine", 0.22, 0.38), 0.2))
    tank, handle = draw("tank", 0.08, 0.18), radius * 2 + draw("handle", 0.1, 0.36)
    parts.append(_block(0, -0.08, radius * 0.6 + 0.2, 0.16, 0.26, tank, 0.7))
    parts.append(_block(0, 0.2, radius * 0.6 + 0.2, 0.15, draw("seat", 0.26, 0.46), 0.07))
    parts.append(_bar((0, front, radius), (0, front + 0.14, handle), 0.05))
    parts.append(_bar((-0.2, front + 0.14, handle), (0.2, front + 0.14, handle), 0.04))
    if draw("screen", 0, 1) > 0.4:
        parts.append(_prism([(-0.1, handle - 0.1), (0.1, handle - 0.1), (0, handle + 0.15)], front, front + 0.03, 1))
    if draw("box", 0, 1) > 0.5:
        parts.append(_block(0, back, radius * 0.6 + 0.27, 0.22, 0.2, 0.16))
    parts.append(_bar((0.11, -0.05, radius * 0.7), (0.11, back + 0.1, radius * 0.9), 0.06))
    return parts


def _sofa(draw: Draw) -> list[Part]:
    wide, deep, seat = draw("wide", 0.95, 1.15), draw("deep", 0.38, 0.5), draw("seat", 0.15, 0.22)
    back, arm = draw("back", 0.2, 0.34), draw("arm", 0.08, 0.15)
    parts = [_block(0, 0, 0.04, wide, deep, seat), _block(0, deep / 2 - 0.06, seat, wide, 0.12, back, 0.95)]
    parts += [_block(s * (wide - arm) / 2, -0.02, seat, arm, deep, back * draw("arms", 0.4, 0.6)) for s in (-1, 1)]
    if draw("corner", 0, 1) > 0.5:
        side, out = (1 if draw("side", 0, 1) > 0.5 else -1), draw("out", 0.25, 0.4)
        parts.append(_block(side * wide * 0.32, -deep / 2 - out / 2, 0.04, wide * 0.34, out, seat))
    if draw("cushion", 0, 1) > 0.4:
        parts.append(_block(draw("cushion x", -0.25, 0.25), 0.02, seat + 0.04, 0.2, 0.12, 0.16, 0.8))
    return parts


def _tvmonitor(draw: Draw) -> list[Part]:
    wide, high, thick = draw("wide", 0.7, 0.95), draw("high", 0.45, 0.65), draw("thick", 0.05, 0.1)
    foot, depth = draw("foot", 0.06, 0.14), draw("depth", 0.15, 0.4)
    parts = [_block(0, 0, foot, wide, thick, high)]
    # The tube behind the screen, from the screen backwards.
    a = wide * draw("tube", 0.35, 0.45)
    tube = [(-a, foot + 0.05), (a, foot + 0.05), (a, foot + high - 0.05), (-a, foot + high - 0.05)]
    parts.append(_prism(tube, thick / 2, thick / 2 + depth, 1, draw("taper", 0.4, 0.8)))
    parts.append(_block(0, 0.03, 0, wide * 0.5, draw("stand", 0.22, 0.34), 0.03))
    parts.append(_block(0, 0.03, 0.03, 0.1, 0.08, foot))
    if draw("shelf", 0, 1) > 0.5:
        parts.append(_block(0, -0.14, 0, wide * draw("shelf wide", 0.6, 1.0), 0.2, 0.06))
    return parts


_KINDS: dict[str, Callable[[Draw], list[Part]]] = {
    "aeroplane": _aeroplane,
    "bicycle": _bicycle,
    "boat": _boat,
    "bus": _bus,
    "car": _car,
    "chair": _chair,
    "motorbike": _motorbike,
    "sofa": _sofa,
    "tvmonitor": _tvmonitor,
}
