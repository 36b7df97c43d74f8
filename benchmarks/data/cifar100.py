"""CIFAR-100, read where it lies: torchvision's whole set, packed or not, or lossless strips of a part of it.

A. Krizhevsky: Learning Multiple Layers of Features from Tiny Images, 2009. 100 classes of 500 training and 100 test
images, 32 x 32 RGB. The *subset* is the first 120 training and 40 test images of each class in file order: the same
bytes from the whole set and from the strips, checked by a hash.
"""

from __future__ import annotations

import hashlib
import io
import os
import pickle
import tarfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ftml_bench.benchmarks.data import data_root
from ftml_bench.errors import UsageError
from ftml_bench.files import check_md5, damaged, is_there, opened

# The fine labels' names; a class is its place here.
# fmt: off
CLASSES = (
    "apple", "aquarium_fish", "baby", "bear", "beaver", "bed", "bee", "beetle", "bicycle", "bottle", "bowl", "boy",
    "bridge", "bus", "butterfly", "camel", "can", "castle", "caterpillar", "cattle", "chair", "chimpanzee", "clock",
    "cloud", "cockroach", "couch", "crab", "crocodile", "cup", "dinosaur", "dolphin", "elephant", "flatfish", "forest",
    "fox", "girl", "hamster", "house", "kangaroo", "keyboard", "lamp", "lawn_mower", "leopard", "lion", "lizard",
    "lobster", "man", "maple_tree", "motorcycle", "mountain", "mouse", "mushroom", "oak_tree", "orange", "orchid",
    "otter", "palm_tree", "pear", "pickup_truck", "pine_tree", "plain", "plate", "poppy", "porcupine", "possum",
    "rabbit", "raccoon", "ray", "road", "rocket", "rose", "sea", "seal", "shark", "shrew", "skunk", "skyscraper",
    "snail", "snake", "spider", "squirrel", "streetcar", "sunflower", "sweet_pepper", "table", "tank", "telephone",
    "television", "tiger", "tractor", "train", "trout", "tulip", "turtle", "wardrobe", "whale", "willow_tree", "wolf",
    "woman", "worm",
)
# fmt: on
SIZE = 32
IMAGES = {"train": 500, "test": 100}  # of each class
SUBSET_IMAGES = {"train": 120, "test": 40}

_WHOLE = "cifar-100-python"
_STRIPS = "cifar-100-subset"
_PACKED_MD5 = "eb9058c3a382ffc7106e4002c42a8d85"  # these three are torchvision's
_MD5 = {"train": "16019d7e3df5f24257cddd939b257f8d", "test": "f0ef6b0ae62326f3e7ffdfab6717acfc"}
# Of the bytes of `read_cifar100(split, subset=True)`.
_SUBSET_SHA256 = {
    "train": "a32672174df2dd98e49a7c38554885d25c53d6a061744d8d22d8af24245c15d6",
    "test": "98df0ac7447c1dfe6011289be1f9888f052f358726ff0102769cf75482c980c9",
}

_ANEW = "make the strips anew with `ftml-bench data cifar100 --strips DIR`"


def read_cifar100(split: str, *, subset: bool = False, root: str | os.PathLike[str] | None = None) -> Tensor:
    """The images of 'train' or 'test', class by class.

    The whole set is looked for in `cifar-100-python` of the data folder, else in `cifar-100-python.tar.gz`, and checked
    by its MD5. The subset is read from the strips in `cifar-100-subset`, else from the whole set.

    :param subset: only the first images of each class.
    :param root: the data folder, see :func:`~ftml_bench.benchmarks.data.data_root`.
    :return: (100, N, 3, 32, 32) uint8: the N images of each class in file order. N = 500 or 100; subset: 120 or 40.
    :raises UsageError: if files are missing or damaged.
    """
    folder = data_root(root)
    if not subset:
        return _read_whole(split, folder, IMAGES[split])
    if not is_there(folder / _STRIPS):
        return subset_of_whole(split, root)
    return _checked(_read_strips(split, folder), split, f"{folder / _STRIPS / split}", f"{_ANEW}, or remove them")


def subset_of_whole(split: str, root: str | os.PathLike[str] | None = None) -> Tensor:
    """The subset as `read_cifar100` returns it, read from the whole set even where there are strips."""
    folder = data_root(root)
    return _checked(_read_whole(split, folder, SUBSET_IMAGES[split]), split, str(folder), "fetch the files again")


def _checked(images: Tensor, split: str, origin: str, mend: str) -> Tensor:
    found = hashlib.sha256(images.numpy().data).hexdigest()
    if found != _SUBSET_SHA256[split]:
        raise UsageError(
            f"{origin} does not hold the first {SUBSET_IMAGES[split]} {split} images of each class (SHA-256 "
            f"{found[:12]}, expected {_SUBSET_SHA256[split][:12]}): {mend}"
        )
    return images


