"""RainbowMNIST and RainbowDigits: who gets which images, under which transformation, with which label."""

from __future__ import annotations

import hashlib
import re

import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn

from ftml_bench.benchmarks import RainbowDigits, RainbowMNIST
from ftml_bench.benchmarks.arrivals import cumulative_sizes
from ftml_bench.benchmarks.data import data_root
from ftml_bench.benchmarks.data.mnist import read_mnist
from ftml_bench.benchmarks.rainbow_digits import read_digits
from ftml_bench.benchmarks.transforms import TRANSFORMATIONS, resize
from ftml_bench.errors import UsageError

torch.set_num_threads(1)

RAW = data_root() / "MNIST" / "raw"
needs_mnist = pytest.mark.skipif(
    not (RAW / "train-images-idx3-ubyte.gz").is_file() and not (RAW / "train-images-idx3-ubyte").is_file(),
    reason=f"MNIST is not in {RAW}; FTML_BENCH_DATA names the folder that has MNIST/raw",
)


def made_up_mnist(split, root=None):
    """In the place of `read_mnist`: as many images, each of them different."""
    count = {"train": 60_000, "test": 10_000}[split]
    pixels = torch.randint(0, 256, (count, 28, 28), generator=torch.Generator().manual_seed(count), dtype=torch.uint8)
    return pixels, torch.arange(count) % 10


@pytest.fixture(scope="class", params=["made up", pytest.param("real", marks=needs_mnist)])
def read(request):
    """What reads MNIST; RainbowMNIST uses it too."""
    if request.param == "real":
        yield read_mnist
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ftml_bench.benchmarks.rainbow_mnist.read_mnist", made_up_mnist)
        yield made_up_mnist


@pytest.fixture(scope="class")
def mnist(read):
    return RainbowMNIST()


@pytest.fixture(scope="module")
def digits():
    return RainbowDigits()


def sources(stream):
    return torch.cat([experience.sources for experience in stream])


def fingerprint(benchmark):
    """Everything a learner sees, as one hash."""
    digest = hashlib.sha256()
    for stream in (benchmark.train_stream, benchmark.test_stream):
        for experience in stream:
            for part in experience.stacked.take(torch.arange(len(experience.stacked))):
                digest.update(part.numpy().tobytes())
    return digest.hexdigest()


def check_images(experience, grey, labels):
    """All images are the rendering of their source digits and carry their labels."""
    x, y = experience.stacked.take(torch.arange(len(experience.stacked)))
    assert torch.equal(x, experience.transformation(grey[experience.sources]))
    assert torch.equal(y, labels[experience.sources])
    assert experience.stacked.targets.tolist() == y.tolist()
    assert list(experience.dataset.targets) == y.tolist()
    image, label, task = experience.dataset[7]
    assert torch.equal(image, x[7].float() / 255)
    assert (label, task) == (int(y[7]), experience.current_experience)


def check_stored_once(benchmark, images):
    for stream, expected in zip((benchmark.train_stream, benchmark.test_stream), images, strict=True):
        bases = {id(experience.stacked.x): experience.stacked.x for experience in stream}
        assert len(bases) == 1
        (base,) = bases.values()
        assert base.dtype == torch.uint8
        assert base.untyped_storage().nbytes() == expected * 3 * benchmark.image_size**2


def check_tasks(benchmark):
    tasks = [experience.transformation for experience in benchmark.train_stream]
    assert tasks == [experience.transformation for experience in benchmark.test_stream]
    assert len(set(tasks)) == len(tasks)
    assert tasks != TRANSFORMATIONS[: len(tasks)]
    return tasks


