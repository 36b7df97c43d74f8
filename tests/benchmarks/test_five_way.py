"""FiveWayCIFAR100: which classes a round has, whose images they are, and in which order they arrive."""

from __future__ import annotations

import hashlib
import inspect

import pytest
import torch
from torch import nn

from ftml_bench.benchmarks import FiveWayCIFAR100, arrivals
from ftml_bench.benchmarks.arrivals import balanced_order, cumulative_sizes
from ftml_bench.benchmarks.data import data_root
from ftml_bench.benchmarks.data.cifar100 import CLASSES, IMAGES, SUBSET_IMAGES, read_cifar100
from ftml_bench.buffer import TaskBuffer
from ftml_bench.errors import UsageError
from ftml_bench.seeding import generator

STRIPS = data_root() / "cifar-100-subset"
needs_strips = pytest.mark.skipif(
    not (STRIPS / "train").is_dir(),
    reason=f"CIFAR-100's strips are not in {STRIPS}; FTML_BENCH_DATA names the folder that has them",
)


def made_up(split, *, subset=False, root=None):
    """In the place of `read_cifar100`: the first pixels say the class, the place in it and the split."""
    count = (SUBSET_IMAGES if subset else IMAGES)[split]
    images = torch.zeros(100, count, 3, 32, 32, dtype=torch.uint8)
    images[:, :, 0, 0, 0] = torch.arange(100)[:, None]
    images[:, :, 0, 0, 1] = torch.arange(count) % 256
    images[:, :, 0, 0, 2] = torch.arange(count) // 256
    images[:, :, 0, 0, 3] = 1 if split == "train" else 2
    return images


@pytest.fixture(scope="module", params=["made up", pytest.param("real", marks=needs_strips)])
def read(request):
    """What reads CIFAR-100; the stream uses it too."""
    if request.param == "real":
        yield read_cifar100
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ftml_bench.benchmarks.five_way_cifar100.read_cifar100", made_up)
        yield made_up


@pytest.fixture(scope="module")
def stream(read):
    return FiveWayCIFAR100(subset=True)


@pytest.fixture
def made(monkeypatch):
    monkeypatch.setattr("ftml_bench.benchmarks.five_way_cifar100.read_cifar100", made_up)


def tasks(benchmark):
    return [(e.new_class, tuple(e.original_classes)) for e in benchmark.train_stream]


def fingerprint(benchmark):
    """Everything a learner sees, as one hash."""
    digest = hashlib.sha256()
    for stream in (benchmark.train_stream, benchmark.test_stream):
        for experience in stream:
            for part in experience.stacked.take(torch.arange(len(experience.stacked))):
                digest.update(part.numpy().tobytes())
    return digest.hexdigest()


def test_defaults_are_the_papers(made):
    benchmark = FiveWayCIFAR100(rounds=3)
    assert {len(e.dataset) for e in benchmark.train_stream} == {2000}
    assert {len(e.dataset) for e in benchmark.test_stream} == {500}
    assert benchmark.threshold is None
    assert benchmark.checkpoints == [50, 250, 2000]
    assert set(benchmark.checkpoints) <= set(cumulative_sizes(2000, benchmark.arrivals))
    assert isinstance(benchmark.criterion, nn.CrossEntropyLoss)
    assert benchmark.criterion.label_smoothing == 0.1
    assert (benchmark.inner_lr, benchmark.update_steps) == (0.1, 5)
    assert benchmark.model()(torch.rand(2, 3, 32, 32)).shape == (2, 5)
    assert [p.kind for p in inspect.signature(FiveWayCIFAR100).parameters.values()] == [
        inspect.Parameter.KEYWORD_ONLY
    ] * 8


def test_the_small_sizes(stream):
    assert len(stream.train_stream) == len(stream.test_stream) == 96
    assert {len(e.dataset) for e in stream.train_stream} == {600}
    assert {len(e.dataset) for e in stream.test_stream} == {200}
    assert stream.checkpoints == [50, 250, 600]


def test_each_round_brings_one_class_that_no_earlier_round_had_and_four_earlier_ones(stream):
    new_classes = [new for new, _ in tasks(stream)]
    warm_up = set(range(100)) - set(new_classes)
    assert len(warm_up) == 4
    earlier = set(warm_up)
    for new, classes in tasks(stream):
        assert new not in earlier
        assert len(set(classes)) == 5
        assert set(classes) - {new} <= earlier
        earlier.add(new)
    assert earlier == set(range(100))
    assert new_classes != sorted(new_classes)
    # All earlier classes are drawn, not the newest or the first alone.
    companions = [set(classes) - {new} for new, classes in tasks(stream)[40:]]
    assert len(set.union(*companions)) > 70


