"""Draws on the device, and training steps outside of Avalanche's loop: here on the CPU; on a GPU see test_cuda.py."""

from __future__ import annotations

import pytest
import torch
from avalanche.core import SupervisedPlugin
from avalanche.evaluation.metrics import accuracy_metrics, loss_metrics
from avalanche.logging import InteractiveLogger, TensorboardLogger
from avalanche.training.plugins import EvaluationPlugin
from torch import nn

from ftml_bench import metrics
from ftml_bench.adaptation import make_engine
from ftml_bench.benchmarks import RainbowDigits, arrivals
from ftml_bench.buffer import TaskBuffer
from ftml_bench.errors import UsageError
from ftml_bench.models import RainbowNet
from ftml_bench.protocol import evaluations
from ftml_bench.recorded.device_draws import DeviceDraws
from ftml_bench.recorded.training_step import acts_inside_iterations
from ftml_bench.strategies import FTML, per_round


@pytest.fixture(scope="module")
def digits():
    return RainbowDigits(rounds=3, images_per_round=40, held_out_per_round=30)


def filled(benchmark, sizes=(40, 40, 40)):
    """A buffer with the first points of each round, and its draws."""
    buffer = TaskBuffer()
    for round, size in zip(benchmark.train_stream, sizes, strict=True):
        buffer.add(next(iter(arrivals(round, [size, 40] if size < 40 else 40))))
    draws = DeviceDraws(buffer, seed=3)
    return buffer, draws


def flat(drawn):
    support, query, labels = drawn
    return [*support, *query, labels]


def points_of(buffer, number):
    """The images and classes of a round by the bytes of the image."""
    x, y = buffer._batch([(number, torch.arange(len(buffer.rounds[number])))])
    return {image.numpy().tobytes(): int(label) for image, label in zip(x, y, strict=True)}


