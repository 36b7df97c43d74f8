"""Coloured digits: colours by pixel, labels, balance, who shares images, and arrivals class by class."""

from __future__ import annotations

import itertools

import pytest
import torch

from ftml_bench.benchmarks import ColoredDigits, ColoredMNIST, RainbowDigits, arrivals
from ftml_bench.benchmarks.colored import _cielab, palette
from ftml_bench.benchmarks.data import data_root
from ftml_bench.benchmarks.data.mnist import read_mnist
from ftml_bench.benchmarks.rainbow_digits import read_digits
from ftml_bench.benchmarks.transforms import resize
from ftml_bench.errors import UsageError

RAW = data_root() / "MNIST" / "raw"
needs_mnist = pytest.mark.skipif(
    not RAW.is_dir(), reason=f"MNIST is not in {RAW}; FTML_BENCH_DATA names the folder that has MNIST/raw"
)


@pytest.fixture(scope="module")
def digits():
    return ColoredDigits(rounds=4, images_per_round=40, held_out_per_round=70)


def points(experience):
    return experience.stacked.take(torch.arange(len(experience.stacked)))


def labels_of(arrival):
    return arrival.stacked.y.tolist()


def check_pixels(experience, grey, labels):
    """Every image is its source, white on the round's colour: at every pixel, channel by channel."""
    x, y = points(experience)
    background = torch.tensor(experience.transformation.background, dtype=torch.float64).view(1, 3, 1, 1)
    strokes = grey[experience.sources].double().unsqueeze(1) / 255
    expected = background + (255 - background) * strokes
    assert (x.double() - expected).abs().max() <= 0.5
    assert torch.equal(y, labels[experience.sources])


class TestPalette:
    def test_56_colours_dark_enough_for_white_and_far_apart(self):
        colors = torch.tensor([c.background for c in palette()])
        assert len(set(palette())) == 56
        lab = _cielab(colors)
        assert lab[:, 0].max() <= 65
        assert min((a - b).norm() for a, b in itertools.combinations(lab, 2)) > 22

    def test_lab_of_known_colours(self):
        # sRGB red, green, blue, white under D65, as tables of CIELAB give them
        lab = _cielab(torch.tensor([[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 255], [0, 0, 0]]))
        known = [[53.24, 80.09, 67.20], [87.73, -86.18, 83.18], [32.30, 79.19, -107.86], [100, 0, 0], [0, 0, 0]]
        torch.testing.assert_close(lab, torch.tensor(known, dtype=torch.float64), atol=0.02, rtol=0)

    def test_names(self):
        assert str(palette()[0]) == "#000000"


class TestColoredDigits:
    def test_pixels_and_labels(self, digits):
        grey, labels = read_digits()
        grey = resize(grey, 14)
        for experience in (*digits.train_stream, *digits.test_stream):
            check_pixels(experience, grey, labels)

    def test_every_task_has_a_colour_of_its_own_and_both_streams_share_it(self, digits):
        all_rounds = ColoredDigits(rounds=56, images_per_round=10, held_out_per_round=10)
        assert len({e.transformation for e in all_rounds.train_stream}) == 56
        for train, test in zip(digits.train_stream, digits.test_stream, strict=True):
            assert train.transformation == test.transformation

    def test_as_many_of_every_digit(self, digits):
        for train, test in zip(digits.train_stream, digits.test_stream, strict=True):
            assert points(train)[1].bincount().tolist() == [4] * 10
            assert points(test)[1].bincount().tolist() == [7] * 10

    def test_no_held_out_digit_is_trained_on_in_any_round(self):
        benchmark = ColoredDigits(rounds=6, images_per_round=1390, held_out_per_round=350)
        held_out = set(benchmark.test_stream[0].sources.tolist())
        assert len(held_out) == 350
        for experience in benchmark.train_stream:
            sources = experience.sources.tolist()
            assert len(set(sources)) == 1390
            assert not held_out & set(sources)

    def test_every_round_draws_anew(self, digits):
        drawn = [frozenset(e.sources.tolist()) for e in digits.train_stream]
        assert len(set(drawn)) == 4
        assert all(torch.equal(e.sources, digits.test_stream[0].sources) for e in digits.test_stream)

    def test_seeds(self):
        def of(**arguments):
            stream = ColoredDigits(images_per_round=20, held_out_per_round=10, **arguments).train_stream
            return [(e.transformation, e.sources.tolist()) for e in stream]

        assert of(seed=1, rounds=3) == of(seed=1, rounds=5)[:3]
        assert of(seed=1, rounds=3) != of(seed=2, rounds=3)

    def test_defaults(self):
        benchmark = ColoredDigits()
        assert len(benchmark.train_stream) == 20
        assert (benchmark.arrivals, benchmark.checkpoints) == (10, [10, 100])
        assert benchmark.measures == ("only_class",)
        x, _ = points(benchmark.test_stream[0])
        assert benchmark.model()(x[:3].float() / 255).shape == (3, 10)

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"images_per_round": 25}, "images_per_round 25: expected a multiple of 10"),
            ({"images_per_round": 1400}, "images_per_round 1400: expected 10 or more, 1390 at most"),
            ({"held_out_per_round": 360}, "held_out_per_round 360: expected 10 or more, 350 at most"),
            ({"held_out_per_round": 5}, "held_out_per_round 5: expected 10 or more"),
            ({"rounds": 57}, "rounds 57: expected 1 or more, 56 at most"),
            ({"image_size": 20}, "image_size 20: expected 14 or 28"),
        ],
    )
    def test_bad_arguments(self, arguments, message):
        with pytest.raises(UsageError, match=f"^{message}"):
            ColoredDigits(**arguments)


