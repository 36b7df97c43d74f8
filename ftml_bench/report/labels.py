"""The names of lines at their ends, and of points beside them, none over another."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from scipy.optimize import isotonic_regression

SIZE = 7.5  # points
_APART = 1.25  # heights of a letter
_MOST = 40  # letters of a name


def shortened(name: str) -> str:
    """A name as panels have room for it: with its middle left out where it is longer than 40 letters.

    >>> shortened("FTML with a rate that somebody looked for, 0.003")
    'FTML with a rate tha…y looked for, 0.003'
    """
    half = _MOST // 2
    return name if len(name) <= _MOST else f"{name[:half]}…{name[1 - half :]}"


def spread(wanted: np.ndarray, apart: float, low: float = 0.0, high: float = 1.0) -> np.ndarray:
    """Places as near to those `wanted` as can be (least squares), in their order, `apart` from each other, from `low`
    to `high`; closer together if that has no room for them.

    >>> spread(np.array([0.5, 0.5, 0.9]), 0.1).tolist()
    [0.45, 0.55, 0.9]
    """
    count = len(wanted)
    order = np.argsort(wanted, kind="stable")
    apart = min(apart, (high - low) / max(1, count - 1))
    steps = apart * np.arange(count)
    # What is left when the steps are taken off must not fall: that is an isotonic regression.
    places = isotonic_regression(wanted[order] - steps).x.clip(low, high - apart * (count - 1)) + steps
    found = np.empty(count)
    found[order] = places
    return found


def at_ends(axes: Axes, lines: dict[str, Line2D]) -> None:
    """Writes each name to the right of the panel, at the height where its line ends; limits and scales are set by then.

    :param lines: name -> line; the name takes its colour.
    """
    ends = {name: line for name, line in lines.items() if np.isfinite(line.get_ydata()).any()}
    if not ends:
        return
    last = [np.asarray(line.get_ydata())[np.isfinite(line.get_ydata())][-1] for line in ends.values()]
    shares = (axes.transScale + axes.transLimits).transform([(axes.get_xlim()[1], y) for y in last])[:, 1].clip(0, 1)
    height = axes.bbox.height / axes.figure.dpi  # in inches, before the layout gives the panel a little more
    for (name, line), share, place in zip(
        ends.items(), shares, spread(shares, _APART * SIZE / 72 / height), strict=True
    ):
        axes.annotate(
            shortened(name), (1, share), (1.04, place), xycoords="axes fraction", textcoords="axes fraction",
            va="center", fontsize=SIZE, color=line.get_color(), annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": line.get_color(), "linewidth": 0.6, "shrinkA": 1, "shrinkB": 0,
                        "relpos": (0, 0.5)},
        )  # fmt: skip


def beside(axes: Axes, points: dict[str, tuple[float, float]]) -> None:
    """Writes each name to the right of its point; limits and scales are set by then.

    Of points above each other names stand in a column, with a thread to a point that is elsewhere.

    :param points: name -> x and y.
    """
    if not points:
        return
    names = np.array(list(points))
    shares = (axes.transScale + axes.transLimits).transform(list(points.values()))
    width, height = (side / axes.figure.dpi * 72 for side in (axes.bbox.width, axes.bbox.height))
    order = np.argsort(shares[:, 0], kind="stable")
    ends = np.flatnonzero(np.diff(shares[order, 0]) * width > 2 * SIZE) + 1  # where there is room between them
    for column in np.split(order, ends):
        left = shares[column, 0].max() + 0.8 * SIZE / width
        places = spread(shares[column, 1], SIZE / height)
        for name, share, place in zip(names[column], shares[column], places, strict=True):
            moved = abs(place - share[1]) * height > SIZE / 2 or (left - share[0]) * width > SIZE
            axes.annotate(
                name, share, (left, place), xycoords="axes fraction", textcoords="axes fraction", va="center",
                fontsize=SIZE, color="#444444", annotation_clip=False,
                arrowprops={"arrowstyle": "-", "color": "#999999", "linewidth": 0.5, "shrinkA": 0, "shrinkB": 2,
                            "relpos": (0, 0.5)} if moved else None,
            )  # fmt: skip
