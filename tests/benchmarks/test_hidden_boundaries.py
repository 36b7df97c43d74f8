"""Hidden boundaries: whose points are whose, counted; what an evaluation is of; what is refused."""

import pytest
import torch

from ftml_bench.benchmarks import HiddenBoundaries, RainbowDigits, Sinusoids
from ftml_bench.errors import UsageError

OF = {"of": "Sinusoids", "of_settings": {"rounds": 4, "images_per_round": 30, "held_out_per_round": 40}}


def task_of_points(stream, experiences, of):
    """Whose every point is, found by its input."""
    known = {}
    for task, experience in enumerate(of):
        x, _ = experience.stacked.take(torch.arange(len(experience.stacked)))
        known.update((value, task) for value in x.flatten().tolist())
    return [
        torch.tensor([known[v] for v in e.stacked.take(torch.arange(len(e.stacked)))[0].flatten().tolist()])
        for e in experiences
    ]


def test_a_window_is_of_its_task_and_what_is_held_out_of_the_next_one():
    stream, of = HiddenBoundaries(rounds=120, stay=0.8, **OF), Sinusoids(**OF["of_settings"])
    assert stream.tasks.shape == (121,)
    assert set(stream.tasks.tolist()) == {0, 1, 2, 3}
    train = task_of_points(stream, stream.train_stream, of.train_stream)
    test = task_of_points(stream, stream.test_stream, of.test_stream)
    for t in range(120):
        assert train[t].tolist() == [int(stream.tasks[t])] * 10
        assert test[t].tolist() == [int(stream.tasks[t + 1])] * 20
        assert stream.train_stream[t].task_label == stream.test_stream[t].task_label == t


def test_targets_are_those_of_the_points():
    stream = HiddenBoundaries(rounds=20, **OF)
    amplitude, phase = (
        [getattr(e, name) for e in Sinusoids(**OF["of_settings"]).train_stream] for name in ("amplitude", "phase")
    )
    for t, experience in enumerate(stream.train_stream):
        x, y = experience.stacked.take(torch.arange(10))
        task = stream.tasks[t]
        assert torch.allclose(y, amplitude[task] * torch.sin(x - phase[task]), atol=1e-6)


def test_all_points_of_a_task_arrive_before_any_comes_again():
    stream = HiddenBoundaries(rounds=120, stay=0.8, **OF)
    rows = [
        torch.cat([e.stacked.rows for e, k in zip(stream.train_stream, stream.tasks[:-1], strict=True) if k == task])
        for task in range(4)
    ]
    for of_task in rows:
        for some in of_task.split(30):
            assert len(some.unique()) == len(some)
    assert max(map(len, rows)) > 30


def test_tasks_stay_and_come_back():
    path = HiddenBoundaries(rounds=4000, images_per_round=1, held_out_per_round=1, stay=0.8, **OF).tasks
    stays = float((path[1:] == path[:-1]).float().mean())
    assert abs(stays - 0.8) < 4 * (0.8 * 0.2 / 4000) ** 0.5
    changes = path[1:][path[1:] != path[:-1]]
    counts = changes.bincount(minlength=4)
    assert float(((counts - len(changes) / 4) ** 2 / (len(changes) / 4)).sum()) < 20


def test_windows_at_a_change_blur():
    settings = {**OF, "stay": 0.7, "overlap": 0.3}
    stream, of = HiddenBoundaries(rounds=300, **settings), Sinusoids(**OF["of_settings"])
    others = []
    for t, tasks in enumerate(task_of_points(stream, stream.train_stream, of.train_stream)):
        near = {int(stream.tasks[s]) for s in (t - 1, t, t + 1) if s >= 0}
        assert set(tasks.tolist()) <= near
        if t and stream.tasks[t] != stream.tasks[t - 1] and stream.tasks[t] == stream.tasks[t + 1]:
            others.append(float((tasks == stream.tasks[t - 1]).float().mean()))
    share = sum(others) / len(others)
    assert abs(share - 0.3) < 4 * (0.3 * 0.7 / (10 * len(others))) ** 0.5


def test_with_more_windows_the_first_are_the_same():
    few, many = (HiddenBoundaries(rounds=n, overlap=0.2, **OF) for n in (5, 9))
    for name in ("train_stream", "test_stream"):
        for a, b in zip(getattr(few, name), getattr(many, name), strict=False):
            assert torch.equal(a.stacked.rows, b.stacked.rows)


def test_what_it_takes_over_from_the_other_stream():
    stream, of = HiddenBoundaries(rounds=2, of_settings={"rounds": 3}), RainbowDigits(rounds=3)
    assert stream.train_stream[0].dataset[0][0].shape == of.train_stream[0].dataset[0][0].shape
    assert (stream.inner_lr, stream.update_steps, stream.threshold) == (of.inner_lr, of.update_steps, None)
    assert [p.shape for p in stream.model().parameters()] == [p.shape for p in of.model().parameters()]
    assert stream.train_stream[0].classes_in_this_experience


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"stay": 1.0}, "stay 1: expected a number from 0 to below 1"),
        ({"overlap": 0.6}, "overlap 0.6: expected a number from 0 to 0.5"),
        ({"of": "Sinusoid"}, "unknown benchmark 'Sinusoid': did you mean 'Sinusoids'"),
        ({"of_settings": {"round": 3}}, "of_settings: RainbowDigits: .*'round'"),
        ({"of_settings": {"rounds": 1}}, "two rounds or more, which are tasks"),
        ({"images_per_round": 0}, "images_per_round 0: expected 1 or more"),
    ],
)
def test_what_is_refused_in_one_line(settings, message):
    with pytest.raises(UsageError, match=message) as error:
        HiddenBoundaries(rounds=2, **settings)
    assert "\n" not in str(error.value)