class TestRainbowMNIST:
    def test_shape_and_defaults(self, mnist):
        assert len(mnist.train_stream) == len(mnist.test_stream) == 56
        assert {len(e.dataset) for e in mnist.train_stream} == {900}
        assert {len(e.dataset) for e in mnist.test_stream} == {178}
        assert mnist.threshold == ("accuracy", 0.9)
        assert mnist.checkpoints == [100, 900]
        assert set(mnist.checkpoints) <= set(cumulative_sizes(900, mnist.arrivals))
        assert isinstance(mnist.criterion, nn.CrossEntropyLoss)
        assert mnist.criterion.label_smoothing == 0.1
        assert (mnist.arrivals, mnist.inner_lr, mnist.update_steps) == (20, 0.1, 5)

    def test_all_56_tasks_come_in_random_order(self, mnist):
        assert set(check_tasks(mnist)) == set(TRANSFORMATIONS)

    def test_no_image_is_in_two_tasks(self, mnist):
        assert len(sources(mnist.train_stream).unique()) == 56 * 900
        assert len(sources(mnist.test_stream).unique()) == 56 * 178

    @pytest.mark.parametrize("index", [0, 31, 55])
    def test_images_and_labels(self, mnist, read, index):
        check_images(mnist.train_stream[index], *read("train"))
        check_images(mnist.test_stream[index], *read("test"))

    def test_images_are_stored_once_as_bytes(self, mnist):
        check_stored_once(mnist, (56 * 900, 56 * 178))

    def test_one_seed_one_stream(self, read):
        small = {"rounds": 2, "images_per_round": 20, "held_out_per_round": 8}
        assert fingerprint(RainbowMNIST(seed=3, **small)) == fingerprint(RainbowMNIST(seed=3, **small))
        a, b = RainbowMNIST(seed=3, **small), RainbowMNIST(seed=4, **small)
        assert a.train_stream[0].sources.tolist() != b.train_stream[0].sources.tolist()
        assert check_tasks(a) != check_tasks(b)

    def test_half_the_pixels(self, read):
        small = RainbowMNIST(rounds=1, images_per_round=30, held_out_per_round=8, image_size=14)
        grey, labels = read("train")
        check_images(small.train_stream[0], resize(grey, 14), labels)
        check_stored_once(small, (30, 8))
        assert small.checkpoints == [30]

    @pytest.mark.parametrize("size", [14, 28])
    def test_its_network_takes_its_images(self, read, size):
        benchmark = RainbowMNIST(rounds=1, images_per_round=4, held_out_per_round=4, image_size=size)
        x = torch.stack([benchmark.test_stream[0].dataset[i][0] for i in range(4)])
        assert benchmark.model()(x).shape == (4, 10)


class TestRainbowDigits:
    def test_shape_and_defaults(self, digits):
        assert len(digits.train_stream) == len(digits.test_stream) == 20
        assert {len(e.dataset) for e in digits.train_stream} == {100}
        assert {len(e.dataset) for e in digits.test_stream} == {357}
        assert digits.threshold == ("accuracy", 0.8)
        assert digits.checkpoints == [20, 40, 100]
        assert set(digits.checkpoints) <= set(cumulative_sizes(100, digits.arrivals))
        assert isinstance(digits.criterion, nn.CrossEntropyLoss)
        assert digits.criterion.label_smoothing == 0.1
        assert (digits.arrivals, digits.inner_lr, digits.update_steps) == (20, 0.1, 20)

    def test_the_pools_are_disjoint(self, digits):
        train, held_out = sources(digits.train_stream).unique(), sources(digits.test_stream).unique()
        assert len(held_out) == 357
        assert not set(train.tolist()) & set(held_out.tolist())
        assert len(train) > 1000  # 20 draws of 100 from 1,440

    def test_a_round_draws_without_replacement_and_unlike_the_others(self, digits):
        draws = [e.sources.tolist() for e in digits.train_stream]
        assert all(len(set(draw)) == 100 for draw in draws)
        assert len({tuple(sorted(draw)) for draw in draws}) == 20

    def test_the_whole_pool_can_be_drawn(self):
        (experience,) = RainbowDigits(rounds=1, images_per_round=1440).train_stream
        assert len(experience.sources.unique()) == 1440

    @pytest.mark.parametrize("index", [0, 19])
    def test_images_and_labels(self, digits, index):
        grey, labels = read_digits()
        check_images(digits.train_stream[index], resize(grey, 14), labels)
        check_images(digits.test_stream[index], resize(grey, 14), labels)

    def test_the_digits_are_those_of_scikit_learn(self):
        grey, labels = read_digits()
        original = load_digits()
        assert grey.shape == (1797, 8, 8)
        assert torch.equal((grey.double() * 16 / 255).round(), torch.from_numpy(original.images))
        assert (grey.min(), grey.max()) == (0, 255)
        assert labels.tolist() == original.target.tolist()

    def test_tasks_and_storage(self, digits):
        check_tasks(digits)
        check_stored_once(digits, (20 * 100, 20 * 357))
        assert set(check_tasks(RainbowDigits(rounds=56, images_per_round=2))) == set(TRANSFORMATIONS)

    def test_one_seed_one_stream(self):
        small = {"rounds": 3, "images_per_round": 10, "held_out_per_round": 10}
        torch.manual_seed(1)
        first = fingerprint(RainbowDigits(seed=3, **small))
        torch.manual_seed(2)
        assert fingerprint(RainbowDigits(seed=3, **small)) == first
        a, b = RainbowDigits(seed=3, **small), RainbowDigits(seed=4, **small)
        assert check_tasks(a) != check_tasks(b)
        assert a.train_stream[0].sources.tolist() != b.train_stream[0].sources.tolist()
        assert set(a.test_stream[0].sources.tolist()) != set(b.test_stream[0].sources.tolist())

    def test_building_leaves_the_global_random_state(self):
        before = torch.get_rng_state()
        RainbowDigits(rounds=1)
        assert torch.equal(before, torch.get_rng_state())

    def test_other_sizes_change_nothing_else(self, digits):
        short = RainbowDigits(rounds=3, images_per_round=40, held_out_per_round=50)
        for a, b in zip(short.train_stream, digits.train_stream, strict=False):
            assert a.transformation == b.transformation
            assert a.sources.tolist() == b.sources[:40].tolist()
        assert short.test_stream[0].sources.tolist() == digits.test_stream[0].sources[:50].tolist()
        assert short.checkpoints == [20, 40]

    def test_another_order_is_of_the_tasks_alone(self, digits):
        other = RainbowDigits(order=7)
        assert torch.equal(sources(other.train_stream), sources(digits.train_stream))
        assert [e.transformation for e in other.train_stream] == [
            e.transformation for e in RainbowDigits(seed=7).train_stream
        ]
        assert fingerprint(RainbowDigits(order=0)) == fingerprint(digits)

    def test_labels_are_smoothed_as_much_as_is_said(self, digits):
        assert digits.criterion.label_smoothing == 0.1
        assert RainbowDigits(label_smoothing=0).criterion.label_smoothing == 0

    def test_its_network_takes_its_images(self, digits):
        x = torch.stack([digits.test_stream[0].dataset[i][0] for i in range(4)])
        torch.manual_seed(0)
        model = digits.model()
        assert model(x).shape == (4, 10)
        torch.manual_seed(0)
        again = digits.model()
        assert all(torch.equal(p, q) for p, q in zip(model.parameters(), again.parameters(), strict=True))


