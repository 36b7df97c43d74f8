"""The buffer: every point is recognisable (its input is its number), so what was drawn can be read off."""

from __future__ import annotations

from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch
from avalanche.benchmarks import DatasetExperience, benchmark_from_datasets
from avalanche.benchmarks.utils import as_classification_dataset
from torch import nn
from torch.utils.data import Dataset

from ftml_bench.benchmarks import RainbowDigits, Sinusoids, arrivals
from ftml_bench.benchmarks.experiences import labels_of
from ftml_bench.benchmarks.stacked import StackedDataset
from ftml_bench.benchmarks.stream import TaskStream
from ftml_bench.buffer import TaskBuffer
from ftml_bench.errors import UsageError


def stream(*sizes):
    """A stream of rounds of these sizes: round t's points are 1000 t, 1000 t + 1, ...; y is x + 0.5."""
    base = torch.cat([torch.arange(n) + 1000.0 * t for t, n in enumerate(sizes)] + [torch.tensor([-1.0])])[:, None]
    ends = torch.tensor([0, *sizes]).cumsum(0).tolist()
    train = [StackedDataset(base, base[a:b] + 0.5, torch.arange(a, b)) for a, b in pairwise(ends)]
    test = [StackedDataset(base, base[-1:], torch.tensor([len(base) - 1]))] * len(sizes)
    return TaskStream(
        title="numbers", train=train, held_out=test, threshold=("loss", 1.0), checkpoints=[1], arrivals=1,
        criterion=nn.MSELoss(), inner_lr=0.1, update_steps=1,
    )  # fmt: skip


def filled(*sizes):
    buffer = TaskBuffer()
    for experience in stream(*sizes).train_stream:
        buffer.add(experience)
    return buffer


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def numbers(batch):
    """The points of a batch, after a check that every label is its own point's."""
    x, y = batch
    assert torch.equal(y, x + 0.5)
    return x[..., 0].long().tolist()


def expected_of(round, n):
    return [1000 * round + i for i in range(n)]


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


# -- support and query