def test_labels_are_0_to_4_and_mean_other_classes_from_task_to_task(stream):
    for experience in [*stream.train_stream, *stream.test_stream]:
        assert experience.stacked.y.unique().tolist() == [0, 1, 2, 3, 4]
        assert experience.classes_in_this_experience == [0, 1, 2, 3, 4]
    places = {classes.index(new) for new, classes in tasks(stream)}
    assert places == {0, 1, 2, 3, 4}
    labels_of = {}
    for _, classes in tasks(stream):
        for label, original in enumerate(classes):
            labels_of.setdefault(original, set()).add(label)
    assert sum(len(labels) > 1 for labels in labels_of.values()) > 50
    assert len({classes for _, classes in tasks(stream)}) == 96


@pytest.mark.parametrize("index", [0, 31, 95])
def test_every_image_is_of_the_class_that_its_label_means(stream, read, index):
    for split, experiences in (("train", stream.train_stream), ("test", stream.test_stream)):
        experience = experiences[index]
        assert experience.original_classes == stream.train_stream[index].original_classes
        images = read(split, subset=True)
        x, y = experience.stacked.take(torch.arange(len(experience.stacked)))
        for label, original in enumerate(experience.original_classes):
            assert torch.equal(x[y == label], images[original])  # all of them, in file order
        assert list(experience.dataset.targets) == y.tolist()
        image, label, task = experience.dataset[13]
        assert torch.equal(image, x[13].float() / 255)
        assert (label, task) == (int(y[13]), index)


def test_a_class_brings_the_same_images_to_every_task_and_they_are_stored_once(stream, read):
    for experiences, split in ((stream.train_stream, "train"), (stream.test_stream, "test")):
        bases = {id(e.stacked.x): e.stacked.x for e in experiences}
        assert len(bases) == 1
        (base,) = bases.values()
        assert base.dtype == torch.uint8
        assert base.untyped_storage().nbytes() == 100 * SUBSET_IMAGES[split] * 3 * 32 * 32
        rows = {}
        for e in experiences:
            for label, original in enumerate(e.original_classes):
                rows.setdefault(original, set()).add(tuple(e.stacked.rows[e.stacked.y == label].tolist()))
        assert all(len(sets) == 1 for sets in rows.values())  # one class, one set of rows
        assert len({row for (of_class,) in rows.values() for row in of_class}) == 100 * SUBSET_IMAGES[split]


def test_what_a_learner_remembers_copies_no_image(stream):
    buffer = TaskBuffer()
    for experience in stream.train_stream[:3]:
        for arrival in arrivals(experience, 50):
            buffer.add(arrival)
    base = stream.train_stream[0].stacked.x
    kept = base.clone()
    base.fill_(255)  # no image was copied, or the buffer would not see this
    try:
        assert bool((buffer.groups([0, 1, 2], 20, torch.Generator())[0][0] == 1).all())
    finally:
        base.copy_(kept)


def test_of_few_rounds_only_their_classes_are_kept(made):
    benchmark = FiveWayCIFAR100(rounds=2, images_per_class=7, held_out_per_class=3)
    assert benchmark.train_stream[0].stacked.x.shape == (6 * 7, 3, 32, 32)
    assert benchmark.train_stream[0].stacked.x.untyped_storage().nbytes() == 6 * 7 * 3 * 32 * 32
    assert benchmark.checkpoints == [35]
    x, y = benchmark.train_stream[1].stacked.take(torch.arange(35))
    for label, original in enumerate(benchmark.train_stream[1].original_classes):
        assert torch.equal(x[y == label], made_up("train")[original, :7])


def test_held_out_images_are_test_images(made):
    benchmark = FiveWayCIFAR100(rounds=2, images_per_class=7, held_out_per_class=3)
    for stream, mark in ((benchmark.train_stream, 1), (benchmark.test_stream, 2)):
        assert all((e.stacked.x[:, 0, 0, 3] == mark).all() for e in stream)


@pytest.mark.parametrize("sizes", [50, 7, [1, 3, 250]])
def test_arrivals_are_balanced_over_classes_after_any_number(stream, sizes):
    seen = []
    for arrival in arrivals(stream.train_stream[2], sizes, seed=4):
        seen += arrival.stacked.y.tolist()
        assert list(arrival.dataset.targets) == arrival.stacked.y.tolist()
        counts = torch.tensor(seen).bincount(minlength=5)
        assert int(counts.max() - counts.min()) <= 1
    assert len(seen) == 600


