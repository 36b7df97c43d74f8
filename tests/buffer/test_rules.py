"""Bounded buffers: what each rule keeps, counted by hand, and that learners with one run, save and go on."""

import pytest
import torch
from avalanche.benchmarks import nc_benchmark
from torch import nn
from torch.optim import SGD

from ftml_bench.benchmarks import Sinusoids, arrivals
from ftml_bench.benchmarks.stacked import StackedDataset
from ftml_bench.benchmarks.stream import TaskStream
from ftml_bench.buffer import FirstInFirstOut, LastRounds, Reservoir, ShareOfClasses, TaskBuffer
from ftml_bench.errors import UsageError
from ftml_bench.models import SinusoidMLP
from ftml_bench.protocol import held_out
from ftml_bench.runs.building import build_strategy
from ftml_bench.runs.definition import from_dict
from ftml_bench.saving import load_state_dict, state_dict
from ftml_bench.strategies import FTML, FromScratch, TrainOnEverything

SIZES = (4, 6, 5, 3)


def stream(sizes=SIZES, classes=2):
    """Rounds of points that are their own number, of classes in turn."""
    rounds, first = [], 0
    for size in sizes:
        x = torch.arange(first, first + size, dtype=torch.float32).unsqueeze(1)
        rounds.append(StackedDataset(x, torch.arange(size) % classes, torch.arange(size)))
        first += size
    return TaskStream(
        title="numbers",
        train=rounds,
        held_out=[StackedDataset(-1 - r.x, r.y, r.rows) for r in rounds],
        threshold=("accuracy", 0.9),
        checkpoints=[1],
        arrivals=2,
        criterion=nn.CrossEntropyLoss(),
        inner_lr=0.1,
        update_steps=1,
    )


def filled(rule, made=None, seed=0, pieces=None):
    buffer = TaskBuffer(rule=rule, seed=seed)
    for round in (made or stream()).train_stream:
        for arrival in [round] if pieces is None else arrivals(round, pieces):
            buffer.add(arrival)
    return buffer


def points(buffer):
    """What is kept, by round."""
    return {number: buffer.everything([number])[0][0].flatten().int().tolist() for number in buffer.rounds}


def test_without_a_rule_everything_is_kept():
    assert points(filled(None)) == {0: [0, 1, 2, 3], 1: [4, 5, 6, 7, 8, 9], 2: [10, 11, 12, 13, 14], 3: [15, 16, 17]}


@pytest.mark.parametrize("pieces", [None, 2])
def test_the_last_rounds(pieces):
    assert list(points(filled(LastRounds(2), pieces=pieces))) == [1, 2, 3], "two earlier rounds and the current one"
    assert list(points(filled(LastRounds(9)))) == [0, 1, 2, 3]


def test_first_in_first_out():
    assert points(filled(FirstInFirstOut(7))) == {1: [8, 9], 2: [10, 11, 12, 13, 14], 3: [15, 16, 17]}
    assert points(filled(FirstInFirstOut(5))) == {2: [10, 11, 12, 13, 14], 3: [15, 16, 17]}


def test_a_reservoir_keeps_every_point_equally_often():
    counts, size, runs, made = torch.zeros(15), 5, 3000, stream()
    for seed in range(runs):
        kept = points(filled(Reservoir(size), made, seed))
        earlier = [p for number, some in kept.items() if number < 3 for p in some]
        assert len(earlier) == size
        assert kept[3] == [15, 16, 17]
        counts[earlier] += 1
    expected = runs * size / 15
    # draws without replacement: the variance is below the multinomial's, 14 degrees of freedom
    assert float(((counts - expected) ** 2 / expected).sum()) < 40


def test_a_share_of_classes():
    buffer = filled(ShareOfClasses(5))
    kept = {number: r.classes.tolist() for number, r in buffer.rounds.items() if number < 3}
    classes = [c for some in kept.values() for c in some]
    assert (classes.count(0), classes.count(1)) == (3, 2)
    regression = TaskBuffer(rule=ShareOfClasses(5))
    first, second = Sinusoids(seed=0, rounds=2).train_stream
    regression.add(first)
    with pytest.raises(UsageError, match="need classes"):
        regression.add(second)


@pytest.mark.parametrize("kind", [FirstInFirstOut, Reservoir, ShareOfClasses])
def test_a_bound_of_nothing_is_refused(kind):
    with pytest.raises(UsageError, match="expected a number of at least 1"):
        kind(0)


def test_the_current_round_alone():
    assert points(filled(LastRounds(0))) == {3: [15, 16, 17]}
    with pytest.raises(UsageError, match="expected a number of at least 0"):
        LastRounds(-1)