@needs_mnist
def test_real_digits():
    images, labels = read_mnist("train")
    assert images.float().mean() / 255 == pytest.approx(0.1307, abs=1e-4)
    assert labels.bincount().tolist() == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    assert labels[:5].tolist() == [5, 0, 4, 1, 9]
    assert read_mnist("test")[1].bincount().tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]


@pytest.mark.parametrize(
    ("benchmark", "arguments", "message"),
    [
        (RainbowMNIST, {"rounds": 0}, "rounds 0: expected 1 or more, 56 at most"),
        (RainbowMNIST, {"rounds": 57}, "rounds 57: expected 1 or more, 56 at most"),
        (RainbowMNIST, {"rounds": "3"}, "rounds '3': expected a whole number"),
        (RainbowMNIST, {"seed": 1.5}, "seed 1.5: expected a whole number"),
        (RainbowMNIST, {"images_per_round": -1}, "images_per_round -1: expected 1 or more"),
        (RainbowMNIST, {"images_per_round": True}, "images_per_round True: expected a whole number"),
        (RainbowMNIST, {"held_out_per_round": 0}, "held_out_per_round 0: expected 1 or more"),
        (RainbowMNIST, {"images_per_round": 1072}, "56 rounds x images_per_round 1072 = 60,032 images, but MNIST's "
         "training set has 60,000: images_per_round can be 1071 at most"),
        (RainbowMNIST, {"held_out_per_round": 179}, "56 rounds x held_out_per_round 179 = 10,024 images, but MNIST's "
         "test set has 10,000: held_out_per_round can be 178 at most"),
        (RainbowMNIST, {"image_size": 20}, "image_size 20: expected 14 or 28"),
        (RainbowDigits, {"image_size": 20}, "image_size 20: expected 14 or 28"),
        (RainbowDigits, {"rounds": 57}, "rounds 57: expected 1 or more, 56 at most"),
        (RainbowDigits, {"images_per_round": 1441}, "images_per_round 1441: expected 1 or more, 1440 at most"),
        (RainbowDigits, {"held_out_per_round": 358}, "held_out_per_round 358: expected 1 or more, 357 at most"),
        (RainbowDigits, {"seed": None}, "seed None: expected a whole number"),
        (RainbowDigits, {"order": "x"}, "order 'x': expected a whole number"),
        (RainbowMNIST, {"order": 0.5}, "order 0.5: expected a whole number"),
        (RainbowDigits, {"label_smoothing": 1}, "label_smoothing 1: expected a number from 0 to below 1"),
        (RainbowMNIST, {"label_smoothing": "x"}, "label_smoothing 'x': expected a number from 0 to below 1"),
    ],
)  # fmt: skip
def test_bad_arguments_are_refused_before_any_data_are_read(benchmark, arguments, message, tmp_path):
    root = {"root": tmp_path} if benchmark is RainbowMNIST else {}
    with pytest.raises(UsageError, match=f"^{re.escape(message)}$"):
        benchmark(**arguments, **root)


def test_mnist_that_is_not_there_is_said_so(tmp_path):
    with pytest.raises(UsageError, match="MNIST is not in"):
        RainbowMNIST(root=tmp_path)
