"""Reading CIFAR-100: the whole set packed and unpacked, strips, and how they can be missing or damaged."""

from __future__ import annotations

import csv
import errno
import hashlib
import io
import os
import pickle
import re
import shutil
import struct
import tarfile
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, WebPImagePlugin

from ftml_bench.benchmarks.data import cifar100, data_root
from ftml_bench.benchmarks.data.cifar100 import CLASSES, IMAGES, SUBSET_IMAGES, download, read_cifar100, strip_file
from ftml_bench.benchmarks.data.cifar100_strips import write_strips
from ftml_bench.cli import main
from ftml_bench.errors import UsageError

REAL = data_root() / "cifar-100-subset"
needs_strips = pytest.mark.skipif(
    not (REAL / "rows.csv").is_file(),
    reason=f"CIFAR-100's strips with their rows.csv are not in {REAL}; FTML_BENCH_DATA names the folder that has them",
)


def pickled(images, order):
    """A file in CIFAR-100's own format: (100, N, 3, 32, 32) images, the rows in `order`: (class, place in it)."""
    rows = images.reshape(len(CLASSES), -1, 3 * 32 * 32)
    content = {
        b"filenames": [b"x.png"] * len(order),
        b"fine_labels": [label for label, _ in order],
        b"coarse_labels": [0] * len(order),
        b"data": np.stack([rows[label, place] for label, place in order]),
    }
    return pickle.dumps(content, protocol=2)


def mixed(count, seed=0):
    """Classes in random order, each class's images in file order."""
    labels = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(CLASSES)), count))
    seen = dict.fromkeys(range(len(CLASSES)), 0)
    order = []
    for label in labels.tolist():
        order.append((label, seen[label]))
        seen[label] += 1
    return order