@pytest.mark.parametrize(
    ("size", "support", "query"), [(40, 10, 10), (40, 20, 20), (7, 10, 10), (2, 10, 5), (19, 10, 10), (40, 600, 600)]
)
def test_support_and_query_are_disjoint_points_of_their_round_with_their_labels(digits, size, support, query):
    buffer, draws = filled(digits, (size, 40, 40))
    assert draws.take_in({0: 1.0})
    known = points_of(buffer, 0)
    (support_x, support_y), (query_x, query_y), labels = draws.split(6, support, query)
    assert support_x.shape[:2] == support_y.shape == (6, support)
    assert query_x.shape[:2] == query_y.shape == (6, query)
    assert labels.tolist() == [[buffer.rounds[0].task_label] * query] * 6
    for task in range(6):
        first = [image.numpy().tobytes() for image in support_x[task]]
        second = [image.numpy().tobytes() for image in query_x[task]]
        assert not set(first) & set(second)
        assert [known[image] for image in first] == support_y[task].tolist()
        assert [known[image] for image in second] == query_y[task].tolist()
        if size >= support + query:
            assert len(set(first) | set(second)) == support + query
        else:  # two halves, each repeated in turn
            assert len(set(first)) == min(support, size // 2)
            assert len(set(second)) == min(query, size - size // 2)
    assert len({tuple(image.numpy().tobytes() for image in task) for task in support_x}) > 1


def test_rounds_are_drawn_by_weight_and_points_evenly(digits):
    buffer, draws = filled(digits)
    assert draws.take_in({0: 1.0, 2: 3.0})
    counts = torch.zeros(3)
    seen: dict[bytes, int] = {}
    for _ in range(60):
        (support_x, _), _, labels = draws.split(100, 2, 2)
        labels = labels[:, 0]
        counts += labels.bincount(minlength=3)
        for task, label in zip(support_x, labels, strict=True):
            if label == 0:
                for image in task:
                    key = image.numpy().tobytes()
                    seen[key] = seen.get(key, 0) + 1
    assert counts[1] == 0
    assert abs(float(counts[2]) / 6000 - 0.75) < 0.025  # four standard deviations
    assert len(seen) == len(points_of(buffer, 0))
    expected = sum(seen.values()) / 40
    chi_square = sum((n - expected) ** 2 / expected for n in seen.values())
    assert chi_square < 75  # 39 degrees of freedom: one in 2,000


def test_tables_follow_the_buffer_and_keep_their_place_until_they_are_full(digits):
    buffer, draws = TaskBuffer(), None
    first, second, third = digits.train_stream
    pieces = list(arrivals(first, 20))
    buffer.add(pieces[0])
    draws = DeviceDraws(buffer, seed=0)
    draws._make_room(2, 30)
    assert draws.take_in({0: 1.0})
    tables = draws.places[:4]
    buffer.add(second)
    assert draws.take_in({0: 1.0, 1: 1.0})
    assert draws.places[:4] != tables, "40 points need a wider table"
    tables = draws.places[:4]
    buffer.add(pieces[1])
    assert draws.take_in({0: 1.0})
    assert draws.places[:4] == tables
    (support_x, _), (query_x, _), _ = draws.split(4, 20, 20)
    whole = set(points_of(buffer, 0))
    for task in torch.cat([support_x, query_x], dim=1):
        assert {image.numpy().tobytes() for image in task} == whole
    buffer.add(third)
    assert draws.take_in({2: 1.0})
    assert draws.places[:4] != tables, "three rounds need a longer table"
    assert draws.split(3, 5, 5)[2].tolist() == [[buffer.rounds[2].task_label] * 5] * 3


def test_a_buffer_in_a_file_has_no_tensors_to_draw_from(digits, tmp_path):
    buffer = TaskBuffer(folder=tmp_path)
    buffer.add(digits.train_stream[0])
    assert not DeviceDraws(buffer, seed=0).take_in({0: 1.0})


# -- steps outside of Avalanche's loop


def learner(evaluator=None, plugins=None, cls=FTML, optimizer=torch.optim.Adam, lr=1e-2, capturable=None, **settings):
    torch.manual_seed(0)
    model = RainbowNet(filters=4, layers=3, image_size=14)
    more = {} if capturable is None else {"capturable": capturable}
    return cls(
        model=model,
        optimizer=optimizer(model.parameters(), lr=lr, **more),
        criterion=nn.CrossEntropyLoss(label_smoothing=0.1),
        evaluator=evaluator or EvaluationPlugin(),
        plugins=plugins,
        **{"meta_batch_size": 3, "steps": 6, "eval_mb_size": 50, **settings},
    )


def drawing_on_device(strategy, *, at_once):
    """As on a GPU, but for the recording: every step is taken as it is."""
    strategy.execution.draws = DeviceDraws(strategy.buffer, seed=1)
    strategy.execution.recorded._record = lambda: False
    if not at_once:
        strategy.execution.recorded.possible = lambda: False
    return strategy


def recordable():
    """A learner on what is taken for a GPU, in the middle of a stream."""
    strategy = learner(optimizer=torch.optim.Adam, capturable=True)
    strategy.execution.draws = DeviceDraws(strategy.buffer, seed=1)
    return strategy


def another_engine(strategy):
    return make_engine(model=strategy.model, criterion=strategy._criterion, **strategy._settings_of_now)


CHANGES = {
    "learning rate": lambda s: s.optimizer.param_groups[0].update(lr=0.5),
    "weight decay": lambda s: s.optimizer.param_groups[0].update(weight_decay=0.5),
    "a frozen parameter": lambda s: next(s.model.parameters()).requires_grad_(False),
    "a parameter no longer trained": lambda s: s.optimizer.param_groups[0]["params"].pop(),
    "a new parameter": lambda s: setattr(s.model[-1], "bias", nn.Parameter(torch.zeros(10))),
    "a mode": lambda s: s.model[-1].eval(),
    "a number of a layer": lambda s: setattr(s.model.norm1, "eps", 0.1),
    "a number of the criterion": lambda s: setattr(s._criterion, "label_smoothing", 0.3),
    "a buffer of the criterion": lambda s: setattr(s._criterion, "weight", torch.ones(10)),
    "inner learning rate": lambda s: setattr(s.engine, "inner_lr", 0.3),
    "inner steps": lambda s: setattr(s.engine, "inner_steps", 2),
    "another engine": lambda s: setattr(s, "_engine", another_engine(s)),
    "another layer": lambda s: setattr(s.model, "relu1", nn.Tanh()),
    "a hook of a layer": lambda s: s.model[0].register_forward_hook(lambda *_: None),
    "query size": lambda s: setattr(s, "query_size", 3),
    "the draws' tables": lambda s: s.execution.draws._make_room(200, 2000),
    "a hook of the optimiser": lambda s: s.optimizer.register_step_post_hook(lambda *_: None),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_step_is_recorded_anew_when_anything_that_it_fixed_has_changed(digits, change):
    strategy = recordable()
    for number, round in enumerate(digits.train_stream[:2]):
        strategy.buffer.add(round)
        strategy.execution.draws.take_in(dict.fromkeys(range(number + 1), 1.0))
    key = strategy.execution.recorded._found_key
    before = key()
    assert key() == before
    first, again = strategy.engine, CHANGES[change]
    again(strategy)
    assert key() != before
    del first  # kept until here, so that another engine cannot lie where it was


def test_new_data_alone_need_no_new_recording(digits):
    strategy = recordable()
    pieces = list(arrivals(digits.train_stream[0], [10, 20, 30, 40]))
    strategy.buffer.add(digits.train_stream[1])
    strategy.buffer.add(pieces[0])
    strategy.execution.draws.take_in({0: 1.0})
    before = strategy.execution.recorded._found_key()
    strategy.buffer.add(pieces[1])
    strategy.execution.draws.take_in({0: 1.0, 1: 2.0})
    assert strategy.execution.recorded._found_key() == before


class Counting(torch.optim.SGD):
    """An optimiser of somebody's own, which may count in Python."""


@pytest.mark.parametrize(
    ("optimizer", "settings", "inside"),
    [
        (torch.optim.SGD, {}, True),
        (torch.optim.SGD, {"lr": torch.tensor(0.1)}, False),
        (torch.optim.Adam, {"capturable": True}, True),
        (torch.optim.Adam, {}, False),
        (torch.optim.Adagrad, {}, False),
        (Counting, {}, False),
    ],
)
def test_an_optimiser_that_counts_on_the_host_steps_between_replays(optimizer, settings, inside):
    assert learner(optimizer=optimizer, **settings).execution.recorded._updates_inside is inside


def test_steps_at_once_are_the_steps_of_avalanches_loop(digits):
    results = []
    for at_once in (True, False):
        strategy = drawing_on_device(learner(), at_once=at_once)
        curve = list(evaluations(strategy, digits, 20))
        clock = {n: v for n, v in vars(strategy.clock).items() if isinstance(v, int)}
        state = [v for part in strategy.optimizer.state.values() for v in part.values()]
        results.append((curve, clock, strategy.cost, [*strategy.model.state_dict().values(), *state]))
    (curve, clock, cost, tensors), (curve_2, clock_2, cost_2, tensors_2) = results
    assert curve == curve_2
    assert clock == clock_2
    assert clock["train_iterations"] == 36
    assert cost == cost_2
    assert all(torch.equal(a, b) for a, b in zip(tensors, tensors_2, strict=True))


def test_the_hooks_of_an_iteration_are_seen_wherever_they_are():
    class Acting(SupervisedPlugin):
        def after_backward(self, strategy, *args, **kwargs):
            pass

    class Between(SupervisedPlugin):
        def before_training_exp(self, strategy, *args, **kwargs):
            pass

    class Hooked(FTML):
        def _after_update(self, **kwargs):
            super()._after_update(**kwargs)

    class Weighing(FTML):
        def criterion(self):
            return super().criterion() * (1 + self.clock.train_iterations)

    ours = EvaluationPlugin(
        metrics.efficiency_metrics(threshold=("accuracy", 0.8)), metrics.learning_curve_metrics(metric="accuracy")
    )
    assert not acts_inside_iterations(learner())
    assert not acts_inside_iterations(learner(evaluator=ours, plugins=[Between(), per_round(Between())]))
    assert acts_inside_iterations(learner(plugins=[Acting()]))
    assert acts_inside_iterations(learner(plugins=[per_round(Acting())]))
    assert acts_inside_iterations(learner(evaluator=EvaluationPlugin(loss_metrics(minibatch=True))))
    assert acts_inside_iterations(learner(evaluator=EvaluationPlugin(accuracy_metrics(epoch=True))))
    assert acts_inside_iterations(learner(evaluator=EvaluationPlugin(loggers=[InteractiveLogger()])))
    assert acts_inside_iterations(learner(cls=Hooked))
    assert acts_inside_iterations(learner(cls=Weighing))
    assert not acts_inside_iterations(
        learner(evaluator=EvaluationPlugin(accuracy_metrics(experience=True, stream=True)))
    )
    assert acts_inside_iterations(learner(eval_every=1, peval_mode="iteration"))
    assert not acts_inside_iterations(learner(eval_every=1))


def test_ftml_of_the_quick_leaderboard_has_nothing_inside_iterations(tmp_path):
    from ftml_bench.runs import cell as cells
    from ftml_bench.runs import definition as definitions

    definition = definitions.load("quick")
    for spec in definition.benchmarks:
        benchmark = cells.build_benchmark(spec, 0, None)
        events = TensorboardLogger(str(tmp_path))
        strategy = cells.build_strategy(spec, spec.row("FTML"), benchmark, 0, loggers=[events])
        assert not acts_inside_iterations(strategy)


def test_a_saved_state_holds_the_draws_of_the_device(digits):
    strategy = drawing_on_device(learner(), at_once=True)
    pieces = list(arrivals(digits.train_stream[0], 20))
    strategy.train(pieces[0], eval_streams=[])
    state = strategy.state_dict()
    expected = strategy.execution.draws.split(3, 4, 4)
    other = drawing_on_device(learner(), at_once=True)
    other.load_state_dict(state, pieces[:1])
    other.execution.draws.take_in({0: 1.0})
    for a, b in zip(flat(other.execution.draws.split(3, 4, 4)), flat(expected), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(
    ("sampler", "message"),
    [
        (lambda t: torch.zeros(t), "one of them above 0"),
        (lambda t: -torch.ones(t), "at least 0"),
        (lambda t: torch.ones(t + 1), "expected 1 weights"),
    ],
)
def test_weights_that_no_round_can_be_drawn_by_are_refused(digits, sampler, message):
    with pytest.raises(UsageError, match=message):
        learner(task_sampler=sampler).train(digits.train_stream[0], eval_streams=[])
