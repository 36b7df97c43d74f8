"""Where a buffer keeps its points: in the stream's tensors or in a file, with the same draws."""

from __future__ import annotations

import gc
import mmap
import os
import weakref
from copy import deepcopy

import pytest
import torch
from torch import nn

from ftml_bench.benchmarks import RainbowDigits, Sinusoids, arrivals
from ftml_bench.benchmarks.stacked import StackedDataset, as_input
from ftml_bench.buffer import TaskBuffer
from ftml_bench.buffer import task_buffer as buffer_module
from ftml_bench.buffer.storage import FileStorage, Grown, SharedStorage
from ftml_bench.errors import UsageError
from ftml_bench.protocol import run
from ftml_bench.speed import buffers as buffer_speed
from ftml_bench.strategies import FTML

CPU = torch.device("cpu")
STREAMS = {
    "one tensor, bytes": lambda: RainbowDigits(rounds=4, images_per_round=50, held_out_per_round=5),
    "a tensor a round, floats": lambda: Sinusoids(rounds=4, images_per_round=50),
}


def filled(buffer, stream):
    """The buffer with all arrivals, those of the first two rounds in turns."""
    pieces = [list(arrivals(round, [1, 6, 15])) for round in stream.train_stream]
    for turn in zip(pieces[0], pieces[1], strict=True):
        for arrival in turn:
            buffer.add(arrival)
    for arrival in [*pieces[2], *pieces[3]]:
        buffer.add(arrival)
    return buffer


def draws(buffer, *, classes):
    """One of every kind of draw, as a list of tensors."""
    rng = torch.Generator().manual_seed(1)
    rounds = [3, 0, 1, 1, 2]
    found = [part for batch in buffer.split(rounds, 5, 4, rng)[:2] for part in batch]
    found += [part for batch in buffer.split(rounds, 40, 30, rng)[:2] for part in batch]
    if classes:
        balanced = buffer.split(rounds, 6, 6, rng, class_balanced=True, permute_labels=True)
        found += [part for batch in balanced for part in batch]
    found += buffer.groups(rounds, 7, rng)[0]
    for equal_tasks in (True, False):
        batch, labels = buffer.mixed([0, 1, 2, 3], 60, rng, equal_tasks=equal_tasks)
        found += [*batch, labels]
    batch, labels = buffer.everything([2, 0])
    found += [*batch, labels, *buffer.for_label((1,), limit=20, seed=0), *buffer.for_label((2,), limit=99, seed=0)]
    return found


def test_a_system_that_takes_no_advice_is_given_none(tmp_path, monkeypatch):
    monkeypatch.delattr(mmap, "MADV_RANDOM", raising=False)  # as on Windows
    storage = FileStorage(tmp_path, CPU)
    x = torch.arange(12.0).view(4, 3)
    numbers = storage.append(StackedDataset(x, torch.arange(4), torch.tensor([2, 0, 1, 2])))
    assert torch.equal(storage.take(numbers)[0], x[[2, 0, 1, 2]])


@pytest.mark.parametrize("kind", STREAMS)
def test_draws_from_a_file_are_those_from_memory(kind, tmp_path):
    stream = STREAMS[kind]()
    classes = "bytes" in kind
    expected = draws(filled(TaskBuffer(), stream), classes=classes)
    found = draws(filled(TaskBuffer(folder=tmp_path), stream), classes=classes)
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == other.dtype
        assert torch.equal(one, other)


def test_what_is_filed_and_drawn_leaves_nothing_in_memory(tmp_path):
    memory = TaskBuffer(folder=tmp_path)
    images = torch.empty((1000, *buffer_speed.SHAPE), dtype=torch.uint8)
    before, _ = buffer_speed.megabytes()
    for t in range(60):  # 184 MB
        data = StackedDataset(images, buffer_speed._fill(images, t), torch.arange(1000))
        memory.add(buffer_speed._experience(t, data))
    rng = torch.Generator().manual_seed(0)
    for _ in range(10):
        memory.mixed(list(memory.rounds), 1000, rng, equal_tasks=False)
    # not "less than": where the system does not say, it is not a number
    assert not buffer_speed.megabytes()[0] - before > 70


def test_a_file_holds_the_images_and_nothing_else_does(tmp_path):
    stream = STREAMS["one tensor, bytes"]()
    buffer = filled(TaskBuffer(folder=tmp_path / "new"), stream)
    expected = draws(buffer, classes=True)
    base = weakref.ref(stream.train_stream[0].stacked.x)
    del stream
    gc.collect()  # an Avalanche stream refers to itself
    assert base() is None
    assert all(torch.equal(a, b) for a, b in zip(draws(buffer, classes=True), expected, strict=True))
    assert os.fstat(buffer._storage._file.fileno()).st_size >= 4 * 50 * 3 * 14 * 14
    assert list((tmp_path / "new").iterdir()) == []  # it has no name, so nobody has to delete it


def test_all_data_as_one_dataset_are_the_same_in_a_file(tmp_path):
    stream = STREAMS["one tensor, bytes"]()
    memory, file = (filled(TaskBuffer(**where), stream).buffer for where in ({}, {"folder": tmp_path}))
    assert len(memory) == len(file) == 200
    assert list(memory.targets) == list(file.targets)
    assert list(memory.targets_task_labels) == list(file.targets_task_labels)
    assert all(torch.equal(memory[i][0], file[i][0]) for i in range(0, 200, 13))