@pytest.mark.parametrize("size", [5, 6, 40])
def test_support_and_query_are_distinct_points_of_their_task_and_disjoint(size):
    buffer = filled(size, size + 3)
    for seed in range(20):
        rounds = [0, 1, 1, 0]
        support, query = buffer.split(rounds, 3, 2, rng(seed))
        assert support[0].shape == support[1].shape == (4, 3, 1)
        assert query[0].shape == query[1].shape == (4, 2, 1)
        for t, s, q in zip(rounds, numbers(support), numbers(query), strict=True):
            assert len({*s, *q}) == 5
            assert {i // 1000 for i in [*s, *q]} == {t}
        assert numbers(support)[1] != numbers(support)[2] or numbers(query)[1] != numbers(query)[2] or size == 5


@pytest.mark.parametrize("size", [2, 3, 4, 5, 6, 7])
@pytest.mark.parametrize(("s", "q"), [(5, 3), (3, 5), (7, 7)])
def test_a_small_task_is_cut_into_two_disjoint_halves_each_repeated_in_turn(size, s, q):
    buffer = filled(size, 50)
    for seed in range(10):
        supports, queries = buffer.split([1, 0], s, q, rng(seed))
        assert supports[0].shape == (2, s, 1)
        assert queries[0].shape == (2, q, 1)
        support, query = numbers(supports)[1], numbers(queries)[1]
        half = size // 2
        assert not set(support) & set(query)
        for points, n, wanted in [(support, half, s), (query, size - half, q)]:
            n = min(n, wanted)
            assert len(set(points[:n])) == n
            assert points == [points[i % n] for i in range(wanted)]


def test_none_and_none_are_all_of_the_data_for_both():
    support, query = filled(6, 6).split([1, 0, 1], None, None, rng())
    for batch in (support, query):
        assert batch[0].shape == (3, 6, 1)
        assert [sorted(points) for points in numbers(batch)] == [expected_of(t, 6) for t in (1, 0, 1)]
    assert torch.equal(support[0], query[0])


def test_none_and_none_refuse_rounds_of_unequal_size():
    with pytest.raises(ValueError, match=r"rounds of equal size in a meta-batch, got sizes \[4, 6\]"):
        filled(6, 4).split([0, 1], None, None, rng())


def test_every_point_is_drawn_equally_often_for_support_and_for_query():
    buffer = filled(10)
    n = 3000
    supports, queries = buffer.split([0] * n, 2, 3, rng())
    for batch, share in [(supports, 0.2), (queries, 0.3)]:
        counts = batch[0].flatten().long().bincount(minlength=10)
        # (sum over points of squared deviations) / variance: 10 on average
        assert float(((counts - share * n) ** 2).sum() / (n * share * (1 - share))) < 30
    # Pairs too: who is in the support says nothing about who is first in the query but that it is another.
    pairs = torch.stack([supports[0][:, 0, 0], queries[0][:, 0, 0]]).long()
    table = torch.zeros(10, 10).index_put_((pairs[0], pairs[1]), torch.ones(n), accumulate=True)
    off = table[~torch.eye(10, dtype=torch.bool)]
    assert table.diagonal().sum() == 0
    assert float(((off - n / 90) ** 2 / (n / 90)).sum()) < 90 + 5 * 180**0.5


# -- joint minibatches


@pytest.mark.parametrize(
    ("equal_tasks", "shares"), [(True, [1 / 3, 1 / 3, 1 / 3]), (False, [100 / 160, 10 / 160, 50 / 160])]
)
def test_mixed_minibatches_draw_tasks_or_datapoints_equally(equal_tasks, shares):
    buffer = filled(100, 10, 50, 70)
    rng_, counts, repeats, n = rng(), torch.zeros(3), 100, 24
    per_point = torch.zeros(100)
    for _ in range(repeats):
        batch, labels = buffer.mixed([0, 1, 2], n, rng_, equal_tasks=equal_tasks)
        points = numbers(batch)
        assert len(points) == len(labels) == n
        assert [point // 1000 for point in points] == labels.tolist()
        counts += labels.bincount(minlength=3)
        per_point += torch.tensor([p for p in points if p < 1000]).bincount(minlength=100)
    for count, share in zip(counts.tolist(), shares, strict=True):
        assert abs(count - n * repeats * share) < 5 * (n * repeats * share * (1 - share)) ** 0.5
    # Within round 0 every point alike. 100 on average, standard deviation 14.
    mean = per_point.mean()
    assert float(((per_point - mean) ** 2 / mean).sum()) < 100 + 5 * 14


def classes(*sizes, seed=0):
    """A buffer with one round: so many points of each of the classes 2, 5, 7, ...; x tells the point and its class."""
    names = [2, 5, 7][: len(sizes)]
    y = torch.cat([torch.full((n,), name) for name, n in zip(names, sizes, strict=True)])
    y = y[torch.randperm(len(y), generator=rng(seed))]
    x = torch.stack([torch.arange(len(y)), y], dim=1).float()
    data = StackedDataset(x, y, torch.arange(len(y)))
    held_out = StackedDataset(x[:1].clone(), y[:1], torch.tensor([0]))
    benchmark = TaskStream(
        title="classes", train=[data], held_out=[held_out], threshold=None, checkpoints=[1], arrivals=1,
        criterion=nn.CrossEntropyLoss(), inner_lr=0.1, update_steps=1,
    )  # fmt: skip
    buffer = TaskBuffer()
    buffer.add(benchmark.train_stream[0])
    return buffer


@pytest.mark.parametrize("seed", range(3))
def test_class_balanced_draws_hold_every_class_equally_often(seed):
    buffer = classes(40, 12, 10)
    (sx, sy), (qx, qy) = buffer.split([0, 0], 9, 6, rng(seed), class_balanced=True)
    for task in range(2):
        assert sy[task].bincount(minlength=8)[[2, 5, 7]].tolist() == [3, 3, 3]
        assert qy[task].bincount(minlength=8)[[2, 5, 7]].tolist() == [2, 2, 2]
        points = torch.cat([sx[task, :, 0], qx[task, :, 0]])
        assert len(points.unique()) == 15  # disjoint
    assert torch.equal(sx[..., 1].long(), sy)  # every label its own point's
    assert sx[0, :, 0].tolist() != sx[1, :, 0].tolist()


def test_plain_draws_are_not_class_balanced():
    _, (_, y) = classes(90, 5, 5).split([0] * 20, 9, 6, rng())
    assert (y == 2).float().mean() > 0.7


def test_labels_are_renamed_anew_in_every_draw_alike_in_support_and_query():
    buffer = classes(20, 20, 20)
    (sx, sy), (qx, qy) = buffer.split([0] * 60, 12, 12, rng(), permute_labels=True)
    renamings = []
    for task in range(60):
        true = torch.cat([sx[task, :, 1], qx[task, :, 1]]).long()
        drawn = torch.cat([sy[task], qy[task]])
        pairs = set(zip(true.tolist(), drawn.tolist(), strict=True))
        assert len(pairs) == 3  # a class has one name in the whole draw ...
        assert {name for _, name in pairs} == {2, 5, 7}  # ... and no two the same
        renamings.append(tuple(name for _, name in sorted(pairs)))
    assert len(set(renamings)) == 6  # all permutations come
    assert buffer.rounds[0].classes.unique().tolist() == [2, 5, 7]
    assert torch.equal(buffer.for_label((0,), limit=100, seed=0)[1], buffer.rounds[0].classes)  # what is stored stays


def test_labels_of_a_dataset_that_is_not_stacked_can_be_renamed_too():
    dataset = Numbers(0, 12)
    dataset.targets = [0, 1, 2] * 4
    buffer = TaskBuffer()
    buffer.add(benchmark_from_datasets(train=[as_classification_dataset(dataset)]).train_stream[0])
    assert buffer.rounds[0].classes.tolist() == [0, 1, 2] * 4


@pytest.mark.parametrize("option", ["class_balanced", "permute_labels"])
def test_regression_has_no_classes_to_balance_or_rename(option):
    with pytest.raises(UsageError, match="class_balanced and permute_labels need classes"):
        filled(10).split([0], 3, 3, rng(), **{option: True})


def test_mixed_minibatches_repeat_points_only_where_there_are_too_few():
    buffer = filled(30, 2)
    batch, labels = buffer.mixed([0, 1], 24, rng(), equal_tasks=True)
    points = numbers(batch)
    big, small = [p for p in points if p < 1000], [p for p in points if p >= 1000]
    assert len(set(big)) == len(big) == int((labels == 0).sum())
    assert set(small) == {1000, 1001}
    assert len(small) == int((labels == 1).sum()) > 2


def test_mixed_minibatches_over_datapoints_hold_every_point_once_where_they_hold_all():
    buffer = filled(7, 1, 12)
    for seed in range(5):
        batch, labels = buffer.mixed([0, 1, 2], 20, rng(seed), equal_tasks=False)
        points = numbers(batch)
        assert sorted(points) == [*expected_of(0, 7), 1000, *expected_of(2, 12)]
        assert [point // 1000 for point in points] == labels.tolist()
        points = numbers(buffer.mixed([2, 0], 19, rng(seed), equal_tasks=False)[0])
        assert sorted(points) == [*expected_of(0, 7), *expected_of(2, 12)]
        points = numbers(buffer.mixed([0, 1, 2], 60, rng(seed), equal_tasks=False)[0])  # more than there are
        assert len(points) == 60
        assert {point // 1000 for point in points} == {0, 1, 2}


def test_mixed_minibatches_leave_out_rounds_that_were_not_named():
    batch, labels = filled(5, 5, 5).mixed([0, 2], 40, rng(), equal_tasks=False)
    assert {point // 1000 for point in numbers(batch)} == set(labels.tolist()) == {0, 2}


def test_groups_are_of_one_task_each_and_distinct_where_there_are_enough():
    buffer = filled(9, 3, 4)
    seen = set()
    for seed in range(20):
        points = numbers(buffer.groups([0, 1, 0, 2], 4, rng(seed)))
        groups = [points[i : i + 4] for i in range(0, 16, 4)]
        assert [{point // 1000 for point in group} for group in groups] == [{0}, {1}, {0}, {2}]
        assert [len(set(groups[i])) for i in (0, 2, 3)] == [4, 4, 4]
        assert set(groups[1]) <= set(expected_of(1, 3))
        seen |= set(points)
    assert seen == {*expected_of(0, 9), *expected_of(1, 3), *expected_of(2, 4)}


@pytest.mark.parametrize(
    "draw",
    [
        lambda buffer, rng: buffer.split([0, 1], 3, 2, rng)[1][0],
        lambda buffer, rng: buffer.groups([0, 1], 4, rng)[0],
        lambda buffer, rng: buffer.groups([0, 1], 400, rng)[0],
        lambda buffer, rng: buffer.mixed([0, 1], 10, rng, equal_tasks=True)[0][0],
    ],
)
def test_draws_depend_on_their_generator_alone(draw):
    buffer = filled(30, 40)
    before = torch.get_rng_state()
    first = draw(buffer, rng(3))
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(12)
    assert torch.equal(draw(buffer, rng(3)), first)
    assert not torch.equal(draw(buffer, rng(4)), first)


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
        buffer.groups([1], 30, rng()),
    ):
        assert bool((drawn == 1).all())


def test_regression_targets_keep_their_shape():
    buffer = TaskBuffer()
    buffer.add(Sinusoids(rounds=1, images_per_round=12).train_stream[0])
    (_, support_y), (query_x, query_y) = buffer.split([0, 0], 4, 5, rng())
    assert support_y.shape == (2, 4, 1)
    assert query_x.shape == query_y.shape == (2, 5, 1)
    assert query_y.dtype == torch.float32


# -- streams that are not ours


class Numbers(Dataset):
    """Point i is the number i + start; its class is its last digit."""

    def __init__(self, start, n):
        self.start = start
        self.targets = [(start + i) % 10 for i in range(n)]

    def __len__(self):
        return len(self.targets)

    def __getitem__(self, index):
        return torch.tensor([float(self.start + index)]), self.targets[index]


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
        *buffer.split([0, 1], 4, 3, rng()),
        buffer.groups([1, 0], 4, rng()),
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
