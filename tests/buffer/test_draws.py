"""Support, query and joint minibatches: every draw read off by its numbers."""

from __future__ import annotations

import pytest
import torch
from avalanche.benchmarks import benchmark_from_datasets
from avalanche.benchmarks.utils import as_classification_dataset

from ftml_bench.buffer import TaskBuffer
from ftml_bench.errors import UsageError
from tests.buffer.points import Numbers, classes, expected_of, filled, numbers, rng

# -- support and query


@pytest.mark.parametrize("size", [5, 6, 40])
def test_support_and_query_are_distinct_points_of_their_task_and_disjoint(size):
    buffer = filled(size, size + 3)
    for seed in range(20):
        rounds = [0, 1, 1, 0]
        support, query, _ = buffer.split(rounds, 3, 2, rng(seed))
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
        supports, queries, _ = buffer.split([1, 0], s, q, rng(seed))
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
    support, query, _ = filled(6, 6).split([1, 0, 1], None, None, rng())
    for batch in (support, query):
        assert batch[0].shape == (3, 6, 1)
        assert [sorted(points) for points in numbers(batch)] == [expected_of(t, 6) for t in (1, 0, 1)]
    assert torch.equal(support[0], query[0])


def test_none_and_none_refuse_rounds_of_unequal_size():
    with pytest.raises(ValueError, match=r"expected rounds of one size in a minibatch, got sizes \[4, 6\]"):
        filled(6, 4).split([0, 1], None, None, rng())


def test_every_point_is_drawn_equally_often_for_support_and_for_query():
    buffer = filled(10)
    n = 3000
    supports, queries, _ = buffer.split([0] * n, 2, 3, rng())
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


@pytest.mark.parametrize("seed", range(3))
def test_class_balanced_draws_hold_every_class_equally_often(seed):
    buffer = classes(40, 12, 10)
    (sx, sy), (qx, qy), _ = buffer.split([0, 0], 9, 6, rng(seed), class_balanced=True)
    for task in range(2):
        assert sy[task].bincount(minlength=8)[[2, 5, 7]].tolist() == [3, 3, 3]
        assert qy[task].bincount(minlength=8)[[2, 5, 7]].tolist() == [2, 2, 2]
        points = torch.cat([sx[task, :, 0], qx[task, :, 0]])
        assert len(points.unique()) == 15  # disjoint
    assert torch.equal(sx[..., 1].long(), sy)  # every label its own point's
    assert sx[0, :, 0].tolist() != sx[1, :, 0].tolist()


def test_plain_draws_are_not_class_balanced():
    _, (_, y), _ = classes(90, 5, 5).split([0] * 20, 9, 6, rng())
    assert (y == 2).float().mean() > 0.7


def test_labels_are_renamed_anew_in_every_draw_alike_in_support_and_query():
    buffer = classes(20, 20, 20)
    (sx, sy), (qx, qy), _ = buffer.split([0] * 60, 12, 12, rng(), permute_labels=True)
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
        points = numbers(buffer.groups([0, 1, 0, 2], 4, rng(seed))[0])
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
        lambda buffer, rng: buffer.groups([0, 1], 4, rng)[0][0],
        lambda buffer, rng: buffer.groups([0, 1], 400, rng)[0][0],
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
