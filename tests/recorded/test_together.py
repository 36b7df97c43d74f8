"""Several seeds of FTML that take their steps together come to what they come to alone."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch
from avalanche.core import SupervisedPlugin
from avalanche.training.plugins import EvaluationPlugin

from ftml_bench import metrics
from ftml_bench.benchmarks import RainbowDigits, arrivals
from ftml_bench.protocol import evaluations, in_two_parts
from ftml_bench.recorded.together import Together
from ftml_bench.recorded.training_step import RecordedStep, acts_after_training
from ftml_bench.strategies import FTML
from ftml_bench.strategies.avalanche.per_round import per_round
from tests.recorded.together import learner, numbers, tensors, trained_together

pytestmark = pytest.mark.usefixtures("double_precision")


@pytest.mark.parametrize(
    "settings", [{}, {"second_order": False}, {"optimizer": torch.optim.SGD}, {"batch_norm": "transductive"}]
)
def test_seeds_that_step_together_come_to_what_they_come_to_alone(streams, settings):
    alone = [learner(seed, **settings) for seed in range(3)]
    expected = [list(evaluations(strategy, stream, 20)) for strategy, stream in zip(alone, streams, strict=True)]
    learners = [learner(seed, **settings) for seed in range(3)]
    curves, at_once, apart, together = trained_together(learners, streams)
    assert at_once == [3] * 6
    assert apart == []
    assert together.note == "steps taken together by 3 seeds"
    assert learners[0].chosen["engine_note"] == together.note
    for i in range(3):
        assert numbers(learners[i]) == numbers(alone[i])
        assert [e.loss for e in curves[i]] == pytest.approx([e.loss for e in expected[i]], rel=1e-8)
        assert [e.steps for e in curves[i]] == [e.steps for e in expected[i]]
        for a, b in zip(tensors(learners[i]), tensors(alone[i]), strict=True):
            assert torch.allclose(a, b, rtol=1e-6, atol=1e-9)
    assert curves[0][-1].loss != pytest.approx(curves[1][-1].loss, rel=1e-3)


def test_until_they_are_taken_steps_are_only_noted(streams):
    strategy, together = learner(), Together()
    strategy.execution.together = together
    before = deepcopy(strategy.model.state_dict())
    strategy.train(next(iter(arrivals(streams[0].train_stream[0], 20))), eval_streams=[])
    assert strategy.cost.steps == strategy.clock.train_iterations == 0
    assert all(torch.equal(value, before[n]) for n, value in strategy.model.state_dict().items())
    together.take_steps()
    assert strategy.cost.steps == strategy.clock.train_iterations == 6
    assert not torch.equal(next(iter(strategy.model.state_dict().values())), next(iter(before.values())))
    together.take_steps()
    assert strategy.cost.steps == 6


@pytest.mark.parametrize(
    "other",
    [{"inner_lr": 0.2}, {"steps": 5}, {"meta_batch_size": 2}, {"engine": "loop"}, {"adapted": "last_layer"}],
)
def test_learners_that_differ_take_their_steps_apart(streams, other):
    alone = [learner(0), learner(1, **other)]
    expected = [list(evaluations(s, stream, 20)) for s, stream in zip(alone, streams[:2], strict=True)]
    learners = [learner(0), learner(1, **other)]
    curves, _, apart, together = trained_together(learners, streams[:2])
    assert sorted(set(apart)) == sorted({6, other.get("steps", 6)})
    assert together.note == ""
    assert curves == expected


@pytest.mark.parametrize("settings", [{"engine": "loop", "inner_steps": 1}, {"adapted": "last_layer"}])
def test_learners_of_an_engine_that_starts_all_tasks_alike_take_their_steps_at_once(streams, settings):
    expected = [list(evaluations(learner(seed, **settings), streams[seed], 20)) for seed in range(2)]
    curves, at_once, apart, _ = trained_together([learner(seed, **settings) for seed in range(2)], streams[:2])
    assert curves == expected
    assert at_once == []
    assert apart == [6] * 12


def test_one_that_ends_leaves_the_others_to_themselves(streams):
    short = RainbowDigits(rounds=1, images_per_round=40, held_out_per_round=30, seed=0)
    alone = [learner(seed) for seed in range(3)]
    expected = [list(evaluations(*pair, 20)) for pair in zip(alone, [short, *streams[1:]], strict=True)]
    learners = [learner(seed) for seed in range(3)]
    curves, at_once, apart, _ = trained_together(learners, [short, *streams[1:]])
    assert at_once == [3, 3, 2, 2, 2, 2]
    assert apart == []
    assert [strategy.cost.steps for strategy in learners] == [12, 36, 36]
    for found, wanted in zip(curves, expected, strict=True):
        assert [e.loss for e in found] == pytest.approx([e.loss for e in wanted], rel=1e-8)


@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize(
    "change",
    [
        lambda s: s.optimizer.param_groups[0].update(weight_decay=0.5),
        lambda s: next(s.model.parameters()).requires_grad_(False),
        lambda s: s.execution.draws._make_room(500, 2000),
        lambda s: s.model[-1].eval(),
    ],
)
def test_a_change_of_any_of_them_is_seen_by_what_was_recorded(streams, which, change):
    learners = [learner(seed, optimizer=torch.optim.SGD) for seed in range(2)]
    meta_step = RecordedStep(learners)
    before = meta_step._found_key()
    assert meta_step._found_key() == before
    change(learners[which])
    assert meta_step._found_key() != before


def test_a_step_that_cannot_be_recorded_together_is_taken_apart(streams):
    learners, apart = [learner(seed) for seed in range(2)], []
    together = Together()
    for strategy, stream in zip(learners, streams, strict=False):
        strategy.execution.together = together
        strategy.execution.take_alone = lambda steps, strategy=strategy: apart.append((strategy, steps))
        strategy.train(next(iter(arrivals(stream.train_stream[0], 20))), eval_streams=[])
    together._recorded_of(learners).note = "no CUDA graph of the training step (a reason)"
    together.take_steps()
    assert apart == [(strategy, 6) for strategy in learners]


@pytest.mark.parametrize(("short", "memory"), [(0, "unroll"), (1, "adjoint")])
def test_memory_is_chosen_for_each_learner_as_alone(streams, short, memory):
    alone = learner(engine="batched")
    next(evaluations(alone, streams[0], 20))
    (step_bytes,) = alone.engine._step_bytes.values()
    learners = [learner(seed, engine="batched") for seed in range(3)]
    for strategy in learners:
        strategy.engine.memory_budget = 3 * (strategy.engine.inner_steps + 1) * step_bytes - short
    trained_together(learners, streams)
    assert [strategy.chosen["engine_memory"] for strategy in learners] == [memory] * 3
    assert all(("unrolled steps would keep" in strategy.chosen["engine_note"]) == bool(short) for strategy in learners)


def test_a_recording_that_fails_lets_go_of_what_was_recorded_alone(streams):
    learners, together = [learner(seed) for seed in range(2)], Together()
    for strategy, stream in zip(learners, streams, strict=False):
        strategy.train(next(iter(arrivals(stream.train_stream[0], 20))), eval_streams=[])
        strategy.execution.recorded._key = strategy.execution.recorded._found_key()  # as if its step had been recorded
        strategy.execution.together = together
        strategy.train(next(iter(arrivals(stream.train_stream[1], 20))), eval_streams=[])
    together.take_steps()  # there is no GPU to record on
    assert together.note.startswith("not together: no CUDA graph of the training step (")
    assert [strategy.cost.steps for strategy in learners] == [12, 12]
    assert all(strategy.execution.recorded._key is None for strategy in learners)
    for strategy, stream in zip(learners, streams, strict=False):
        strategy.train(next(iter(arrivals(stream.train_stream[2], 20))), eval_streams=[])
    together.take_steps()
    assert together._recorded.strategies == learners, "it is not tried again"
    assert [strategy.cost.steps for strategy in learners] == [18, 18]


class After(SupervisedPlugin):
    def __init__(self):
        super().__init__()
        self.steps = []

    def after_training_exp(self, strategy, *args, **kwargs):
        self.steps.append(strategy.cost.steps)


class Hooked(FTML):
    def _after_training_epoch(self, **kwargs):
        super()._after_training_epoch(**kwargs)


def test_what_acts_after_the_steps_inside_train_finds_them_taken(streams):
    after = After()
    strategy = learner(plugins=[after])
    strategy.execution.together = Together()
    for arrival in arrivals(streams[0].train_stream[0], 20):
        strategy.train(arrival, eval_streams=[])
    assert after.steps == [6, 12]
    ours = EvaluationPlugin(
        metrics.efficiency_metrics(threshold=("accuracy", 0.8)), metrics.learning_curve_metrics(metric="accuracy")
    )
    assert not acts_after_training(learner())
    assert not acts_after_training(learner(evaluator=ours))
    assert acts_after_training(learner(cls=Hooked))
    assert acts_after_training(learner(eval_every=0))
    assert acts_after_training(learner(eval_every=1, peval_mode="iteration"))
    assert acts_after_training(learner(evaluator=EvaluationPlugin(metrics.regret_metrics())))
    assert acts_after_training(learner(plugins=[per_round(SupervisedPlugin())])), "it counts iterations"
    assert Together().may_take(learner())
    assert not Together().may_take(learner(train_epochs=2)), "hooks lie between its steps"


def test_the_protocol_pauses_after_each_training(streams):
    strategy = learner()
    parts = in_two_parts(strategy, streams[0], 40)
    assert next(parts) is None
    assert strategy.cost.steps == 6
    assert next(parts).round == 0
    plugins = len(strategy.plugins)
    assert next(parts) is None
    parts.close()
    assert len(strategy.plugins) == plugins, "what measures is attached from training to evaluation only"