def install(files, root, patch, *, packed=False):
    """Put {split: pickle} into a data folder as torchvision does, and let their MD5s be the expected ones."""
    for split, content in files.items():
        patch.setitem(cifar100._MD5, split, hashlib.md5(content).hexdigest())
    if not packed:
        (root / "cifar-100-python").mkdir(parents=True)
        for split, content in files.items():
            (root / "cifar-100-python" / split).write_bytes(content)
        return
    with tarfile.open(root / "cifar-100-python.tar.gz", "w:gz") as archive:
        for split, content in files.items():
            member = tarfile.TarInfo(f"cifar-100-python/{split}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    md5 = hashlib.md5((root / "cifar-100-python.tar.gz").read_bytes()).hexdigest()
    patch.setattr(cifar100, "_PACKED_MD5", md5)


@pytest.fixture
def made(monkeypatch):
    """A made-up CIFAR-100 of 5 training and 4 test images a class, its subset 3 and 2: {split: images}."""
    images = {}
    for split, count, part in (("train", 5, 3), ("test", 4, 2)):
        rng = np.random.default_rng(count)
        images[split] = rng.integers(0, 256, (100, count, 3, 32, 32), dtype=np.uint8)
        monkeypatch.setitem(IMAGES, split, count)
        monkeypatch.setitem(SUBSET_IMAGES, split, part)
        subset = np.ascontiguousarray(images[split][:, :part])
        monkeypatch.setitem(cifar100._SUBSET_SHA256, split, hashlib.sha256(subset).hexdigest())
    return images


@pytest.fixture
def files(made):
    return {split: pickled(images, mixed(images.shape[1])) for split, images in made.items()}


@pytest.fixture
def root(files, tmp_path, monkeypatch):
    """A data folder with the made-up set, unpacked."""
    install(files, tmp_path / "data", monkeypatch)
    return tmp_path / "data"


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    return tmp_path_factory.mktemp("kept") / "strips"


@pytest.fixture
def strips(root, kept, tmp_path):
    """A data folder with nothing but the strips, which are the same for all tests and made once."""
    if not kept.exists():
        write_strips(kept, root)
    return shutil.copytree(kept, tmp_path / "strips")


def listing(folder):
    return sorted((str(p), p.stat().st_mtime_ns) for p in folder.rglob("*"))


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("split", ["train", "test"])
def test_the_whole_set_packed_or_not(files, made, split, packed, tmp_path, monkeypatch):
    install(files, tmp_path, monkeypatch, packed=packed)
    before = listing(tmp_path)
    images = read_cifar100(split, root=tmp_path)
    assert images.dtype == torch.uint8
    assert np.array_equal(images.numpy(), made[split])
    assert np.array_equal(read_cifar100(split, subset=True, root=tmp_path), made[split][:, : SUBSET_IMAGES[split]])
    assert listing(tmp_path) == before  # nothing is unpacked or written


@pytest.mark.parametrize("split", ["train", "test"])
def test_strips_hold_the_same_bytes_as_the_whole_set(root, strips, split):
    assert not (strips / "cifar-100-python").exists()
    assert torch.equal(read_cifar100(split, subset=True, root=strips), read_cifar100(split, subset=True, root=root))
    with Image.open(strip_file(strips, split, 7)) as strip:
        pixels = np.asarray(strip)
    assert pixels.shape == (32 * SUBSET_IMAGES[split], 32, 3)
    whole = read_cifar100(split, root=root)
    assert np.array_equal(pixels[32:64].transpose(2, 0, 1), whole[7, 1])


@needs_strips
@pytest.mark.parametrize("split", ["train", "test"])
def test_the_real_strips_are_the_first_images_of_a_whole_set_in_file_order(split, tmp_path, monkeypatch):
    images = read_cifar100(split, subset=True, root=REAL.parent)
    assert images.shape == (100, SUBSET_IMAGES[split], 3, 32, 32)
    # A whole set with the real order of these images' rows, and more images of every class behind them.
    with (REAL / "rows.csv").open(newline="") as file:
        lines = [line for line in csv.DictReader(file) if line["split"] == split]
    lines.sort(key=lambda line: int(line["source_row"]))
    order = [(int(line["fine_label"]), int(line["tile"])) for line in lines]
    more = torch.cat([images, torch.zeros_like(images[:, :2])], dim=1).numpy()
    order += [(label, images.shape[1] + i) for i in range(2) for label in range(100)]
    other = "test" if split == "train" else "train"
    install({split: pickled(more, order), other: b""}, tmp_path, monkeypatch)
    assert torch.equal(read_cifar100(split, subset=True, root=tmp_path), images)  # its hash is the real one


@needs_strips
def test_the_real_strips_have_the_names_of_the_classes():
    for split in ("train", "test"):
        assert sorted(p.name for p in (REAL / split).iterdir()) == [
            f"{i:02}_{name}.webp" for i, name in enumerate(CLASSES)
        ]


def test_a_damaged_whole_set(root, tmp_path, monkeypatch):
    (root / "cifar-100-python" / "test").write_bytes(b"import os")
    with pytest.raises(UsageError, match=r"cifar-100-python/test is damaged: its MD5 is .*; remove it and fetch"):
        read_cifar100("test", root=root)
    assert read_cifar100("train", root=root).shape[1] == 5
    packed = tmp_path / "packed"
    packed.mkdir()
    (packed / "cifar-100-python.tar.gz").write_bytes(b"not a tar")
    with pytest.raises(UsageError, match=r"python.tar.gz is damaged: its MD5"):
        read_cifar100("train", root=packed)


def test_what_is_there_and_cannot_be_read_is_not_called_missing(root, strips):
    (root / "cifar-100-python" / "test").unlink()
    with pytest.raises(UsageError, match=r"^CIFAR-100 is not in .*data \(cifar-100-python/test missing\): put"):
        read_cifar100("train", root=root)
    (root / "cifar-100-python" / "test").mkdir()
    with pytest.raises(UsageError, match=r"cifar-100-python/test cannot be read: it is a folder$"):
        read_cifar100("test", root=root)
    strip_file(strips, "test", 3).unlink()
    strip_file(strips, "test", 3).mkdir()
    with pytest.raises(UsageError, match=r"03_bear.webp cannot be read: it is a folder$"):
        read_cifar100("test", subset=True, root=strips)
    shutil.rmtree(strips / "cifar-100-subset")
    (strips / "cifar-100-subset").write_text("")
    with pytest.raises(UsageError, match=r"train/00_apple.webp cannot be read: Not a directory$"):
        read_cifar100("train", subset=True, root=strips)


@pytest.mark.parametrize("subset", [False, True])
def test_nothing_there(tmp_path, subset):
    with pytest.raises(UsageError, match=r"^CIFAR-100 is not in .*`ftml-bench data cifar100 --download`$") as error:
        read_cifar100("train", subset=subset, root=tmp_path)
    assert "\n" not in str(error.value)


def test_strips_alone_are_not_the_whole_set(strips):
    with pytest.raises(
        UsageError, match=r"^CIFAR-100 is not in .*strips \(its subset is: subset=True reads that\): put"
    ):
        read_cifar100("train", root=strips)


def overwrite(path, pixels):
    Image.fromarray(pixels).save(path, "WEBP", lossless=True)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: path.unlink(), r"03_bear.webp is missing: make the strips anew with `ftml-bench data"),
        (lambda path: path.write_bytes(b"nothing"), r"03_bear.webp is damaged: it is no WebP picture; make"),
        (lambda path: path.write_bytes(b""), r"03_bear.webp is damaged: it is no WebP picture; make"),
        (lambda path: path.write_bytes(path.read_bytes()[:200]), r"03_bear.webp is damaged: "),
        (
            lambda path: overwrite(path, np.zeros((64, 32, 3), np.uint8)),
            r"03_bear.webp is damaged: it is 32 x 64 pixels",
        ),
        (
            lambda path: overwrite(path, np.zeros((96, 32, 3), np.uint8)),
            r"subset/train does not hold the first 3 train images of each class \(SHA-256 .*make the strips anew",
        ),
    ],
)
def test_missing_and_damaged_strips(strips, damage, message):
    damage(strip_file(strips, "train", 3))
    with pytest.raises(UsageError, match=message) as error:
        read_cifar100("train", subset=True, root=strips)
    assert "\n" not in str(error.value)


