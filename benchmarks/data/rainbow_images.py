"""Public image sets that go by the name of Rainbow MNIST: groups of digits under one transformation each.

Two forms are about. A folder of PNG files, `group/digit/*.png` or `group/batch/digit/*.png`, as the authors' code reads
it (Finn et al. 2019). One pickle, `{group: {"images": (n, 28, 28, 3), "labels": (n,)}}`, as in the code of Yao, Zhang
and Finn, *Meta-Learning with Fewer Tasks through Task Interpolation* (2022): 56 groups of 100 images a digit.
"""

from __future__ import annotations

import hashlib
import os
import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ftml_bench.errors import UsageError
from ftml_bench.files import damaged, opened

_SIDE = 28
_DIGITS = tuple("0123456789")
# All that an array in a pickle is made of: nothing else is called, whatever the file says.
_ARRAYS = {
    *((f"numpy.{core}.multiarray", "_reconstruct") for core in ("core", "_core")),
    *((f"numpy.{core}.multiarray", "scalar") for core in ("core", "_core")),
    *((f"numpy.{core}.numeric", "_frombuffer") for core in ("core", "_core")),
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("_codecs", "encode"),
}


@dataclass(frozen=True)
class Group:
    """The images under one transformation.

    :param name: of its folder, or its key in the pickle.
    :param x: (n, 3, 28, 28) uint8; `y`: (n,) int64, 0 to 9.
    """

    name: str
    x: Tensor
    y: Tensor


def read_groups(path: str | os.PathLike[str]) -> tuple[str, list[Group]]:
    """The groups of a folder or a pickle, in the order of their names (numbers by their size).

    :return: what the set is called, with eight digits of the SHA-256 of its content, and the groups.
    :raises UsageError: if there is nothing, or what is there is neither of the two forms.
    """
    where = Path(path)
    groups = _of_folder(where) if where.is_dir() else _of_pickle(where)
    digest = hashlib.sha256()
    for group in groups:
        for part in (group.x, group.y):
            digest.update(part.numpy().tobytes())
    return f"{where.name} {digest.hexdigest()[:8]}", groups


def _of_folder(folder: Path) -> list[Group]:
    groups = []
    for place in _folders(folder):
        files = [
            (file, int(digit.name))
            for digit in sorted(path for path in place.rglob("*") if path.is_dir() and path.name in _DIGITS)
            for file in sorted(digit.glob("*.png"))
        ]
        # a batch may be called like a digit: what counts is the folder that the file lies in
        if not files:
            raise UsageError(f"{place}: no PNG files in folders 0 to 9: expected group/digit/*.png")
        x = torch.stack([_read(file) for file, _ in files])
        groups.append(Group(place.name, x, torch.tensor([digit for _, digit in files])))
    if not groups:
        raise UsageError(f"{folder}: no folders: expected group/digit/*.png or group/batch/digit/*.png")
    return groups


def _folders(folder: Path) -> list[Path]:
    return sorted((path for path in folder.iterdir() if path.is_dir()), key=lambda path: _by_number(path.name))


def _by_number(name: str) -> tuple[int, str]:
    return (int(name), "") if name.isdecimal() else (10**9, name)


def _read(file: Path) -> Tensor:
    try:
        with Image.open(file) as image:
            pixels = np.asarray(image.convert("RGB"))
    except (OSError, SyntaxError, ValueError) as error:
        raise UsageError(f"{file}: no image that can be read ({error})") from error
    if pixels.shape != (_SIDE, _SIDE, 3):
        raise UsageError(f"{file}: {pixels.shape[1]} x {pixels.shape[0]} pixels: expected {_SIDE} x {_SIDE}")
    return torch.from_numpy(pixels.copy()).permute(2, 0, 1)


class _Arrays(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ARRAYS:
            raise pickle.UnpicklingError(f"{module}.{name} is no array")
        return super().find_class(module, name)


def _of_pickle(path: Path) -> list[Group]:
    with opened(path) as file:
        try:
            content = _Arrays(file, encoding="latin1").load()
        except Exception as error:  # a pickle can raise anything
            raise UsageError(f"{path}: no pickle of arrays ({error})") from error
    if not isinstance(content, dict) or not content:
        raise damaged(path, 'expected {group: {"images": ..., "labels": ...}}')
    return [_group(path, key, content[key]) for key in sorted(content, key=lambda key: _by_number(str(key)))]


def _group(path: Path, key: Any, value: Any) -> Group:
    where = f"{path}: group {key!r}"
    if not isinstance(value, dict) or not {"images", "labels"} <= set(value):
        raise UsageError(f'{where}: expected {{"images": ..., "labels": ...}}')
    x, y = (np.asarray(value[name]) for name in ("images", "labels"))
    y = y.reshape(-1)
    if x.size != len(y) * _SIDE * _SIDE * 3 or x.shape[-3:] != (_SIDE, _SIDE, 3):
        raise UsageError(f"{where}: images {x.shape}, labels {y.shape}: expected (n, {_SIDE}, {_SIDE}, 3) and (n,)")
    are_numbers = all(np.issubdtype(part.dtype, np.number) for part in (x, y))
    if not are_numbers or not np.isin(y, range(10)).all():
        raise UsageError(f"{where}: expected numbers, and labels from 0 to 9")
    x = x.reshape(-1, _SIDE, _SIDE, 3)
    if x.dtype != np.uint8:
        low, high = float(x.min()), float(x.max())
        if not (low >= 0 and high <= 255):  # also of NaN
            raise UsageError(f"{where}: pixels from {low:g} to {high:g}: expected 0 to 1 or 0 to 255")
        x = np.rint(x * (255 if high <= 1 else 1)).astype(np.uint8)
    return Group(str(key), torch.from_numpy(x.transpose(0, 3, 1, 2).copy()), torch.from_numpy(y.astype(np.int64)))