class TestArrivals:
    def test_class_by_class(self, digits):
        firsts = set()
        for seed in range(8):
            pieces = [labels_of(a) for a in arrivals(digits.train_stream[0], 4, seed=seed)]
            assert all(len(set(piece)) == 1 for piece in pieces)
            assert {piece[0] for piece in pieces} == set(range(10))
            firsts.add(pieces[0][0])
        assert len(firsts) > 3

    def test_every_round_has_an_order_of_its_own(self, digits):
        orders = {tuple(labels_of(a)[0] for a in arrivals(e, 4)) for e in digits.train_stream}
        assert len(orders) == 4

    def test_a_partition_whose_order_is_random_within_a_class(self, digits):
        experience = digits.train_stream[1]
        found = [row for a in arrivals(experience, [3, 5]) for row in a.stacked.rows.tolist()]
        assert sorted(found) == sorted(experience.stacked.rows.tolist())
        one_digit = []
        for seed in (0, 1):
            rows = torch.cat([a.stacked.rows for a in arrivals(experience, 4, seed=seed)])
            y = torch.cat([a.stacked.y for a in arrivals(experience, 4, seed=seed)])
            one_digit.append(rows[y == 3].tolist())
        assert sorted(one_digit[0]) == sorted(one_digit[1])
        assert one_digit[0] != one_digit[1]

    def test_the_dataset_of_an_arrival_holds_the_same_points(self, digits):
        for arrival in arrivals(digits.train_stream[2], 6):
            assert list(arrival.dataset.targets) == labels_of(arrival)

    def test_other_streams_arrive_mixed(self):
        stream = RainbowDigits(rounds=1, images_per_round=100).train_stream
        assert len(set(labels_of(next(arrivals(stream[0], 10))))) > 2


@needs_mnist
class TestColoredMNIST:
    @pytest.fixture(scope="class")
    def mnist(self):
        return ColoredMNIST(rounds=3, images_per_round=60, held_out_per_round=30)

    def test_pixels_and_labels(self, mnist):
        for split, stream in mnist.streams.items():
            grey, labels = read_mnist(split)
            for experience in stream:
                check_pixels(experience, grey, labels)
                assert points(experience)[1].bincount().tolist() == [len(experience.stacked) // 10] * 10

    def test_no_image_is_in_two_tasks(self):
        mnist = ColoredMNIST(image_size=14)
        for stream in mnist.streams.values():
            sources = torch.cat([e.sources for e in stream])
            assert len(sources) == 56 * len(stream[0].sources)
            assert len(sources.unique()) == len(sources)

    def test_arrivals_are_digits(self, mnist):
        assert mnist.arrivals == 6
        assert all(len(set(labels_of(a))) == 1 for a in arrivals(mnist.train_stream[0], mnist.arrivals))

    def test_too_many_images(self):
        with pytest.raises(UsageError, match=r"one has 892: held_out_per_round can be 150 at most$"):
            ColoredMNIST(held_out_per_round=160)
        with pytest.raises(UsageError, match=r"^56 rounds x images_per_round 1000 need 5,600 .* can be 960 at most$"):
            ColoredMNIST(images_per_round=1000)


def test_missing_mnist_is_said(tmp_path):
    with pytest.raises(UsageError, match="MNIST is not in"):
        ColoredMNIST(root=tmp_path)
