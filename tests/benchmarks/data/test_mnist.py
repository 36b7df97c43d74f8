"""Reading MNIST's files: where they are looked for, and every way in which they can be missing or damaged."""

from __future__ import annotations

import dataclasses
import errno
import gzip
import hashlib
import os
from pathlib import Path

import pytest
import torch

from ftml_bench.benchmarks.data import data_root, mnist
from ftml_bench.benchmarks.data.mnist import download, read_mnist
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


def take_for_right(monkeypatch, made, packed=None):
    """Let the MD5s of these files be the expected ones."""
    for split, files in mnist._FILES.items():
        changed = [dataclasses.replace(f, md5=hashlib.md5(made[f.name]).hexdigest()) for f in files]
        if packed and split in packed:
            md5s = [hashlib.md5(packed[split][f.name]).hexdigest() for f in files]
            changed = [dataclasses.replace(f, packed_md5=md5) for f, md5 in zip(changed, md5s, strict=True)]
        monkeypatch.setitem(mnist._FILES, split, tuple(changed))


@pytest.fixture
def root(tmp_path, made, monkeypatch):
    """A data folder with a made-up MNIST, unpacked."""
    take_for_right(monkeypatch, made)
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
    take_for_right(monkeypatch, made, {"test": packed})
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


def labels_77(content):
    return content[:8] + bytes([77]) * (len(content) - 8)


def moved_by_one(content):
    return content[:8] + content[9:] + content[8:9]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda b: b[:-1], "it has 10,007 bytes, expected 10,008"),
        (lambda b: b + b"x", "it has 10,009 bytes, expected 10,008"),
        (lambda b: b[:3], "it has 3 bytes, expected 10,008"),
        (lambda b: b"", "it has 0 bytes, expected 10,008"),
        (lambda b: b"\0\0\x08\x03" + b[4:], "its MD5 is"),
        (lambda b: b[:4] + (5).to_bytes(4, "big") + b[8:], "its MD5 is"),
        (lambda b: b[:-1] + bytes([b[-1] ^ 1]), "its MD5 is"),  # one bit of one label
        (lambda b: b[:8] + bytes(len(b) - 8), "its MD5 is"),
        (labels_77, "its MD5 is"),
        (moved_by_one, "its MD5 is"),
    ],
)
def test_a_damaged_file_is_named_with_what_is_wrong(root, damage, message):
    path = raw(root) / "t10k-labels-idx1-ubyte"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(UsageError) as error:
        read_mnist("test", root)
    assert str(error.value).startswith(f"{path} is damaged: {message}")
    assert "\n" not in str(error.value)


def test_a_changed_pixel_is_seen(root):
    path = raw(root) / "t10k-images-idx3-ubyte"
    content = bytearray(path.read_bytes())
    content[5_000_000] ^= 1
    path.write_bytes(content)
    with pytest.raises(UsageError, match=r"t10k-images-idx3-ubyte is damaged: its MD5 is \w+, expected"):
        read_mnist("test", root)


needs_mnist = pytest.mark.skipif(
    any(not (raw(data_root()) / f"{name}.gz").is_file() for names in NAMES.values() for name in names),
    reason=f"MNIST's .gz files are not in {raw(data_root())}; FTML_BENCH_DATA names the folder that has them",
)


@needs_mnist
def test_the_real_files_are_taken_unpacked_and_no_others(tmp_path):
    raw(tmp_path).mkdir(parents=True)
    for name in (name for names in NAMES.values() for name in names):
        (raw(tmp_path) / name).write_bytes(gzip.decompress((raw(data_root()) / f"{name}.gz").read_bytes()))
    for split in NAMES:
        for unpacked, packed in zip(read_mnist(split, tmp_path), read_mnist(split, data_root()), strict=True):
            assert torch.equal(unpacked, packed)
    path = raw(tmp_path) / "train-labels-idx1-ubyte"
    path.write_bytes(moved_by_one(path.read_bytes()))
    with pytest.raises(UsageError, match=r"its MD5 is .*, expected a25bea736e30d166cdddb491f175f624"):
        read_mnist("train", tmp_path)


@pytest.mark.parametrize("name", ["t10k-labels-idx1-ubyte", "t10k-labels-idx1-ubyte.gz"])
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: path.mkdir(), "cannot be read: it is a folder"),
        (lambda path: path.symlink_to(path.with_name("nothing")), "cannot be read: No such file or directory"),
        (lambda path: path.symlink_to(path), "cannot be read: Too many levels of symbolic links"),
        (lambda path: os.mkfifo(path), "cannot be read: it is no file"),
    ],
)
def test_what_is_no_file_is_said_to_be_there(root, name, make, message):
    path = raw(root) / "t10k-labels-idx1-ubyte"
    path.unlink()
    path = path.with_name(name)
    make(path)
    with pytest.raises(UsageError) as error:
        read_mnist("test", root)
    assert str(error.value) == f"{path} {message}"


def test_a_file_that_may_not_be_read(root, monkeypatch):
    path, opened = raw(root) / "t10k-labels-idx1-ubyte", Path.open

    def refuse(self, *arguments, **keywords):
        if self == path:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(self))
        return opened(self, *arguments, **keywords)

    monkeypatch.setattr(Path, "open", refuse)  # whoever runs the tests may be allowed everything
    with pytest.raises(UsageError) as error:
        read_mnist("test", root)
    assert str(error.value) == f"{path} cannot be read: Permission denied"


def test_a_folder_that_may_not_be_searched_is_not_called_empty(tmp_path, monkeypatch):
    def refuse(self, **keywords):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(self))

    monkeypatch.setattr(Path, "lstat", refuse)
    monkeypatch.setattr(Path, "stat", refuse)
    monkeypatch.setattr(Path, "is_file", refuse)
    with pytest.raises(UsageError, match=r"t10k-images-idx3-ubyte cannot be read: Permission denied$"):
        read_mnist("test", tmp_path)


def test_a_file_in_the_place_of_the_folder(tmp_path):
    (tmp_path / "MNIST").write_text("")
    with pytest.raises(UsageError, match=r"raw/t10k-images-idx3-ubyte cannot be read: Not a directory$"):
        read_mnist("test", tmp_path)


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
    take_for_right(monkeypatch, made)
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


@pytest.mark.parametrize("kind", [RuntimeError, AssertionError, OSError, EOFError])
def test_a_failed_download_is_one_line(tmp_path, monkeypatch, kind):
    def fetch(root, download):
        raise kind("Error downloading train-images-idx3-ubyte.gz")

    monkeypatch.setattr("torchvision.datasets.MNIST", fetch)
    with pytest.raises(UsageError, match=r"could not be fetched into .*raw: Error downloading train"):
        download(tmp_path)
