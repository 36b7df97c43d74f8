"""The protocol against the loop written out, its counts by hand, and that it leaves the strategy as it was."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from avalanche.benchmarks import benchmark_from_datasets
from avalanche.core import SupervisedPlugin
from avalanche.evaluation.metrics import accuracy_metrics, loss_metrics
from avalanche.training import Naive
from avalanche.training.plugins import EvaluationPlugin

from ftml_bench.benchmarks import Sinusoids, arrivals
from ftml_bench.errors import UsageError
from ftml_bench.models import RainbowNet, SinusoidMLP
from ftml_bench.protocol import Evaluation, evaluations, held_out, run, total_evaluations
from ftml_bench.strategies import FTML, FollowTheLeader, FromScratch, TrainOnEverything

INNER, UPDATE, TASKS, SUPPORT, QUERY = 2, 3, 4, 3, 2


def learner(strategy, benchmark, **settings):
    torch.manual_seed(0)
    image = benchmark.title == "Rainbow digits"
    model = RainbowNet(filters=4, layers=3, image_size=14) if image else SinusoidMLP(hidden=8)
    if strategy is FTML:
        sizes = {"meta_batch_size": TASKS, "support_size": SUPPORT, "query_size": QUERY}
        settings = {"inner_steps": INNER, **sizes, **settings}
    if strategy in (FTML, FollowTheLeader):
        settings = {"inner_lr": benchmark.inner_lr, "update_steps": UPDATE, **settings}
    return strategy(
        model=model,
        optimizer=torch.optim.Adam(model.parameters(), lr=0.01),
        criterion=benchmark.criterion,
        train_mb_size=8,
        eval_mb_size=20,
        **{"steps": 2, "evaluator": EvaluationPlugin(), **settings},
    )


def parameters(strategy):
    return torch.cat([p.detach().flatten() for p in strategy.model.parameters()])


@pytest.mark.parametrize("strategy", [FTML, TrainOnEverything, FromScratch, FollowTheLeader])
@pytest.mark.parametrize("stream", ["tiny_sinusoids", "tiny_digits"])
def test_a_run_is_the_loop_written_out(request, stream, strategy):
    benchmark = request.getfixturevalue(stream)
    is_image = stream == "tiny_digits"
    sizes, ends = ([12, 9], [12, 21, 30]) if is_image else (4, [4, 8, 10])
    by_hand = learner(
        strategy,
        benchmark,
        evaluator=EvaluationPlugin(
            loss_metrics(experience=True), accuracy_metrics(experience=True) if is_image else []
        ),
    )
    expected = []
    for round in benchmark.train_stream:
        for arrival in arrivals(round, sizes, seed=5):
            by_hand.train(arrival, eval_streams=[])
            values = by_hand.eval([benchmark.test_stream[round.current_experience]])
            by_hand.evaluator.reset_last_metrics()
            loss = next(v for name, v in values.items() if name.startswith("Loss_Exp"))
            accuracy = next((v for name, v in values.items() if name.startswith("Top1_Acc_Exp")), None)
            expected.append((round.current_experience, loss, accuracy))
    strategy_run = learner(strategy, benchmark)
    got = run(strategy_run, benchmark, arrivals=sizes, seed=5, progress=False)
    assert torch.equal(parameters(strategy_run), parameters(by_hand))
    assert [e.datapoints for e in got] == ends * len(benchmark.train_stream)
    assert [e.round for e in got] == [e.evaluated_round for e in got] == [round for round, _, _ in expected]
    assert [e.loss for e in got] == pytest.approx([loss for _, loss, _ in expected], rel=1e-6)
    if is_image:
        assert [e.accuracy for e in got] == pytest.approx([accuracy for _, _, accuracy in expected], rel=1e-6)
    else:
        assert {e.accuracy for e in got} == {None}
    others = run(learner(strategy, benchmark), benchmark, arrivals=sizes, seed=6, progress=False)
    assert [e.loss for e in others] != [e.loss for e in got]  # the seed of the order of arrival counts


def test_the_fields_of_an_evaluation_in_order(tiny_sinusoids):
    got = run(learner(TrainOnEverything, tiny_sinusoids), tiny_sinusoids, arrivals=[6], seed=0, progress=False)
    loss = got[1].loss
    assert type(loss) is float
    assert got[1] == Evaluation(
        round=0, evaluated_round=0, datapoints=10, loss=loss, accuracy=None, steps=4, gradient_evaluations=32
    )


ONE_STEP = TASKS * (INNER * SUPPORT + QUERY)


@pytest.mark.parametrize(
    ("strategy", "settings", "per_step", "updates", "steps_of_round_0"),
    [
        (FTML, {}, ONE_STEP + TASKS * INNER * SUPPORT, UPDATE, 1),
        (FTML, {"second_order": False}, ONE_STEP, UPDATE, 1),
        (FTML, {"update_steps": None}, ONE_STEP + TASKS * INNER * SUPPORT, INNER, 1),
        (FTML, {"inner_steps": 0, "update_steps": 5}, TASKS * QUERY, 5, 1),
        (FTML, {"engine": "loop"}, ONE_STEP + TASKS * INNER * SUPPORT, UPDATE, 1),
        (TrainOnEverything, {}, 8, 0, 1),
        (FromScratch, {"step_factor": 3}, 8, 0, 1),
        (FollowTheLeader, {"group_size": 4}, 8, UPDATE, 0),
        (FollowTheLeader, {"group_size": 4, "fine_tuning": "adam"}, 8, UPDATE, 0),
    ],
)
def test_steps_and_gradient_evaluations_are_counted_as_the_protocol_says(
    tiny_sinusoids, strategy, settings, per_step, updates, steps_of_round_0
):
    got = run(learner(strategy, tiny_sinusoids, **settings), tiny_sinusoids, arrivals=[5, 3, 2], progress=False)
    steps = gradient_evaluations = 0
    for evaluation, (round, datapoints) in zip(got, [(t, n) for t in range(3) for n in (5, 8, 10)], strict=True):
        new = 2 * settings.get("step_factor", 1) * (steps_of_round_0 if round == 0 else 1)
        steps += new
        gradient_evaluations += new * per_step + updates * datapoints
        assert (evaluation.round, evaluation.datapoints) == (round, datapoints)
        assert evaluation.steps == steps
        assert evaluation.gradient_evaluations == gradient_evaluations


def test_the_update_procedure_counts_the_points_that_it_takes(tiny_sinusoids):
    got = run(learner(FTML, tiny_sinusoids, update_size=6), tiny_sinusoids, arrivals=[5, 5], progress=False)
    per_arrival = 2 * (ONE_STEP + TASKS * INNER * SUPPORT)
    spent = [e.gradient_evaluations for e in got]
    increments = [after - before - per_arrival for before, after in pairwise(spent)]
    assert increments == [UPDATE * n for n in (6, 5, 6, 5, 6)]


def test_steps_follow_the_size_of_an_arrival_where_none_are_given(tiny_sinusoids):
    strategy = learner(TrainOnEverything, tiny_sinusoids, steps=None)  # minibatches of 8
    got = run(strategy, tiny_sinusoids, arrivals=[9, 1], progress=False)
    assert [e.steps for e in got] == [2, 3, 5, 6, 8, 9]


def test_held_out_data_are_found_by_experience_arrival_and_number(tiny_sinusoids):
    for t, round in enumerate(tiny_sinusoids.train_stream):
        expected = tiny_sinusoids.test_stream[t]
        assert held_out(tiny_sinusoids, round) is expected
        assert held_out(tiny_sinusoids, t) is expected
        assert held_out(tiny_sinusoids, next(arrivals(round, 4))) is expected
        assert expected.current_experience == t
    with pytest.raises(IndexError):
        held_out(tiny_sinusoids, 3)


@pytest.mark.parametrize(
    ("sizes", "total"), [(10, 3), (3, 12), (1, 30), ([2, 3], 12), ([4, 100], 6), ([1, 2, 3, 4], 12)]
)
def test_the_number_of_evaluations_is_known_beforehand(tiny_sinusoids, sizes, total):
    assert total_evaluations(tiny_sinusoids, sizes) == total
    assert len(run(learner(FTML, tiny_sinusoids, steps=1), tiny_sinusoids, arrivals=sizes, progress=False)) == total


def test_without_sizes_the_benchmarks_own_are_taken():
    benchmark = Sinusoids(rounds=2, images_per_round=10, held_out_per_round=5)
    assert benchmark.arrivals == 4
    got = run(learner(TrainOnEverything, benchmark), benchmark, progress=False)
    assert [e.datapoints for e in got] == [4, 8, 10] * 2


def test_progress_is_shown_by_the_strategys_name_or_not_at_all(tiny_sinusoids, capsys):
    run(learner(FTML, tiny_sinusoids), tiny_sinusoids, arrivals=10, progress=False)
    assert capsys.readouterr() == ("", "")
    run(learner(FTML, tiny_sinusoids), tiny_sinusoids, arrivals=10)
    out, err = capsys.readouterr()
    assert out == ""
    assert "FTML: 100%" in err
    assert "3/3" in err


# -- what is left behind


class Fail(SupervisedPlugin):
    """Raises in the given callback, at its third call."""

    def __init__(self, callback):
        super().__init__()
        self.calls = 0
        setattr(self, callback, self.fail)

    def fail(self, strategy, *args, **kwargs):
        self.calls += 1
        if self.calls == 3:
            raise RuntimeError("of a plugin")


def test_a_run_leaves_the_plugins_as_they_were(tiny_sinusoids):
    strategy = learner(FTML, tiny_sinusoids, plugins=[SupervisedPlugin()])
    before = list(strategy.plugins)
    run(strategy, tiny_sinusoids, arrivals=5, progress=False)
    assert [id(p) for p in strategy.plugins] == [id(p) for p in before]


@pytest.mark.parametrize("callback", ["before_training_exp", "after_backward", "after_eval_iteration", "before_eval"])
def test_a_run_that_fails_leaves_the_plugins_as_they_were(tiny_sinusoids, callback):
    strategy = learner(FTML, tiny_sinusoids, plugins=[Fail(callback)])
    before = list(strategy.plugins)
    with pytest.raises(RuntimeError, match="of a plugin"):
        run(strategy, tiny_sinusoids, arrivals=5, progress=False)
    assert [id(p) for p in strategy.plugins] == [id(p) for p in before]


def test_a_run_that_is_left_in_the_middle_leaves_the_plugins_as_they_were(tiny_sinusoids):
    strategy = learner(FTML, tiny_sinusoids)
    before = list(strategy.plugins)
    steps = evaluations(strategy, tiny_sinusoids, 5)
    next(steps)
    assert [id(p) for p in strategy.plugins] == [id(p) for p in before]  # between two evaluations it may be saved
    steps.close()
    assert [id(p) for p in strategy.plugins] == [id(p) for p in before]


def test_bad_sizes_are_refused_before_a_step_is_taken(tiny_sinusoids):
    strategy = learner(FTML, tiny_sinusoids)
    before = list(strategy.plugins)
    with pytest.raises(ValueError, match="arrival size -1: expected 1 or more"):
        run(strategy, tiny_sinusoids, arrivals=[5, -1], progress=False)
    assert strategy.cost.steps == 0
    assert list(strategy.plugins) == before


def test_avalanches_own_scenarios_have_no_sizes_of_arrivals(tiny_sinusoids):
    parts = {
        stream.name: [experience.dataset for experience in stream]
        for stream in (tiny_sinusoids.train_stream, tiny_sinusoids.test_stream)
    }
    strategy = learner(FTML, tiny_sinusoids)
    with pytest.raises(UsageError, match="a CLScenario says no sizes of arrivals: expected arrivals=, as arrivals=100"):
        run(strategy, benchmark_from_datasets(**parts), progress=False)
    with pytest.raises(UsageError, match="3 rounds of data, 1 of held-out data: expected held-out data of each"):
        run(strategy, benchmark_from_datasets(**parts | {"test": parts["test"][:1]}), arrivals=5, progress=False)
    assert strategy.cost.steps == 0


def test_any_avalanche_strategy_runs_and_its_steps_are_counted(tiny_digits):
    model = tiny_digits.model()
    naive = Naive(model=model, optimizer=torch.optim.SGD(model.parameters(), lr=0.1), train_mb_size=5, evaluator=None)
    results = run(naive, tiny_digits, arrivals=15, progress=False)
    assert [e.steps for e in results] == [3, 6, 9, 12]
    assert [e.gradient_evaluations for e in results] == [15, 30, 45, 60]