@pytest.mark.parametrize("in_file", [True, False])
def test_training_again_on_a_whole_round_stores_nothing_anew(in_file, tmp_path):
    first, second = Sinusoids(rounds=2, images_per_round=10).train_stream
    buffer = TaskBuffer(**({"folder": tmp_path} if in_file else {}))
    for experience in (first, second, first):
        buffer.add(experience)
    assert buffer.rounds[0].numbers.tolist() == list(range(10))
    other = Sinusoids(rounds=1, images_per_round=10, seed=1).train_stream[0]
    assert buffer.add(other) == 2  # other data with the same number are another round
    assert {number: r.numbers.tolist() for number, r in buffer.rounds.items()} == {
        0: list(range(10)),
        1: list(range(10, 20)),
        2: list(range(20, 30)),
    }
    x, _ = buffer.for_label((0,), limit=20, seed=0)
    assert torch.equal(x, torch.cat([first.stacked.take(torch.arange(10))[0], other.stacked.take(torch.arange(10))[0]]))


def test_what_grows_is_moved_seldom():
    grown, pieces, places = Grown(CPU), [], set()
    for i in range(1000):
        pieces.append(torch.full((1 + i % 3, 2), float(i)))
        grown.append(pieces[-1])
        places.add(grown._space.data_ptr())
    everything = torch.cat(pieces)
    assert len(grown) == len(everything) == 1999
    assert torch.equal(grown[torch.arange(1999)], everything)
    assert len(places) <= 12


@pytest.mark.parametrize("make", [lambda folder: SharedStorage(CPU), lambda folder: FileStorage(folder, CPU)])
def test_points_of_another_kind_are_refused(make, tmp_path):
    there = make(tmp_path)
    there.append(StackedDataset(torch.zeros(3, 2), torch.tensor([1, 2]), torch.tensor([0, 2])))
    with pytest.raises(UsageError, match=r"points of shape \(1,\) and type torch.float32 came to a buffer of points"):
        there.append(StackedDataset(torch.zeros(3, 2), torch.tensor([[0.5]]), torch.tensor([0])))
    file = FileStorage(tmp_path, CPU)
    file.append(StackedDataset(torch.zeros(3, 2), torch.tensor([1]), torch.tensor([0])))
    with pytest.raises(UsageError, match=r"points of shape \(3,\) .* came to a buffer of points of shape \(2,\)"):
        file.append(StackedDataset(torch.zeros(3, 3), torch.tensor([1]), torch.tensor([0])))


def test_a_folder_that_cannot_be_one_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match=r"buffer folder .*file: .*: expected one to write into"):
        TaskBuffer(folder=tmp_path / "file")


def test_a_few_of_very_many_are_distinct_and_uniform(monkeypatch):
    monkeypatch.setattr(buffer_module, "MANY", 50)
    rng = torch.Generator().manual_seed(0)
    counts, firsts = torch.zeros(200), torch.zeros(200)
    for _ in range(2000):
        rows = buffer_module._some(200, 20, rng) if _ % 2 else buffer_module._some(200, 10, rng)[:10]
        assert len(rows.unique()) == len(rows) == (20 if _ % 2 else 10)
        counts[rows] += 1
        firsts[rows[0]] += 1
    # (sum over rows of squared deviations) / variance: 200 on average, standard deviation 20
    assert float(((counts - 150) ** 2 / 150).sum()) < 300
    assert float(((firsts - 10) ** 2 / 10).sum()) < 300


def test_every_byte_becomes_the_same_float_as_ever():
    values = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(as_input(values), values.float().div_(255))


def test_a_learner_with_a_buffer_in_a_file_learns_the_same(tmp_path, tiny_sinusoids):
    losses = []
    for folder in (None, tmp_path):
        torch.manual_seed(0)
        model = tiny_sinusoids.model()
        learner = FTML(
            model=model,
            optimizer=torch.optim.Adam(model.parameters(), lr=0.01),
            criterion=nn.MSELoss(),
            steps=2,
            meta_batch_size=3,
            support_size=3,
            query_size=3,
            inner_lr=0.01,
            buffer_folder=folder,
            evaluator=None,
        )
        losses.append([e.loss for e in run(learner, tiny_sinusoids, arrivals=5, progress=False)])
    assert losses[0] == losses[1]
    assert len(set(losses[0])) == 6


def test_what_was_read_from_a_file_stays_right_when_it_grows(tmp_path):
    storage = FileStorage(tmp_path, CPU)
    images = torch.randint(256, (300, 3, 5, 5), dtype=torch.uint8)
    storage.append(StackedDataset(images, torch.arange(3), torch.tensor([7, 5, 7])))
    before, mappings = storage.dataset(torch.tensor([2, 1])), set()
    assert before.x is storage._x  # no copy in memory
    for start in range(0, 300, 10):
        storage.append(StackedDataset(images, torch.arange(10), torch.arange(start, start + 10)))
        mappings.add(storage._x.data_ptr())
    assert torch.equal(storage.take(torch.tensor([302, 3, 0]))[0], images[[299, 0, 7]])
    assert torch.equal(torch.stack([before[i][0] for i in range(2)]), images[[7, 5]])
    assert len(mappings) <= 8  # room is doubled: a new mapping would have to fetch its pages anew


def test_a_deep_copy_takes_no_new_tensor_for_one_of_the_originals():
    old, new = (StackedDataset(torch.full((2, 3), value), torch.zeros(2), torch.arange(2)) for value in (1.0, 7.0))
    original = SharedStorage(CPU)
    original.append(old)
    copied = deepcopy(original)
    # what happens where the original is gone and a new tensor lies at its place
    copied._known[id(new.x)] = copied._known.pop(id(old.x))
    numbers = [copied.append(new), copied.append(new), copied.append(old)]
    assert [copied.take(n)[0].unique().item() for n in (torch.arange(2), *numbers)] == [1.0, 7.0, 7.0, 1.0]
    assert len(copied._bases) == 3