def test_the_order_of_arrivals_is_random_and_depends_on_the_seed_and_the_round(stream):
    def first(round_index, seed):
        arrival = next(arrivals(stream.train_stream[round_index], 50, seed=seed))
        return arrival.stacked.rows.tolist(), arrival.stacked.y.tolist()

    assert first(0, 1) == first(0, 1)
    assert first(0, 1) != first(0, 2)
    assert first(0, 1)[1] != first(1, 1)[1]
    rows = [set(first(0, seed)[0]) for seed in range(3)]
    assert len(set.union(*rows)) > 100  # not always the first images of a class
    assert first(0, 1)[1][:5] != first(0, 1)[1][5:10]  # nor the classes always in the same order


def test_classes_of_unequal_size_are_balanced_while_they_last():
    labels = torch.tensor([3] * 6 + [8] * 2)
    order = balanced_order(labels, generator(0))
    assert sorted(order.tolist()) == list(range(8))
    assert sorted(labels[order[:4]].tolist()) == [3, 3, 8, 8]
    assert labels[order[4:]].tolist() == [3] * 4


def test_companions_from_all_classes_may_be_new_later(made):
    benchmark = FiveWayCIFAR100(companions="all", images_per_class=1, held_out_per_class=1)
    early, later = tasks(benchmark)[:20], {new for new, _ in tasks(benchmark)[20:]}
    companions = [original for new, classes in early for original in classes if original != new]
    assert len(companions) == 4 * 20
    assert sum(original in later for original in companions) > 40  # three quarters of all classes
    assert len({new for new, _ in tasks(benchmark)}) == 96
    for new, classes in tasks(benchmark):
        assert new in classes
        assert len(set(classes)) == 5


def test_warm_up_classes_are_companions_from_the_first_round_on(made):
    benchmark = FiveWayCIFAR100(warmup_classes=20, images_per_class=1, held_out_per_class=1)
    assert len(benchmark.train_stream) == 80
    warm_up = set(range(100)) - {new for new, _ in tasks(benchmark)}
    assert len(warm_up) == 20
    first_companions = [original for new, classes in tasks(benchmark)[:5] for original in classes if original != new]
    assert len(set(first_companions) & warm_up) > 8


def test_one_seed_one_stream(made):
    small = {"rounds": 3, "images_per_class": 4, "held_out_per_class": 2}
    assert fingerprint(FiveWayCIFAR100(seed=3, **small)) == fingerprint(FiveWayCIFAR100(seed=3, **small))
    a, b = FiveWayCIFAR100(seed=3, **small), FiveWayCIFAR100(seed=4, **small)
    assert [new for new, _ in tasks(a)] != [new for new, _ in tasks(b)]
    more = FiveWayCIFAR100(seed=3, rounds=5, images_per_class=9)
    assert tasks(more)[:3] == tasks(a)


def test_the_task_has_a_name_for_people(stream):
    experience = stream.train_stream[5]
    assert f"{CLASSES[experience.new_class]} is new" in experience.task_name
    for label, original in enumerate(experience.original_classes):
        assert f"{label} {CLASSES[original]}" in experience.task_name


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rounds": 97}, "97 rounds, each with a new class, after 4 warmup_classes: .* rounds can be 96 at most"),
        ({"rounds": 81, "warmup_classes": 20}, "rounds can be 80 at most"),
        ({"rounds": 0}, "rounds 0: expected 1 or more"),
        ({"rounds": 2.5}, r"rounds 2\.5: expected a whole number"),
        ({"warmup_classes": 3}, "warmup_classes 3: expected 4 or more"),
        ({"warmup_classes": 100}, "warmup_classes 100: expected 4 or more, 99 at most"),
        ({"images_per_class": 501}, "images_per_class 501: a class has 500 such images in CIFAR-100"),
        ({"images_per_class": 0}, "images_per_class 0: expected 1 or more"),
        ({"images_per_class": 400, "subset": True}, "images_per_class 400: a class has 120 such images in the subset"),
        ({"held_out_per_class": 101}, "held_out_per_class 101: a class has 100"),
        ({"held_out_per_class": 41, "subset": True}, "held_out_per_class 41: a class has 40"),
        ({"companions": "earlyer"}, "unknown value of companions 'earlyer': did you mean 'earlier'"),
        ({"seed": "a"}, "seed 'a'"),
    ],
)
def test_bad_arguments_are_one_line_before_anything_is_read(arguments, message, tmp_path):
    with pytest.raises(UsageError, match=message) as error:
        FiveWayCIFAR100(**arguments, root=tmp_path)
    assert "\n" not in str(error.value)


def test_missing_data_is_one_line(tmp_path, monkeypatch):
    # `read` may still have its stand-in there: it lives as long as this file's tests
    monkeypatch.setattr("ftml_bench.benchmarks.five_way_cifar100.read_cifar100", read_cifar100)
    with pytest.raises(UsageError, match="CIFAR-100 is not in"):
        FiveWayCIFAR100(root=tmp_path)