def download(root: str | os.PathLike[str] | None = None) -> Path:
    """Fetch the whole set into the data folder (by torchvision) unless it is there, and check it.

    :param root: the data folder, see :func:`~ftml_bench.benchmarks.data.data_root`.
    :return: the folder that the files are in.
    :raises UsageError: if it cannot be fetched, or what is there is damaged.
    """
    folder = data_root(root)
    if _missing(folder):
        from torchvision.datasets import CIFAR100

        try:
            CIFAR100(str(folder), download=True)
        except Exception as error:  # it also reads what it finds, and stumbles over damage in any of a dozen ways
            raise UsageError(f"CIFAR-100 could not be fetched into {folder}: {error}") from error
    for split in IMAGES:
        read_cifar100(split, root=root)
    return folder / _WHOLE


def strip_file(folder: Path, split: str, label: int) -> Path:
    """Where the strip of a class is, in a data folder."""
    return folder / _STRIPS / split / f"{label:02}_{CLASSES[label]}.webp"


def _find(split: str, folder: Path) -> Path | None:
    """What a split is read from: its own file, else the archive, else nothing."""
    return next(filter(is_there, (folder / _WHOLE / split, folder / f"{_WHOLE}.tar.gz")), None)


def _missing(folder: Path) -> list[str]:
    return [split for split in IMAGES if _find(split, folder) is None]


def _read_whole(split: str, folder: Path, count: int) -> Tensor:
    """The first `count` images of every class, (100, count, 3, 32, 32)."""
    if missing := _missing(folder):
        some = f" ({_WHOLE}/{missing[0]} missing)" if len(missing) < len(IMAGES) else ""
        part = " (its subset is: subset=True reads that)" if is_there(folder / _STRIPS) else ""
        raise UsageError(
            f"CIFAR-100 is not in {folder}{some or part}: put {_WHOLE}/ or {_WHOLE}.tar.gz there, name another folder "
            "with --data or FTML_BENCH_DATA, or run `ftml-bench data cifar100 --download`"
        )
    with _opened(split, folder) as file:
        # Only after its MD5 is checked: a pickle can run anything. Read as text, the pixels would be copied once more.
        content = pickle.load(file, encoding="bytes")
    rows = content[b"data"]  # (M, 3072) uint8
    labels = np.array(content[b"fine_labels"])
    images = np.empty((len(CLASSES), count, 3, SIZE, SIZE), np.uint8)
    for label, of_class in enumerate(images):
        of_class[:] = rows[np.flatnonzero(labels == label)[:count]].reshape(of_class.shape)
    return torch.from_numpy(images)


@contextmanager
def _opened(split: str, folder: Path) -> Iterator[BinaryIO]:
    """The pickle of a split, opened where it lies, after its MD5 (or that of the archive) was found right."""
    path = _find(split, folder)
    assert path is not None
    with opened(path) as file:
        if path.name == split:
            check_md5(path, file, _MD5[split])
            yield file
            return
        check_md5(path, file, _PACKED_MD5)
        with tarfile.open(fileobj=file) as archive:
            member = archive.extractfile(f"{_WHOLE}/{split}")
            assert member is not None
            with member:
                yield member  # type: ignore[misc]


def _read_strips(split: str, folder: Path) -> Tensor:
    """The images of all strips of a split, (100, N, 3, 32, 32)."""
    count = SUBSET_IMAGES[split]
    images = np.empty((len(CLASSES), count, 3, SIZE, SIZE), np.uint8)
    for label, of_class in enumerate(images):
        path = strip_file(folder, split, label)
        if not is_there(path):
            raise UsageError(f"{path} is missing: {_ANEW}, or remove {folder / _STRIPS}")
        of_class[:] = _read_strip(path, count).reshape(count, SIZE, SIZE, 3).transpose(0, 3, 1, 2)
    return torch.from_numpy(images)


def _read_strip(path: Path, count: int) -> NDArray[np.uint8]:
    """The pixels of a strip of `count` images, (count * 32, 32, 3)."""
    from PIL import Image, UnidentifiedImageError

    with opened(path) as file:
        content = io.BytesIO(file.read())
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(content, formats=["WEBP"]) as strip:
                # Before anything is decoded: a few bytes can stand for a picture that fills the memory.
                if strip.size == (SIZE, count * SIZE):
                    return np.asarray(strip.convert("RGB"))
                what = f"it is {strip.width} x {strip.height} pixels, not {SIZE} x {count * SIZE}"
    except UnidentifiedImageError:
        what = "it is no WebP picture"
    except Exception as error:  # whatever Pillow finds wrong with a file
        what = " ".join(str(error).split())
    raise damaged(path, what, _ANEW)
