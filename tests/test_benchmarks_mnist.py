"""Reading MNIST's files: where they are looked for, and every way in which they can be missing or damaged."""

from __future__ import annotations

import dataclasses
import gzip
import hashlib
import os
from pathlib import Path

import pytest
import torch

from ftml_bench.benchmarks import mnist
from ftml_bench.benchmarks.data import data_root
from ftml_bench.benchmarks.mnist import download, read_mnist
from ftml_bench.errors import UsageError

NAMES = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}
COUNTS = {"train": 60_000, "test": 10_000}


def contents(split):
    """The two files of a split, in full size: labels 0, 1, ..., 9, 0, ..., and the first pixel of image i is i."""
    n = COUNTS[split]
    pixels = torch.zeros(n, 28 * 28, dtype=torch.uint8)
    pixels[:, 0] = torch.arange(n) % 256
    images = bytes([0, 0, 8, 3]) + b"".join(k.to_bytes(4, "big") for k in (n, 28, 28)) + pixels.numpy().tobytes()
    labels = bytes([0, 0, 8, 1]) + n.to_bytes(4, "big") + bytes(i % 10 for i in range(n))
    return images, labels


@pytest.fixture(scope="module")
def made():
    return {name: c for split in NAMES for name, c in zip(NAMES[split], contents(split), strict=True)}


@pytest.fixture
def root(tmp_path, made):
    """A data folder with a made-up MNIST, unpacked."""
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for name, content in made.items():
        (raw / name).write_bytes(content)
    return tmp_path


def raw(root):
    return root / "MNIST" / "raw"


@pytest.mark.parametrize("split", ["train", "test"])
def test_unpacked_files(root, split):
    images, labels = read_mnist(split, root)
    assert images.shape == (COUNTS[split], 28, 28)
    assert images.dtype == torch.uint8
    assert labels.dtype == torch.int64
    assert images[[3, 300], 0, 0].tolist() == [3, 44]
    assert images[:, 1:].sum() == 0
    assert labels[:12].tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1]


def test_packed_files_are_read_in_place(root, made, monkeypatch):
    packed = {name: gzip.compress(made[name], compresslevel=1) for name in NAMES["test"]}
    files = tuple(
        dataclasses.replace(file, md5=hashlib.md5(packed[file.name]).hexdigest()) for file in mnist._FILES["test"]
    )
    monkeypatch.setitem(mnist._FILES, "test", files)
    for name, content in packed.items():
        (raw(root) / name).unlink()
        (raw(root) / f"{name}.gz").write_bytes(content)
    before = sorted(os.listdir(raw(root)))
    images, labels = read_mnist("test", root)
    assert images[300, 0, 0] == 44
    assert labels[13] == 3
    assert sorted(os.listdir(raw(root))) == before


def test_a_changed_packed_file_is_named(root):
    path = raw(root) / "t10k-labels-idx1-ubyte"
    path.unlink()
    packed = path.with_name(path.name + ".gz")
    packed.write_bytes(gzip.compress(b"something else"))
    with pytest.raises(UsageError, match=r"t10k-labels-idx1-ubyte\.gz is damaged: its MD5 is .* expected ec29112d"):
        read_mnist("test", root)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda b: b[:-1], "it has 10,007 bytes, expected 10,008"),
        (lambda b: b + b"x", "it has 10,009 bytes, expected 10,008"),
        (lambda b: b[:3], "it begins with 00 00 08, expected 00 00 08 01"),
        (lambda b: b"", "it begins with , expected"),
        (lambda b: b"\0\0\x08\x03" + b[4:], "it begins with 00 00 08 03, expected 00 00 08 01"),
        (lambda b: b[:4] + (5).to_bytes(4, "big") + b[8:13], r"the shape \(5,\), expected \(10000,\)"),
        (lambda b: b[:6], "damaged"),
    ],
)
def test_a_damaged_file_is_named_with_what_is_wrong(root, damage, message):
    path = raw(root) / "t10k-labels-idx1-ubyte"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(UsageError, match=f"t10k-labels-idx1-ubyte is damaged: .*{message}|{message}") as error:
        read_mnist("test", root)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_images_of_another_size_are_refused(root):
    path = raw(root) / "t10k-images-idx3-ubyte"
    content = bytearray(path.read_bytes())
    content[11] = 27
    path.write_bytes(content)
    with pytest.raises(UsageError, match=r"t10k-images-idx3-ubyte is damaged: .*\(10000, 27, 28\)"):
        read_mnist("test", root)


def test_nothing_there(tmp_path):
    with pytest.raises(UsageError) as error:
        read_mnist("train", tmp_path)
    assert str(error.value) == (
        f"MNIST is not in {tmp_path}/MNIST/raw: put the four files there, name another folder with --data or "
        "FTML_BENCH_DATA, or run `ftml-bench data mnist --download`"
    )


def test_one_file_missing(root):
    (raw(root) / "train-labels-idx1-ubyte").unlink()
    with pytest.raises(UsageError, match=r"raw \(train-labels-idx1-ubyte missing\): put"):
        read_mnist("test", root)


def test_where_the_data_are(monkeypatch, tmp_path):
    monkeypatch.setenv("FTML_BENCH_DATA", "/from/variable")
    monkeypatch.setenv("XDG_CACHE_HOME", "/cache")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert data_root("/given") == Path("/given")
    assert data_root("~/given") == tmp_path / "given"
    assert data_root() == Path("/from/variable")
    monkeypatch.setenv("FTML_BENCH_DATA", "")
    assert data_root() == Path("/cache/ftml-bench")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert data_root() == tmp_path / ".cache" / "ftml-bench"


def test_download_asks_torchvision_and_reads_the_result(tmp_path, made, monkeypatch):
    asked = []

    def fetch(root, download):
        asked.append((root, download))
        folder = raw(Path(root))
        folder.mkdir(parents=True)
        for name, content in made.items():
            (folder / name).write_bytes(content)

    monkeypatch.setattr("torchvision.datasets.MNIST", fetch)
    assert download(tmp_path) == raw(tmp_path)
    assert asked == [(str(tmp_path), True)]
    download(tmp_path)  # it is there: nothing to fetch
    assert len(asked) == 1
    (raw(tmp_path) / "t10k-labels-idx1-ubyte").write_bytes(b"")
    with pytest.raises(UsageError, match="damaged"):
        download(tmp_path)


def test_a_failed_download_is_one_line(tmp_path, monkeypatch):
    def fetch(root, download):
        raise RuntimeError("Error downloading train-images-idx3-ubyte.gz")

    monkeypatch.setattr("torchvision.datasets.MNIST", fetch)
    with pytest.raises(UsageError, match=r"could not be fetched into .*raw: Error downloading train"):
        download(tmp_path)
