"""The 56 transformations of Rainbow MNIST: 7 background colours x 2 sizes x 4 rotations, on whole batches of bytes.

Finn et al. 2019 name the factors and no values: the colours, the place of the half-size digit and the order of the
operations are ours.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import interpolate

# RGB. Dark enough for white strokes on each, far enough apart that no two look alike.
BACKGROUNDS: dict[str, tuple[int, int, int]] = {
    "red": (200, 20, 30),
    "orange": (235, 110, 0),
    "yellow": (190, 165, 0),
    "green": (20, 125, 40),
    "blue": (0, 130, 225),
    "indigo": (45, 25, 125),
    "violet": (160, 60, 200),
}
SCALES = ("whole", "half")
QUARTER_TURNS = (0, 1, 2, 3)


@dataclass(frozen=True)
class Transformation:
    """What makes the images of one task: a background's name, 'whole' or 'half', quarter turns (anticlockwise)."""

    background: str
    scale: str
    rotation: int

    def __str__(self) -> str:
        return f"{self.background}, {self.scale}, {90 * self.rotation}°"

    def __call__(self, grey: Tensor) -> Tensor:
        """:func:`rainbow` with this transformation."""
        return rainbow(grey, BACKGROUNDS[self.background], self.scale, self.rotation)


TRANSFORMATIONS = [Transformation(*factors) for factors in itertools.product(BACKGROUNDS, SCALES, QUARTER_TURNS)]


def rainbow(grey: Tensor, background: tuple[int, int, int], scale: str, rotation: int) -> Tensor:
    """White digits on a coloured background: turned, shrunk, then coloured.

    :param grey: (N, H, W) uint8, a digit's strokes bright on 0; H = W where it is turned by one or three quarters.
    :param background: RGB, each 0 to 255.
    :param scale: 'whole', or 'half': shrunk to half by averaging and put in the middle (where the margin is odd, one
        pixel nearer to the top left).
    :param rotation: quarter turns anticlockwise, 0 to 3.
    :return: (N, 3, H, W) uint8: background + (255 - background) * grey / 255, rounded.
    """
    grey = torch.rot90(grey, rotation, dims=(1, 2))
    if scale == "half":
        grey = _half(grey)
    values = torch.arange(256)
    colour = torch.tensor(background)[:, None]
    # One table a channel: every grey value's colour, so that the arithmetic is done 256 times, not once a pixel.
    table = (colour + (255 - colour) * values / 255).round().to(torch.uint8)
    index = grey.long()
    return torch.stack([channel[index] for channel in table], dim=1)


def resize(grey: Tensor, size: int) -> Tensor:
    """Images at another size, bilinear (at exactly half the size: the mean of each 2 x 2 pixels).

    :param grey: (N, H, W) uint8.
    :return: (N, size, size) uint8.
    """
    if grey.shape[1:] == (size, size):
        return grey
    resized = interpolate(grey[:, None].float(), size=(size, size), mode="bilinear", align_corners=False)
    return resized[:, 0].round().to(torch.uint8)


def _half(grey: Tensor) -> Tensor:
    height, width = grey.shape[1] // 2, grey.shape[2] // 2
    small = interpolate(grey[:, None].float(), size=(height, width), mode="area")[:, 0].round().to(torch.uint8)
    top, left = (grey.shape[1] - height) // 2, (grey.shape[2] - width) // 2
    centred = torch.zeros_like(grey)
    centred[:, top : top + height, left : left + width] = small
    return centred
