"""Arrivals: a partition of the round, and Avalanche's stock metrics right after every one of them."""

from __future__ import annotations

import pytest
import torch
from avalanche.benchmarks import benchmark_from_datasets
from avalanche.benchmarks.utils import as_classification_dataset
from avalanche.evaluation.metrics import accuracy_metrics, bwt_metrics, forgetting_metrics
from avalanche.training.plugins import EvaluationPlugin
from avalanche.training.supervised import Naive
from torch import nn
from torch.utils.data import Dataset

from ftml_bench.benchmarks import RainbowDigits, Sinusoids, arrivals
from ftml_bench.benchmarks.arrivals import cumulative_sizes
from ftml_bench.benchmarks.stacked import as_input
from ftml_bench.errors import UsageError

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def digits():
    return RainbowDigits(rounds=3, images_per_round=25, held_out_per_round=40)


class Numbers(Dataset):
    """Point i is the number i: shows which points an arrival holds."""

    def __init__(self, n):
        self.targets = [i % 2 for i in range(n)]

    def __len__(self):
        return len(self.targets)

    def __getitem__(self, index):
        return torch.tensor([float(index)]), self.targets[index]


def stock(*sizes):
    """A benchmark made by Avalanche alone: no task labels, no classes, no stacked data."""
    datasets = [as_classification_dataset(Numbers(n)) for n in sizes]
    return benchmark_from_datasets(train=datasets, test=datasets)


def numbers(arrivals_of_a_round):
    return [int(part.dataset[i][0]) for part in arrivals_of_a_round for i in range(len(part.dataset))]


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        (10, [10, 10, 5]),
        (25, [25]),
        (100, [25]),
        (1, [1] * 25),
        ([2, 3, 10], [2, 3, 10, 10]),
        ([2, 3, 7], [2, 3, 7, 7, 6]),
        ([4, 30, 1], [4, 21]),
        ((5,), [5] * 5),
    ],
)
def test_sizes(digits, sizes, expected):
    parts = list(arrivals(digits.train_stream[1], sizes))
    assert [len(part.dataset) for part in parts] == expected
    assert [len(part.stacked) for part in parts] == expected
    seen = torch.tensor(expected).cumsum(0).tolist()
    assert [part.n_seen_in_round for part in parts] == seen == cumulative_sizes(25, sizes)


def test_an_arrival_knows_its_round_and_its_place_in_it(digits):
    parts = list(arrivals(digits.train_stream[2], 10))
    assert [part.is_first_subexp for part in parts] == [True, False, False]
    assert [part.is_last_subexp for part in parts] == [False, False, True]
    assert [part.arrival_index for part in parts] == [0, 1, 2]
    for part in parts:
        assert part.sub_stream_length == 3
        assert part.current_experience == 2
        assert part.task_label == 2
        assert part.task_labels == [2]
        assert part.origin_stream is digits.train_stream
        assert part.origin_experience is digits.train_stream[2]
        assert part.classes_in_this_experience == digits.train_stream[2].classes_in_this_experience
        assert part.access_task_boundaries
        assert part.train().is_first_subexp in (True, False)  # boundaries stay visible in training mode


def test_the_last_arrival_is_marked_where_the_size_divides_the_round():
    # Avalanche's own splitter marks none in this case.
    assert [part.is_last_subexp for part in arrivals(stock(20).train_stream[0], 5)] == [False, False, False, True]


@pytest.mark.parametrize("sizes", [7, [1, 2, 9]])
def test_arrivals_partition_the_round(digits, sizes):
    whole = digits.train_stream[0].stacked
    parts = list(arrivals(digits.train_stream[0], sizes))
    rows = torch.cat([part.stacked.rows for part in parts])
    assert rows.sort().values.tolist() == whole.rows.tolist()
    for part in parts:
        assert part.stacked.x is whole.x
        for i in range(len(part.dataset)):  # what Avalanche reads is what is stacked
            x, y, task = part.dataset[i]
            stacked_x, stacked_y = part.stacked.take(torch.tensor([i]))
            assert torch.equal(x, as_input(stacked_x[0]))
            assert (y, task) == (int(stacked_y), 0)


