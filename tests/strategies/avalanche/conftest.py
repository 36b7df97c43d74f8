"""Streams of a few points, and the files of MNIST and CIFAR-100, made up, in the place of the real ones."""

import pickle
import struct

import numpy as np
import pytest
from avalanche.benchmarks import benchmark_from_datasets, nc_benchmark
from avalanche.benchmarks.utils import as_classification_dataset
from torchvision.datasets import CIFAR100

from ftml_bench.benchmarks import RainbowDigits
from tests.strategies.avalanche.small import points


@pytest.fixture(scope="module")
def few_digits():
    """Three rounds of 24 digits: three arrivals of 8 each."""
    return RainbowDigits(rounds=3, images_per_round=24, held_out_per_round=20)


@pytest.fixture(scope="module")
def stream():
    """Three experiences of two classes and ten points each, all with the task label 0."""
    return nc_benchmark(
        points(30), points(30), n_experiences=3, task_labels=False, fixed_class_order=[0, 1, 2, 3, 4, 5], shuffle=False
    )


@pytest.fixture(scope="module")
def contradicting():
    """Three experiences with the same inputs, whose labels contradict each other."""
    data = [as_classification_dataset(points(12, seed=0, shift=k)) for k in range(3)]
    return benchmark_from_datasets(train=data, test=data)


@pytest.fixture(scope="module")
def tasks():
    """Three tasks of two classes and ten points each, with their labels."""
    return nc_benchmark(
        points(30), points(30), n_experiences=3, task_labels=True, fixed_class_order=[0, 1, 2, 3, 4, 5], shuffle=False
    )


def mnist_files(folder, train=80, test=40):
    """The files of MNIST with made-up digits: each class is bright in its own row of pixels."""
    raw = folder / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for part, n in (("train", train), ("t10k", test)):
        labels = np.arange(n, dtype=np.uint8) % 10
        images = np.random.default_rng(n).integers(0, 60, (n, 28, 28), dtype=np.uint8)
        images[np.arange(n), 2 * labels] = 255
        (raw / f"{part}-images-idx3-ubyte").write_bytes(struct.pack(">IIII", 2051, n, 28, 28) + images.tobytes())
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(struct.pack(">II", 2049, n) + labels.tobytes())
    return folder


def cifar100_files(folder):
    """The files of CIFAR-100 with made-up images: two a class for training, one for testing."""
    base = folder / "cifar-100-python"
    base.mkdir()
    rng = np.random.default_rng(0)
    for part, n in (("train", 200), ("test", 100)):
        entry = {"data": rng.integers(0, 255, (n, 3072), dtype=np.uint8), "fine_labels": [i % 100 for i in range(n)]}
        (base / part).write_bytes(pickle.dumps(entry))
    (base / "meta").write_bytes(pickle.dumps({"fine_label_names": [f"class {i}" for i in range(100)]}))
    return folder


@pytest.fixture(scope="module")
def mnist(tmp_path_factory):
    return mnist_files(tmp_path_factory.mktemp("mnist"))


@pytest.fixture(scope="module")
def cifar100(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        # The files are not the real ones, so their checksums are not looked at.
        patch.setattr(CIFAR100, "_check_integrity", lambda self: True)
        patch.setattr("torchvision.datasets.cifar.check_integrity", lambda *args: True)
        yield cifar100_files(tmp_path_factory.mktemp("cifar100"))
