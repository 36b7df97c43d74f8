"""Writes the subset of CIFAR-100 as lossless strips: 27 MB in the place of 169 MB, the same bytes.

A strip is the lossless WebP picture of the images of one class below one another in file order, 32 pixels wide:
`cifar-100-subset/train/CC_NAME.webp`, 120 images, and `test/CC_NAME.webp`, 40, where CC is the fine label 00 to 99.
"""

from __future__ import annotations

import os
from pathlib import Path

from torch import Tensor

from ftml_bench.benchmarks.data.cifar100 import CLASSES, SUBSET_IMAGES, read_cifar100, strip_file, subset_of_whole
from ftml_bench.errors import UsageError
from ftml_bench.files import replacing


def write_strips(folder: Path, root: str | os.PathLike[str] | None = None) -> Path:
    """Write the strips into a data folder, from the whole set, and check them by reading them.

    :param folder: the data folder to write to; `cifar-100-subset` is made in it. Strips that lie there are replaced.
    :param root: the data folder that has the whole set, see :func:`~ftml_bench.benchmarks.data.data_root`.
    :return: the folder of the strips.
    :raises UsageError: if CIFAR-100 is missing or damaged, or `folder` cannot be written to.
    """
    strips = {split: subset_of_whole(split, root) for split in SUBSET_IMAGES}
    try:
        for split, images in strips.items():
            strip_file(folder, split, 0).parent.mkdir(parents=True, exist_ok=True)
            for label in range(len(CLASSES)):
                _write(strip_file(folder, split, label), images[label])
    except OSError as error:
        raise UsageError(f"the strips cannot be written into {folder}: {error.strerror or error}") from error
    for split in strips:
        read_cifar100(split, subset=True, root=folder)
    return strip_file(folder, "train", 0).parent.parent


def _write(path: Path, images: Tensor) -> None:
    """One strip of (N, 3, 32, 32) uint8."""
    from PIL import Image

    pixels = images.permute(0, 2, 3, 1).flatten(0, 1).numpy()  # (N * 32, 32, 3)
    with replacing(path) as file:
        # Method 4: the larger ones save 0.2 % and take 4 to 30 times as long.
        Image.fromarray(pixels).save(file, "WEBP", lossless=True, quality=100, method=4)
