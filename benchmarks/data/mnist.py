"""MNIST, read from torchvision's files where they lie, packed or not; nothing is unpacked or written.

Y. LeCun, C. Cortes, C. Burges: the MNIST database of handwritten digits, 1998. 60,000 training and 10,000 test images.
"""

from __future__ import annotations

import gzip
import math
import os
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ftml_bench.benchmarks.data import data_root
from ftml_bench.errors import UsageError
from ftml_bench.files import check_md5, damaged, is_there, opened

TRAIN_IMAGES = 60_000
TEST_IMAGES = 10_000
_SIDE = 28


@dataclass(frozen=True)
class _File:
    """One of the four files: its name unpacked, its shape, and the MD5 of its content and of its `.gz` (torchvision's).

    The content is a header, which says the shape, and the bytes of the items in order.
    """

    name: str
    shape: tuple[int, ...]
    md5: str
    packed_md5: str

    @property
    def header(self) -> int:
        """Bytes before the items: the type, and each dimension in four bytes."""
        return 4 + 4 * len(self.shape)


_IMAGES = (_SIDE, _SIDE)
# fmt: off
_FILES = {
    "train": (
        _File("train-images-idx3-ubyte", (TRAIN_IMAGES, *_IMAGES),
              "6bbc9ace898e44ae57da46a324031adb", "f68b3c2dcbeaaa9fbdd348bbdeb94873"),
        _File("train-labels-idx1-ubyte", (TRAIN_IMAGES,),
              "a25bea736e30d166cdddb491f175f624", "d53e105ee54ea40749a09fcbcd1e9432"),
    ),
    "test": (
        _File("t10k-images-idx3-ubyte", (TEST_IMAGES, *_IMAGES),
              "2646ac647ad5339dbf082846283269ea", "9fb629c4189551a2d022fa330f9573f3"),
        _File("t10k-labels-idx1-ubyte", (TEST_IMAGES,),
              "27ae3e4e09519cfbb04c329615203637", "ec29112dd5afa0611ce80d1b7f02629c"),
    ),
}
# fmt: on


def read_mnist(split: str, root: str | os.PathLike[str] | None = None) -> tuple[Tensor, Tensor]:
    """The images and labels of 'train' or 'test', in file order.

    Files are looked for in `MNIST/raw` of the data folder; one that lies there unpacked is preferred to its `.gz`.

    :param root: the data folder, see :func:`~ftml_bench.benchmarks.data.data_root`.
    :return: (N, 28, 28) uint8 grey values and (N,) int64 labels, N = 60,000 or 10,000.
    :raises UsageError: if files are missing, cannot be read, or are damaged: each is checked by its MD5.
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
        except Exception as error:  # it also reads what it finds, and stumbles over damage in any of a dozen ways
            raise UsageError(f"MNIST could not be fetched into {folder}: {error}") from error
    for split in _FILES:
        read_mnist(split, root)
    return folder


def _raw(root: str | os.PathLike[str] | None) -> Path:
    return data_root(root) / "MNIST" / "raw"


def _find(folder: Path, file: _File) -> Path | None:
    """What lies there of a file: unpacked, else packed, else nothing."""
    return next(filter(is_there, (folder / file.name, folder / f"{file.name}.gz")), None)


def _missing(folder: Path) -> list[str]:
    return [file.name for files in _FILES.values() for file in files if _find(folder, file) is None]


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
    path = _find(folder, file)
    assert path is not None
    size = file.header + math.prod(file.shape)
    with opened(path) as stream:
        if path.name != file.name:
            check_md5(path, stream, file.packed_md5)
            content = gzip.decompress(stream.read())
        else:
            found = os.fstat(stream.fileno()).st_size
            if found != size:
                raise damaged(path, f"it has {found:,} bytes, expected {size:,}")
            check_md5(path, stream, file.md5)
            content = stream.read()
    # A bytearray, because torch warns of tensors on memory that cannot be written.
    return torch.frombuffer(bytearray(content), dtype=torch.uint8, offset=file.header).view(file.shape)
