"""Which round an experience is: kept once, and beside those of other streams."""

import pytest
import torch
from avalanche.benchmarks import (
    DatasetExperience,
    EagerCLStream,
    benchmark_from_datasets,
    benchmark_with_validation_stream,
    split_online_stream,
    with_task_labels,
)
from avalanche.benchmarks.utils import AvalancheDataset
from avalanche.core import SupervisedPlugin
from torch.utils.data import TensorDataset

from ftml_bench import saving
from ftml_bench.benchmarks import RainbowDigits, arrivals
from ftml_bench.benchmarks.experiences import identity_of
from ftml_bench.buffer import TaskBuffer
from ftml_bench.strategies import FTML, FromScratch, per_round
from tests.strategies.avalanche.small_experiences import (
    benchmark,
    data_of,
    every_learner,
    held,
    learner,
    net,
    points,
    trained,
    wrapped,
)


@every_learner
def test_a_second_stream_whose_experiences_have_the_same_numbers_is_kept_beside_the_first(cls):
    strategy = trained(benchmark(seed=0).train_stream, cls)
    assert held(strategy) == {0: 20, 1: 20, 2: 20}
    for experience in benchmark(seed=1).train_stream:
        strategy.train(experience, eval_streams=[])
    assert held(strategy) == dict.fromkeys(range(6), 20)
    assert strategy.current_round == 5
    x = torch.cat([data_of(e)[0] for s in (0, 1) for e in benchmark(seed=s).train_stream])
    assert torch.equal(strategy.buffer.everything(list(range(6)))[0][0], x)


def test_a_validation_stream_that_is_trained_on_is_kept_too():
    split = benchmark_with_validation_stream(benchmark(), validation_size=0.5, seed=0)
    strategy = trained([split.train_stream[0], split.valid_stream[0]])
    assert held(strategy) == {0: 10, 1: 10}
    expected = [data_of(e)[0] for e in (split.train_stream[0], split.valid_stream[0])]
    assert torch.equal(strategy.buffer.for_label((0,), limit=20, seed=0)[0], torch.cat(expected))


def test_the_same_data_are_not_stored_twice():
    stream = benchmark()
    strategy = learner()
    for _ in range(2):
        for experience in stream.train_stream:  # made anew at each access
            strategy.train(experience, eval_streams=[])
    for experience in (e.logging() for e in stream.train_stream):
        strategy.train(experience, eval_streams=[])
    assert held(strategy) == {0: 20, 1: 20, 2: 20}
    renumbered = EagerCLStream("again", [with_task_labels(e) for e in wrapped(stream)][::-1])
    strategy.train(renumbered[1], eval_streams=[])  # the same number: the same round
    assert held(strategy) == {0: 20, 1: 20, 2: 20}


def test_pieces_of_avalanches_splitter_that_come_twice_are_stored_once_also_before_their_round_is_complete():
    pieces = list(split_online_stream(benchmark().train_stream, 8, seed=0))
    strategy = learner(steps=1)
    for index, expected in [(0, {0: 8}), (0, {0: 8}), (1, {0: 16}), (0, {0: 16}), (2, {0: 20}), (3, {0: 20, 1: 8})]:
        strategy.train(pieces[index], eval_streams=[])
        assert held(strategy) == expected
        assert strategy.clock.train_exp_counter > 0


def test_arrivals_of_two_streams_in_turns_are_filed_under_their_own_rounds():
    first, second = (RainbowDigits(rounds=1, images_per_round=20, seed=seed) for seed in (0, 1))
    buffer = TaskBuffer()
    pieces = [list(arrivals(s.train_stream[0], 5)) for s in (first, second)]
    for a, b in zip(*pieces, strict=True):
        assert (buffer.add(a), buffer.add(b)) == (0, 1)
    for number, stream in enumerate((first, second)):
        points = {bytes(x.numpy().tobytes()) for x, _ in stream.train_stream[0].stacked}
        stored = buffer.rounds[number].numbers
        assert {bytes(x.numpy().tobytes()) for x in buffer._storage.take(stored)[0]} == points


