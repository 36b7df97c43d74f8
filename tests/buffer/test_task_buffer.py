"""What the buffer holds: rounds as they arrive, what an evaluation may adapt to, data of any stream."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from avalanche.benchmarks import DatasetExperience, benchmark_from_datasets
from avalanche.benchmarks.utils import as_classification_dataset

from ftml_bench.benchmarks import RainbowDigits, Sinusoids, arrivals
from ftml_bench.benchmarks.experiences import labels_of
from ftml_bench.benchmarks.stacked import StackedDataset
from ftml_bench.buffer import TaskBuffer
from tests.buffer.points import Numbers, expected_of, filled, numbers, rng, stream

# -- filing


def test_arrivals_are_filed_under_their_round_and_only_what_has_arrived():
    buffer = TaskBuffer()
    for t, round in enumerate(stream(7, 5).train_stream):
        seen = []
        for arrival in arrivals(round, 3):
            assert buffer.add(arrival) == t
            seen += numbers(arrival.stacked.take(torch.arange(len(arrival.stacked))))
            assert len(buffer.rounds[t]) == arrival.n_seen_in_round == len(seen)
            assert numbers(buffer.for_label((t,), limit=100, seed=0)) == seen
        assert sorted(seen) == expected_of(t, len(round.dataset))
    assert list(buffer.rounds) == [0, 1]
    assert len(buffer.buffer) == 12
    assert sorted(int(buffer.buffer[i][0]) for i in range(12)) == expected_of(0, 7) + expected_of(1, 5)


def test_rounds_may_arrive_in_turns():
    buffer = TaskBuffer()
    first, second = (list(arrivals(round, 2)) for round in stream(4, 4).train_stream)
    for arrival in (first[0], second[0], first[1], second[1]):
        buffer.add(arrival)
    assert sorted(numbers(buffer.for_label((0,), limit=100, seed=0))) == expected_of(0, 4)
    assert sorted(numbers(buffer.for_label((1,), limit=100, seed=0))) == expected_of(1, 4)


def test_a_whole_experience_stands_for_its_round_and_is_not_doubled():
    buffer = TaskBuffer()
    first, second = stream(4, 3).train_stream
    for experience in (first, second, first):
        buffer.add(experience)
    assert [len(r) for r in buffer.rounds.values()] == [4, 3]
    assert numbers(buffer.for_label((0,), limit=100, seed=0)) == expected_of(0, 4)
    assert len(buffer.buffer) == 7


def test_it_is_used_as_avalanches_own_buffers():
    buffer = TaskBuffer()
    assert len(buffer.buffer) == 0
    first, second = stream(4, 3).train_stream
    buffer.update(SimpleNamespace(experience=first))
    buffer.post_adapt(None, second)
    assert sorted(int(buffer.buffer[i][0]) for i in range(7)) == expected_of(0, 4) + expected_of(1, 3)
    with pytest.raises(ValueError, match="cannot be resized to 3"):
        buffer.resize(None, 3)


# -- what an evaluation may adapt to


def test_one_round_with_the_label_gives_all_its_points_or_as_many_as_the_limit():
    buffer = filled(8, 8)
    assert sorted(numbers(buffer.for_label((1,), limit=8, seed=0))) == expected_of(1, 8)
    some = numbers(buffer.for_label((1,), limit=5, seed=0))
    assert len(set(some)) == len(some) == 5
    assert set(some) < set(expected_of(1, 8))


def test_a_label_that_was_not_seen_gives_nothing():
    buffer = filled(4)
    assert buffer.for_label((1,), limit=10, seed=0) is None
    assert buffer.for_label(None, limit=10, seed=0) is None
    assert TaskBuffer().for_label((0,), limit=10, seed=0) is None


@pytest.mark.parametrize("labels", [[7], None])
def test_a_label_of_several_rounds_gives_as_many_points_of_each(labels):
    buffer = TaskBuffer()
    for experience in stream(20, 30, 40).train_stream:
        if labels is None:
            del experience.task_labels, experience.task_label
        else:
            experience.task_labels = labels
        buffer.add(experience)
    key = None if labels is None else (7,)
    assert labels_of(experience) == key
    points = numbers(buffer.for_label(key, limit=15, seed=0))
    assert [sum(p // 1000 == t for p in points) for t in range(3)] == [5, 5, 5]
    assert len(set(points)) == 15
    assert len(numbers(buffer.for_label(key, limit=60, seed=0))) == 60
    assert buffer.for_label((0,), limit=15, seed=0) is None


def test_the_key_of_several_labels_does_not_depend_on_their_order():
    assert labels_of(SimpleNamespace(task_labels=[2, 0])) == labels_of(SimpleNamespace(task_labels=[0, 2])) == (0, 2)


def test_the_limited_choice_depends_on_the_seed_and_on_what_has_arrived_alone():
    buffer = filled(50, 50)
    first = numbers(buffer.for_label((0,), limit=10, seed=0))
    state = torch.get_rng_state()
    buffer.split([0, 1], 5, 5, rng())
    buffer.mixed([0, 1], 20, rng(), equal_tasks=True)
    torch.manual_seed(5)
    buffer.for_label((1,), limit=10, seed=0)
    assert numbers(buffer.for_label((0,), limit=10, seed=0)) == first
    assert numbers(filled(50).for_label((0,), limit=10, seed=0)) == first
    assert numbers(buffer.for_label((0,), limit=10, seed=1)) != first
    torch.set_rng_state(state)
    buffer.for_label((0,), limit=10, seed=0)
    assert torch.equal(torch.get_rng_state(), state)


def test_the_limited_choice_draws_every_point_equally_often():
    buffer = filled(10)
    counts = torch.zeros(10)
    for seed in range(500):
        counts += torch.tensor(numbers(buffer.for_label((0,), limit=3, seed=seed))).bincount(minlength=10)
    assert float(((counts - 150) ** 2 / (500 * 0.3 * 0.7)).sum()) < 30


# -- storage


def test_bytes_are_shared_with_the_stream_and_floats_are_made_when_drawn():
    digits = RainbowDigits(rounds=2, images_per_round=20, held_out_per_round=5)
    buffer = TaskBuffer()
    for round in digits.train_stream:
        for arrival in arrivals(round, 7):
            buffer.add(arrival)
    base = digits.train_stream[0].stacked.x
    assert base.dtype == torch.uint8
    drawn, labels = buffer.for_label((1,), limit=20, seed=0)
    assert drawn.dtype == torch.float32
    pieces = [arrival.stacked for arrival in arrivals(digits.train_stream[1], 7)]
    torch.testing.assert_close(drawn, torch.cat([base[piece.rows] for piece in pieces]).double().div(255).float())
    assert torch.equal(labels, torch.cat([piece.y for piece in pieces]))
    assert drawn.shape == (20, 3, 14, 14)
    base.fill_(255)  # no copy of any image was made, or it would not see this
    for drawn, _ in (
        buffer.for_label((0,), limit=20, seed=0),
        buffer.split([0, 1], 3, 3, rng())[0],
        buffer.groups([1], 30, rng())[0],
    ):
        assert bool((drawn == 1).all())


def test_regression_targets_keep_their_shape():
    buffer = TaskBuffer()
    buffer.add(Sinusoids(rounds=1, images_per_round=12).train_stream[0])
    (_, support_y), (query_x, query_y), _ = buffer.split([0, 0], 4, 5, rng())
    assert support_y.shape == (2, 4, 1)
    assert query_x.shape == query_y.shape == (2, 5, 1)
    assert query_y.dtype == torch.float32


def in_training(x):
    return x + 0.25


def in_evaluation(x):
    return x + 0.75


def stock(*sizes, left_in):
    groups = {"train": (in_training, None), "eval": (in_evaluation, None)}
    data = [as_classification_dataset(Numbers(1000 * t, n), transform_groups=groups) for t, n in enumerate(sizes)]
    data = [getattr(dataset, left_in)() for dataset in data]
    return benchmark_from_datasets(train=data, test=data)


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("left_in", ["train", "eval"])
def test_other_datasets_are_read_by_the_training_transform_in_training_and_else_by_the_other(whole, left_in):
    buffer = TaskBuffer()
    for round in stock(11, 9, left_in=left_in).train_stream:
        assert isinstance(round, DatasetExperience)
        for part in [round] if whole else arrivals(round, 4):
            buffer.add(part)
    assert [len(r) for r in buffer.rounds.values()] == [11, 9]
    training = [
        *buffer.split([0, 1], 4, 3, rng())[:2],
        buffer.groups([1, 0], 4, rng())[0],
        buffer.mixed([0, 1], 12, rng(), equal_tasks=True)[0],
    ]
    for x, y in training:
        assert torch.equal(x.frac(), torch.full_like(x, 0.25))
        assert torch.equal(x[..., 0].long() % 10, y)
        assert set(x.flatten().long().tolist()) <= {*expected_of(0, 11), *expected_of(1, 9)}
    x, y = buffer.for_label(None, limit=100, seed=0)
    assert torch.equal(x.frac(), torch.full_like(x, 0.75))
    assert torch.equal(x[:, 0].long() % 10, y)
    assert y.dtype == torch.int64
    # as many of each round as the smaller has
    points = x.flatten().long().tolist()
    assert len(set(points) & set(expected_of(0, 11))) == 9
    assert sorted(set(points) & set(expected_of(1, 9))) == expected_of(1, 9)
    assert len(points) == 18
    assert len(buffer.buffer) == 20


def test_an_arrival_that_is_trained_on_again_is_not_added_again(tiny_digits):
    buffer = TaskBuffer()
    pieces = list(arrivals(tiny_digits.train_stream[0], 10))
    for piece in [pieces[0], pieces[0], pieces[1], pieces[0]]:
        buffer.add(piece)
    assert len(buffer.rounds[0]) == 20
    buffer.add(tiny_digits.train_stream[0])
    buffer.add(pieces[2])
    assert len(buffer.rounds[0]) == 30


# -- arrivals that come in another order, again, or cut otherwise


def plain(*sizes):
    """The points of `stream` in datasets that are not stacked."""
    data = [as_classification_dataset(Numbers(1000 * t, n)) for t, n in enumerate(sizes)]
    return benchmark_from_datasets(train=data, test=data)


COMING = {
    "in order": lambda round: list(arrivals(round, 3)),
    "backwards": lambda round: list(arrivals(round, 3))[::-1],
    "again": lambda round: [a for a in arrivals(round, 3) for _ in range(2)],
    "the last ones again": lambda round: [list(arrivals(round, 3))[i] for i in (0, 2, 2, 3, 1, 3, 0)],
    "cut otherwise": lambda round: [*list(arrivals(round, 3))[:3], *arrivals(round, 4)],
    "in another order of points": lambda round: [*list(arrivals(round, 3))[:2], *arrivals(round, 3, seed=1)],
    "then whole": lambda round: [*list(arrivals(round, 3))[:2], round],
    "whole before": lambda round: [round, *arrivals(round, 3)],
}


@pytest.mark.parametrize("coming", COMING)
@pytest.mark.parametrize("kind", ["stacked", "in a file", "dataset"])
def test_every_point_is_there_once(coming, kind, tmp_path):
    buffer = TaskBuffer(folder=tmp_path if kind == "in a file" else None)
    benchmark = plain(11) if kind == "dataset" else stream(11)
    for piece in COMING[coming](benchmark.train_stream[0]):
        buffer.add(piece)
    whole = buffer.rounds[0]
    assert sorted(buffer.everything([0])[0][0].flatten().tolist()) == expected_of(0, 11)
    assert len(whole.point_labels) == len(whole.dataset) == len(whole) == 11


def test_the_same_round_made_anew_is_the_same():
    """Tensors of their own, equal points: what came of the one does not come again of the other."""
    buffer = TaskBuffer()
    for piece in list(arrivals(stream(11).train_stream[0], 3))[:2]:
        buffer.add(piece)
    for piece in arrivals(stream(11).train_stream[0], 4):
        buffer.add(piece)
    assert sorted(numbers(buffer.everything([0])[0])) == expected_of(0, 11)


def test_equal_points_in_other_rows_are_points_of_their_own():
    """A round may hold a point twice; rows tell them apart, and the same rows of another tensor hold others."""
    buffer, x = TaskBuffer(), torch.zeros(6, 1)
    round = stream(6).train_stream[0]
    for rows, base in [([0, 1, 1], x), ([2, 3], x), ([2, 4], x), ([0, 1], x + 1)]:
        piece = next(arrivals(round, 6))
        piece.stacked = StackedDataset(base, torch.zeros(len(rows), dtype=torch.int64), torch.tensor(rows))
        vars(piece)["_dataset"] = piece.dataset.subset(list(range(len(rows))))
        buffer.add(piece)
    assert len(buffer.rounds[0]) == 3 + 2 + 1 + 2
    assert buffer.everything([0])[0][0].flatten().tolist() == [0.0] * 6 + [1.0] * 2