def test_stock_experiences_need_nothing_of_ours():
    parts = list(arrivals(stock(11, 11).train_stream[1], 4))
    assert sorted(numbers(parts)) == list(range(11))
    assert [part.current_experience for part in parts] == [1, 1, 1]
    for name in ("task_label", "task_labels", "classes_in_this_experience", "stacked"):
        assert not hasattr(parts[0], name)


def test_order_depends_on_the_seed_and_the_round_only():
    rounds = stock(30, 30).train_stream

    def order(round_index, sizes, seed):
        return numbers(arrivals(rounds[round_index], sizes, seed=seed))

    torch.manual_seed(1)
    first = order(0, 10, 5)
    torch.manual_seed(2)
    assert order(0, 10, 5) == order(0, [1, 9, 3], 5) == first != list(range(30))
    assert order(0, 10, 6) != first
    assert order(1, 10, 5) != first


def test_drawing_leaves_the_global_random_state(digits):
    before = torch.get_rng_state()
    list(arrivals(digits.train_stream[0], 5))
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("sizes", [0, -3, 2.0, "20", None, True, [], [5, 0], [5, "6"]])
def test_bad_sizes_are_refused_at_the_call(digits, sizes):
    with pytest.raises(UsageError, match="arrival size"):
        arrivals(digits.train_stream[0], sizes)


def test_an_empty_round_is_refused_at_the_call(digits):
    experience = stock(3).train_stream[0]
    experience._dataset = experience.dataset.subset([])
    with pytest.raises(UsageError, match="without datapoints"):
        arrivals(experience, 2)
    with pytest.raises(UsageError, match="without datapoints"):
        cumulative_sizes(0, 2)


def test_a_round_of_regression_data_is_cut_the_same_way():
    stream = Sinusoids(rounds=1, images_per_round=10).train_stream
    parts = list(arrivals(stream[0], 4))
    assert [len(part.stacked) for part in parts] == [4, 4, 2]
    assert not hasattr(parts[0], "classes_in_this_experience")
    assert parts[0].task_label == 0


def test_stock_metrics_are_right_after_every_arrival(digits):
    """Forgetting, backward transfer and trained-experience accuracy against accuracies counted by hand."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 14 * 14, 10))
    evaluator = EvaluationPlugin(
        accuracy_metrics(experience=True, trained_experience=True),
        forgetting_metrics(experience=True, stream=True),
        bwt_metrics(experience=True, stream=True),
        loggers=[],
    )
    strategy = Naive(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.5),
        train_mb_size=10,
        train_epochs=4,
        eval_mb_size=16,
        evaluator=evaluator,
    )
    count = len(digits.test_stream)

    def accuracy(round_index):
        data = digits.test_stream[round_index].stacked
        x, y = data.take(torch.arange(len(data)))
        with torch.no_grad():
            return (model.eval()(as_input(x)).argmax(1) == y).float().mean().item()

    learnt = {}  # round -> accuracy right after its last arrival so far
    forgotten = 0.0
    for t, round_ in enumerate(digits.train_stream):
        for arrival in arrivals(round_, [4, 11]):
            strategy.train(arrival)
            evaluator.reset_last_metrics()
            metrics = strategy.eval(digits.test_stream)
            now = [accuracy(k) for k in range(count)]
            learnt[t] = now[t]
            for k in range(count):
                where = f"eval_phase/test_stream/Task{k:03}/Exp{k:03}"
                assert metrics[f"Top1_Acc_Exp/{where}"] == pytest.approx(now[k])
                if k < t:
                    assert metrics[f"ExperienceForgetting/{where}"] == pytest.approx(learnt[k] - now[k])
                    assert metrics[f"ExperienceBWT/{where}"] == pytest.approx(now[k] - learnt[k])
                else:  # a round that is not over has nothing to forget
                    assert f"ExperienceForgetting/{where}" not in metrics
            trained = next(v for name, v in metrics.items() if name.startswith("Accuracy_On_Trained_Experiences"))
            assert trained == pytest.approx(sum(now[: t + 1]) / (t + 1))
            if t > 0:
                mean = sum(learnt[k] - now[k] for k in range(t)) / t
                assert metrics["StreamForgetting/eval_phase/test_stream"] == pytest.approx(mean)
                assert metrics["StreamBWT/eval_phase/test_stream"] == pytest.approx(-mean)
                forgotten = max(forgotten, abs(mean))
    assert forgotten > 0.05  # otherwise the comparison above says nothing
