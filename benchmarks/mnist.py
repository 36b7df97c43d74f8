"""MNIST, read from torchvision's files where they lie, packed or not; nothing is unpacked or written.

Y. LeCun, C. Cortes, C. Burges: the MNIST database of handwritten digits, 1998. 60,000 training and 10,000 test images.
"""

from __future__ import annotations

import gzip
import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ftml_bench.benchmarks.data import data_root
from ftml_bench.errors import UsageError

TRAIN_IMAGES = 60_000
TEST_IMAGES = 10_000
_SIDE = 28


@dataclass(frozen=True)
class _File:
    """One of the four files: its name unpacked, what it must hold, and the MD5 of its `.gz` (torchvision's)."""

    name: str
    items: int
    item_shape: tuple[int, ...]
    md5: str


_FILES = {
    "train": (
        _File("train-images-idx3-ubyte", TRAIN_IMAGES, (_SIDE, _SIDE), "f68b3c2dcbeaaa9fbdd348bbdeb94873"),
        _File("train-labels-idx1-ubyte", TRAIN_IMAGES, (), "d53e105ee54ea40749a09fcbcd1e9432"),
    ),
    "test": (
        _File("t10k-images-idx3-ubyte", TEST_IMAGES, (_SIDE, _SIDE), "9fb629c4189551a2d022fa330f9573f3"),
        _File("t10k-labels-idx1-ubyte", TEST_IMAGES, (), "ec29112dd5afa0611ce80d1b7f02629c"),
    ),
}


def read_mnist(split: str, root: str | os.PathLike[str] | None = None) -> tuple[Tensor, Tensor]:
    """The images and labels of 'train' or 'test', in file order.

    Files are looked for in `MNIST/raw` of the data folder; one that lies there unpacked is preferred to its `.gz`.

    :param root: the data folder, see :func:`~ftml_bench.benchmarks.data.data_root`.
    :return: (N, 28, 28) uint8 grey values and (N,) int64 labels, N = 60,000 or 10,000.
    :raises UsageError: if files are missing or damaged.
    """
    folder = _raw(root)
    _check_complete(folder)
    images, labels = (_read(folder, file) for file in _FILES[split])
    return images, labels.long()


def download(root: str | os.PathLike[str] | None = None) -> Path:
    """Fetch MNIST into the data folder (by torchvision) unless it is there, and check it.

    :param root: the data folder, see :func:`~ftml_bench.benchmarks.data.data_root`.
    :return: the folder that the files are in.
    :raises UsageError: if it cannot be fetched, or what is there is damaged.
    """
    folder = _raw(root)
    if _missing(folder):
        from torchvision.datasets import MNIST

        try:
            MNIST(str(data_root(root)), download=True)
        except (OSError, RuntimeError) as error:
            raise UsageError(f"MNIST could not be fetched into {folder}: {error}") from error
    for split in _FILES:
        read_mnist(split, root)
    return folder


def _raw(root: str | os.PathLike[str] | None) -> Path:
    return data_root(root) / "MNIST" / "raw"


def _missing(folder: Path) -> list[str]:
    names = [file.name for files in _FILES.values() for file in files]
    return [name for name in names if not (folder / name).is_file() and not (folder / f"{name}.gz").is_file()]


def _check_complete(folder: Path) -> None:
    missing = _missing(folder)
    if not missing:
        return
    some = f" ({', '.join(missing)} missing)" if len(missing) < 4 else ""
    raise UsageError(
        f"MNIST is not in {folder}{some}: put the four files there, name another folder with --data or "
        "FTML_BENCH_DATA, or run `ftml-bench data mnist --download`"
    )


def _read(folder: Path, file: _File) -> Tensor:
    path = folder / file.name
    if path.is_file():
        content = path.read_bytes()
    else:
        path = folder / f"{file.name}.gz"
        packed = path.read_bytes()
        md5 = hashlib.md5(packed, usedforsecurity=False).hexdigest()
        if md5 != file.md5:
            raise _damaged(path, f"its MD5 is {md5}, expected {file.md5}")
        content = gzip.decompress(packed)
    return _parse(path, content, file)


def _parse(path: Path, content: bytes, file: _File) -> Tensor:
    # IDX: two zero bytes, the type (8: unsigned byte), the number of dimensions, then each in four bytes, big-endian.
    shape = (file.items, *file.item_shape)
    magic = bytes([0, 0, 8, len(shape)])
    if content[:4] != magic:
        raise _damaged(path, f"it begins with {content[:4].hex(' ')}, expected {magic.hex(' ')}")
    header = 4 + 4 * len(shape)
    found = tuple(int.from_bytes(content[i : i + 4], "big") for i in range(4, header, 4))
    if found != shape:
        raise _damaged(path, f"its header gives the shape {found}, expected {shape}")
    expected = header + torch.Size(shape).numel()
    if len(content) != expected:
        raise _damaged(path, f"it has {len(content):,} bytes, expected {expected:,}")
    # A bytearray, because torch warns of tensors on memory that cannot be written.
    return torch.frombuffer(bytearray(content), dtype=torch.uint8, offset=header).view(shape)


def _damaged(path: Path, what: str) -> UsageError:
    return UsageError(f"{path} is damaged: {what}; remove it and fetch it again")
