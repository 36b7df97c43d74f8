"""Where a run's time goes: what is counted for what. Nothing here depends on how fast anything is."""

from __future__ import annotations

import itertools

import torch

from ftml_bench import memory
from ftml_bench.protocol import run
from ftml_bench.speed import arrivals as profile
from ftml_bench.speed import buffers as buffer_speed
from ftml_bench.speed.arrivals import LOOP, META_GRADIENT, UPDATE, WATCHED, Stopwatch
from ftml_bench.strategies import FTML


def test_every_moment_counts_for_the_innermost_part(monkeypatch):
    clock = itertools.accumulate([100, 1, 2, 4, 8, 16, 32])  # one second passes before the first change, two then, ...
    monkeypatch.setattr(profile.time, "process_time", lambda: float(next(clock)))
    watch = Stopwatch()
    with watch.part("outer"):
        with watch.part("inner"):
            pass
        with watch.part("outer"):
            pass
    assert watch.seconds == {"outer": 1 + 4 + 8 + 16, "inner": 2}


def test_the_parts_of_a_run_are_seen_and_the_classes_are_left_as_they_were(monkeypatch, tiny_sinusoids):
    ticks = itertools.count()
    monkeypatch.setattr(profile.time, "process_time", lambda: float(next(ticks)))
    before = [(owner, name, vars(owner).get(name)) for owner, name, _ in WATCHED]
    model = tiny_sinusoids.model()
    learner = FTML(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.01),
        criterion=tiny_sinusoids.criterion,
        steps=2,
        meta_batch_size=3,
    )
    watch = Stopwatch()
    with watch.watching(), watch.part(LOOP):
        evaluations = run(learner, tiny_sinusoids, arrivals=5, progress=False)
    assert [(owner, name, vars(owner).get(name)) for owner, name, _ in WATCHED] == before
    # The clock ticks at the change of parts: a part without parts inside has one tick a call.
    assert len(evaluations) == 6
    assert watch.seconds["sampling"] == watch.seconds["optimiser"] == 12
    assert watch.seconds[UPDATE] == watch.seconds["filing arrivals"] == 6
    assert watch.seconds[META_GRADIENT] >= 24
    assert "records" not in watch.seconds
    assert sum(watch.seconds.values()) == next(ticks) - 1


def test_the_table_adds_up():
    early, small = Stopwatch(), Stopwatch()
    early.seconds.update({META_GRADIENT: 6.0, UPDATE: 2.0, "sampling": 1.0, LOOP: 1.0})
    small.seconds.update({META_GRADIENT: 3.0, "records": 1.0})
    lines = profile._table({"round 6": early, "a small run": small}, {"round 6": 2})
    cells = {line[:32].strip(): line[32:].split() for line in lines}
    assert cells[META_GRADIENT] == ["3.0000", "60.00%", "3.0000", "75.00%"]
    assert cells["records"] == ["0.0000", "0.00%", "1.0000", "25.00%"]
    assert cells["all"] == ["5.0000", "100.00%", "4.0000", "100.00%"]
    assert cells["neither gradient nor update"] == ["1.0000", "20.00%", "1.0000", "25.00%"]


def test_the_buffers_that_are_timed_draw_the_same(tmp_path, monkeypatch):
    monkeypatch.setattr(buffer_speed, "ROUND", 30)
    monkeypatch.setattr(buffer_speed, "BATCH", 1)
    text = buffer_speed.report(tmp_path, rounds=3, repeats=1)
    assert text.startswith("a buffer of 90 images of 3 x 32 x 32 bytes in 3 rounds")
    assert len(text.splitlines()) == 4 + len(buffer_speed.DRAWS)
    assert list(tmp_path.iterdir()) == []


def test_freed_memory_may_be_kept_anywhere(monkeypatch):
    memory.keep_freed_memory()
    with monkeypatch.context() as changed:
        changed.setenv("MALLOC_TRIM_THRESHOLD_", "1")
        changed.setattr(memory.ctypes, "CDLL", None)  # it is the environment's to decide
        memory.keep_freed_memory()
    monkeypatch.setattr(memory.platform, "libc_ver", lambda: ("", ""))
    monkeypatch.setattr(memory.ctypes, "CDLL", None)  # is not asked where there is no glibc
    memory.keep_freed_memory()