def png_of(width, height):
    """A PNG of many pixels in few bytes: zeros pack well."""
    rows, packer = bytearray(1 + 3 * width), zlib.compressobj(9)
    data = b"".join(packer.compress(rows) for _ in range(height)) + packer.flush()
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", data), (b"IEND", b"")]
    packed = (struct.pack(">I", len(c)) + n + c + struct.pack(">I", zlib.crc32(n + c)) for n, c in chunks)
    return b"\x89PNG\r\n\x1a\n" + b"".join(packed)


def webp_header(width, height):
    """The beginning of a lossless WebP picture of that size, and nothing behind it."""
    bits = (width - 1) | (height - 1) << 14
    content = b"WEBPVP8L" + struct.pack("<I", 5) + b"\x2f" + struct.pack("<I", bits) + b"\0"
    return b"RIFF" + struct.pack("<I", len(content)) + content


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: png_of(32, 96), "it is no WebP picture"),
        (lambda: png_of(20000, 1000), "it is no WebP picture"),
        (lambda: webp_header(16383, 5000), r"it is 16383 x 5000 pixels, not 32 x 96"),  # below Pillow's own limits
        (lambda: webp_header(16383, 6000), r"Image size \(98298000 pixels\) exceeds limit"),  # Pillow warns
        (lambda: webp_header(16383, 16383), r"Image size \(268402689 pixels\) exceeds limit"),  # and refuses
        (lambda: webp_header(32, 96), ""),
    ],
)
def test_a_picture_of_another_size_is_not_decoded(strips, make, message, monkeypatch, recwarn):
    path = strip_file(strips, "train", 3)
    path.write_bytes(make())
    if message:  # else it is of the right size
        monkeypatch.setattr(WebPImagePlugin.WebPImageFile, "load", lambda _: pytest.fail("it was decoded"))
    with pytest.raises(UsageError, match=rf"03_bear.webp is damaged: {message}") as error:
        cifar100._read_strip(path, 3)
    assert "\n" not in str(error.value)
    assert not recwarn.list