def test_a_stream_of_tensors_that_is_made_anew_gives_the_same_rounds():
    plain = lambda: benchmark_from_datasets(train=[AvalancheDataset([points(20, seed=s)]) for s in (0, 1)])  # noqa: E731
    for make in (lambda: RainbowDigits(rounds=2, images_per_round=20).train_stream, lambda: plain().train_stream):
        one, other = make(), make()
        assert identity_of(one[0]) == identity_of(other[0]) == identity_of(next(iter(arrivals(other[0], 5))))
        assert identity_of(one[0]) != identity_of(one[1])


def test_the_same_images_under_other_transforms_are_another_round():
    data = points(20)
    for attribute in ("transform_groups", "frozen_transform_groups"):
        flipped, plain = ({"train": (f, None), "eval": (f, None)} for f in (lambda x: -x, lambda x: x))
        datasets = [AvalancheDataset([data], **{attribute: groups}) for groups in (plain, flipped)]
        strategy = learner()
        for dataset in [*datasets, *datasets]:
            strategy.train(DatasetExperience(dataset=dataset, current_experience=0), eval_streams=[])
        assert held(strategy) == {0: 20, 1: 20}
        (x, _), (minus, _) = (r.read(torch.arange(20), train=False) for r in strategy.buffer.rounds.values())
        assert torch.equal(x, -minus)


def test_experiences_without_a_number_are_rounds_of_their_own():
    datasets = [AvalancheDataset([points(12, seed=seed)]) for seed in (0, 1)]
    strategy = learner()
    for dataset in [*datasets, datasets[0]]:
        strategy.train(DatasetExperience(dataset=dataset), eval_streams=[])
    assert held(strategy) == {0: 12, 1: 12}


@pytest.mark.parametrize("cls", [FTML, FromScratch])
def test_a_state_saved_between_two_streams_goes_on_bit_by_bit(cls, tmp_path):
    stream = [*benchmark(seed=0).train_stream, *benchmark(seed=1).train_stream]
    straight = trained(stream, cls)
    saving.save(trained(stream[:4], cls), tmp_path / "state")
    strategy = learner(cls)
    done = saving.load(strategy, tmp_path / "state", stream)
    assert (done, held(strategy)) == (4, dict.fromkeys(range(4), 20))
    for experience in stream[done:]:
        strategy.train(experience, eval_streams=[])
    assert torch.equal(strategy.model.weight, straight.model.weight)
    assert held(strategy) == held(straight)


def test_from_scratch_starts_anew_with_the_round_of_another_stream_and_not_with_a_piece_of_its_own():
    first, second = (list(split_online_stream(benchmark(seed=s).train_stream, 10, seed=0)) for s in (0, 1))
    strategy = learner(FromScratch, steps=1)
    starts = []

    class Look(SupervisedPlugin):
        def before_training_exp(self, s, **kwargs):
            starts.append(s.model.weight.detach().clone())

    strategy.plugins.insert(0, Look())
    for piece in (first[0], first[1], second[0], second[1]):
        strategy.train(piece, eval_streams=[])
    new = [torch.equal(start, net().weight) for start in starts]
    assert new == [True, False, True, False]


def test_a_plugin_per_round_sees_two_rounds_where_two_streams_have_the_same_number():
    counts = []

    class Count(SupervisedPlugin):
        def after_training_exp(self, strategy, **kwargs):
            counts.append(len(strategy.experience.dataset))

    strategy = learner(plugins=[per_round(Count())], steps=1)
    pieces = [list(arrivals(benchmark(seed=s).train_stream[0], 5)) for s in (0, 1)]
    for piece in [*pieces[0][:3], *pieces[1]]:
        strategy.train(piece, eval_streams=[])
    assert counts == [15, 20]


def test_a_dataset_that_is_changed_in_place_changes_its_round_and_stays_one():
    x, y = torch.randn(10, 6), torch.arange(10) % 6
    data = benchmark_from_datasets(train=[AvalancheDataset([TensorDataset(x, y)])]).train_stream
    strategy = trained(data)
    x.add_(1.0)
    strategy.train(data[0], eval_streams=[])
    assert held(strategy) == {0: 10}
    assert torch.equal(strategy.buffer.everything([0])[0][0], x)