def test_data_that_are_read_from_datasets_are_bounded_too():
    images, labels = torch.arange(24.0).view(24, 1), torch.arange(24) % 4
    data = torch.utils.data.TensorDataset(images, labels)
    data.targets = labels.tolist()
    benchmark = nc_benchmark(data, data, n_experiences=4, task_labels=False, shuffle=False)
    buffer = TaskBuffer(rule=FirstInFirstOut(8))
    for experience in benchmark.train_stream:
        buffer.add(experience)
    assert {number: len(r) for number, r in buffer.rounds.items()} == {1: 2, 2: 6, 3: 6}
    assert len(buffer.buffer) == 14
    kept = buffer.everything([1])[0][0].flatten().tolist()
    whole = torch.stack([x for x, *_ in benchmark.train_stream[1].dataset]).flatten().tolist()
    assert kept == whole[-2:]


def test_a_round_that_goes_on_after_it_was_cut_takes_nothing_twice():
    first, second = stream((6, 4)).train_stream
    buffer = TaskBuffer(rule=FirstInFirstOut(2))
    early, late = arrivals(first, [3, 3])
    buffer.add(early)
    came = points(buffer)[0]
    buffer.add(second)
    assert points(buffer)[0] == came[1:]
    buffer.add(early)
    assert points(buffer)[0] == came[1:], "it has been here"
    buffer.add(late)
    assert sorted(points(buffer)[0]) == sorted({*range(6)} - {came[0]})


def row(buffer):
    entry = {
        "benchmark": "Sinusoids",
        "settings": {"rounds": 2},
        "steps": 1,
        "optimizer": {"name": "SGD", "lr": 0.1},
        "strategies": {"FTML": {"buffer": buffer}},
    }
    return from_dict({"name": "bounded", "seeds": [0], "benchmarks": {"waves": entry}}, "bounded").benchmarks[0]


def built(buffer):
    spec = row(buffer)
    return build_strategy(spec, spec.rows[0], Sinusoids(seed=0, rounds=2), 0)


def test_a_row_of_a_definition_names_its_rule():
    assert built({"name": "Reservoir", "points": 7}).buffer.rule == Reservoir(7)
    assert built({"name": "LastRounds", "rounds": 0}).buffer.rule == LastRounds(0)
    assert built(None).buffer.rule is None


@pytest.mark.parametrize(
    ("buffer", "message"),
    [
        ({"name": "Resevoir", "points": 7}, "unknown buffer in waves: FTML 'Resevoir': did you mean 'Reservoir'"),
        ({"name": "Reservoir", "point": 7}, "'point': did you mean 'points'"),
        ({"name": "Reservoir", "points": 0}, "buffer: Reservoir: points=0: expected a number of at least 1"),
        ({"name": "Reservoir", "points": "many"}, "points: expected a whole number, got 'many'"),
        ({"points": 7}, "buffer: expected .*got {'points': 7}"),
        (7, "buffer: expected .*got 7"),
    ],
)
def test_a_rule_that_there_is_not_is_refused_in_one_line(buffer, message):
    with pytest.raises(UsageError, match=message) as error:
        built(buffer)
    assert "\n" not in str(error.value)


def trained(kind, rule):
    torch.manual_seed(0)
    benchmark = Sinusoids(seed=0, rounds=4, images_per_round=10, held_out_per_round=10)
    model = SinusoidMLP()
    settings = {"steps": 2, "inner_lr": 0.01, "meta_batch_size": 3, "support_size": 2, "query_size": 2}
    if kind is not FTML:
        settings = {"steps": 2, "train_mb_size": 4}
    strategy = kind(
        model=model,
        optimizer=SGD(model.parameters(), lr=0.01),
        criterion=nn.MSELoss(),
        evaluator=None,
        buffer=rule,
        **settings,
    )
    return benchmark, strategy


@pytest.mark.parametrize("rule", [LastRounds(99), FirstInFirstOut(10**6), Reservoir(10**6)])
def test_a_bound_that_is_never_reached_changes_nothing(rule):
    weights = []
    for some in (None, rule):
        benchmark, strategy = trained(FTML, some)
        for round in benchmark.train_stream:
            for arrival in arrivals(round, 5):
                strategy.train(arrival)
                strategy.eval([held_out(benchmark, round)])
        weights.append(torch.cat([p.detach().flatten() for p in strategy.model.parameters()]))
    assert torch.equal(*weights)


@pytest.mark.parametrize("kind", [FTML, TrainOnEverything, FromScratch])
@pytest.mark.parametrize("rule", [LastRounds(1), FirstInFirstOut(7), Reservoir(7)])
def test_learners_with_a_bound_run_save_and_go_on(kind, rule):
    ends = []
    for stop in (None, 5):
        benchmark, strategy = trained(kind, rule)
        pieces = [arrival for round in benchmark.train_stream for arrival in arrivals(round, 5)]
        done = 0
        if stop is not None:
            for arrival in pieces[:stop]:
                strategy.train(arrival)
            state = state_dict(strategy)
            _, strategy = trained(kind, rule)
            done = load_state_dict(strategy, state, pieces)
        for arrival in pieces[done:]:
            strategy.train(arrival)
        kept = sum(len(r) for number, r in strategy.buffer.rounds.items() if number != 3)
        assert kept == (10 if isinstance(rule, LastRounds) else 7)
        ends.append(torch.cat([p.detach().flatten() for p in strategy.model.parameters()]))
    assert torch.equal(*ends)