def test_strips_are_mended_where_the_whole_set_lies(root):
    write_strips(root, root)
    strip_file(root, "test", 0).unlink()
    with pytest.raises(UsageError, match="missing"):
        read_cifar100("test", subset=True, root=root)
    write_strips(root, root)
    assert read_cifar100("test", subset=True, root=root).shape[1] == 2
    assert not [p for p in root.rglob("*") if p.name.startswith(".")]  # nothing temporary stays


def test_download_asks_torchvision_and_reads_the_result(files, tmp_path, monkeypatch):
    asked = []

    def fetch(root, download):
        asked.append((root, download))
        install(files, tmp_path, monkeypatch)

    monkeypatch.setattr("torchvision.datasets.CIFAR100", fetch)
    assert download(tmp_path) == tmp_path / "cifar-100-python"
    download(tmp_path)  # it is there: nothing to fetch
    assert asked == [(str(tmp_path), True)]
    (tmp_path / "cifar-100-python" / "train").write_bytes(b"")
    with pytest.raises(UsageError, match="damaged"):
        download(tmp_path)


def test_a_failed_download_is_one_line(tmp_path, monkeypatch):
    def fetch(root, download):
        raise OSError("no route to host")

    monkeypatch.setattr("torchvision.datasets.CIFAR100", fetch)
    with pytest.raises(UsageError, match=r"CIFAR-100 could not be fetched into .*: no route to host"):
        download(tmp_path)


class TestCommand:
    def test_strips(self, root, tmp_path, capsys):
        assert main(["data", "cifar100", "--data", str(root), "--strips", str(tmp_path / "to")]) == 0
        assert f"cifar100 strips: {tmp_path / 'to' / 'cifar-100-subset'}" in capsys.readouterr().out
        assert len(list((tmp_path / "to").rglob("*.webp"))) == 200
        assert main(["data", "cifar100", "--data", str(tmp_path / "to")]) == 0
        out = capsys.readouterr().out
        assert "cifar100 subset train: 300 images, complete" in out
        assert "cifar100: CIFAR-100 is not in" in out  # the whole set

    def strips_refused(self, root, to, capsys):
        assert main(["data", "cifar100", "--data", str(root), "--strips", str(to)]) == 2
        line = capsys.readouterr().err
        assert line.startswith(f"ftml-bench: error: the strips cannot be written into {to}: ")
        assert line.count("\n") == 1
        return line

    @pytest.mark.parametrize("to", ["file", "file/below", "loop", "nowhere", "taken", "/proc/none", "x" * 300])
    def test_strips_that_have_no_place(self, root, to, tmp_path, monkeypatch, capsys):
        monkeypatch.chdir(tmp_path)
        Path("file").touch()
        os.symlink("loop", "loop")
        os.symlink("/proc/none", "nowhere")
        Path("taken").mkdir()
        Path("taken/cifar-100-subset").touch()
        before = sorted(tmp_path.rglob("*"))
        self.strips_refused(root, to, capsys)
        assert sorted(tmp_path.rglob("*")) == before

    def test_strips_that_the_disk_has_no_room_for(self, root, tmp_path, monkeypatch, capsys):
        def full(*arguments, **options):
            raise OSError(errno.ENOSPC, "No space left on device")

        write_strips(tmp_path, root)
        before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.*")}
        monkeypatch.setattr(Image.Image, "save", full)
        assert "No space left on device" in self.strips_refused(root, tmp_path, capsys)
        assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.*")} == before

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["cifar100"], "CIFAR-100 is not in"),
            (["cifar100", "--strips", "to"], "CIFAR-100 is not in"),
            (["mnist", "--strips", "to"], "strips are made of cifar100"),
            (["cifar10"], "did you mean 'cifar100'"),
            (
                ["Sinusoids", "--sheet", "x.png", "--set", "round=3"],
                "unknown setting of Sinusoids 'round': did you mean 'rounds'",
            ),
        ],
    )
    def test_errors_are_one_line(self, tmp_path, monkeypatch, capsys, arguments, message):
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("FTML_BENCH_DATA", str(tmp_path))
        assert main(["data", *arguments]) == 2
        error = capsys.readouterr().err
        assert len(error.splitlines()) == 1
        assert re.search(message, error)
        assert os.listdir(tmp_path) == []
