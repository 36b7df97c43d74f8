"""Warm-up rounds and the next arrival as the test, against loops written out; in a leaderboard, saved and reported."""

from __future__ import annotations

import csv
import json

import pytest
import torch
from avalanche.training import Naive
from avalanche.training.plugins import EvaluationPlugin

from ftml_bench import report
from ftml_bench.benchmarks import LinearRegression, arrivals
from ftml_bench.errors import UsageError
from ftml_bench.models import SinusoidMLP
from ftml_bench.protocol import WarmUp, all_arrivals, keys, run
from ftml_bench.runs import resuming, verify
from ftml_bench.runs.building import measures_of
from ftml_bench.runs.cell import check, run_cell
from ftml_bench.runs.definition import from_dict, load
from ftml_bench.runs.schedule import run_cells
from ftml_bench.strategies import FTML, FollowTheLeader, FromScratch, TrainOnEverything
from tests.buffer.points import stream

pytestmark = pytest.mark.usefixtures("undrawn")

SIZES = [4, 3, 3]


def learner(strategy=FTML, benchmark=None, **settings):
    torch.manual_seed(0)
    model = SinusoidMLP(hidden=8)
    own = {"meta_batch_size": 3, "support_size": 3, "query_size": 2, "inner_steps": 2} if strategy is FTML else {}
    return strategy(
        model=model,
        optimizer=torch.optim.Adam(model.parameters(), lr=0.01),
        criterion=benchmark.criterion,
        train_mb_size=8,
        evaluator=EvaluationPlugin(),
        **{"steps": 2, **own, **settings},
    )


def parameters(strategy):
    return torch.cat([p.detach().flatten() for p in strategy.model.parameters()])


def loss_on(strategy, benchmark, task, x, y):
    """By the copy that predicts the task, outside of any evaluation loop."""
    strategy.model.eval()
    with torch.no_grad():
        return benchmark.criterion(strategy.model_for(benchmark.test_stream[task])(x), y).item()


def points(experience):
    return experience.stacked.take(torch.arange(len(experience.stacked)))


@pytest.mark.parametrize("strategy", [FTML, TrainOnEverything, FromScratch, FollowTheLeader])
def test_the_next_arrival_scores_the_one_before(tiny_sinusoids, strategy):
    by_hand = learner(strategy, tiny_sinusoids)
    expected = []
    for round in tiny_sinusoids.train_stream:
        first, second, third = arrivals(round, SIZES, seed=5)
        for arrival, following in ((first, second), (second, third)):
            by_hand.train(arrival, eval_streams=[])
            expected.append(loss_on(by_hand, tiny_sinusoids, round.current_experience, *points(following)))
    strategy_run = learner(strategy, tiny_sinusoids)
    got = run(strategy_run, tiny_sinusoids, arrivals=SIZES, seed=5, score="next_arrival", progress=False)
    assert [(e.round, e.datapoints) for e in got] == [(t, n) for t in range(3) for n in (4, 7)]
    assert [e.loss for e in got] == pytest.approx(expected, rel=1e-6)
    # the last arrival of a round, which is the test of the one before, is never trained on
    assert {len(strategy_run.buffer.rounds[t]) for t in range(3)} == {7}
    assert torch.equal(parameters(strategy_run), parameters(by_hand))


def test_the_last_arrival_that_is_trained_on_ends_its_round(tiny_sinusoids):
    seen = list(all_arrivals(tiny_sinusoids, SIZES, score="next_arrival"))
    assert [(a.is_first_subexp, a.is_last_subexp, a.sub_stream_length) for a in seen] == 3 * [
        (True, False, 2),
        (False, True, 2),
    ]
    held_out = tiny_sinusoids.test_stream[0]
    assert (len(held_out.dataset), len(held_out.stacked)) == (25, 25)  # left as it was


@pytest.mark.parametrize("strategy", [FTML, TrainOnEverything, FollowTheLeader])
def test_rounds_of_a_warm_up_are_handed_over_then_trained_on(tiny_sinusoids, strategy):
    by_hand = learner(strategy, tiny_sinusoids)
    first, second = (next(arrivals(round, 6, seed=5)) for round in tiny_sinusoids.train_stream[:2])
    by_hand.buffer.add(first)  # the first of them costs nothing, all steps come with the second
    by_hand.steps = 7
    by_hand.train(second, eval_streams=[])
    by_hand.steps = 2
    expected = []
    for arrival in arrivals(tiny_sinusoids.train_stream[2], SIZES, seed=5):
        by_hand.train(arrival, eval_streams=[])
        expected.append(loss_on(by_hand, tiny_sinusoids, 2, *points(tiny_sinusoids.test_stream[2])))
    strategy_run = learner(strategy, tiny_sinusoids)
    got = run(strategy_run, tiny_sinusoids, arrivals=SIZES, seed=5, warmup=WarmUp(2, 6, 7), progress=False)
    assert [(e.round, e.datapoints) for e in got] == [(2, 4), (2, 7), (2, 10)]
    assert [e.loss for e in got] == pytest.approx(expected, rel=1e-6)
    assert [e.steps for e in got] == [9, 11, 13]
    assert [len(strategy_run.buffer.rounds[t]) for t in range(3)] == [6, 6, 10]


def test_a_follower_that_trains_at_the_end_of_rounds_owes_the_steps_of_the_warm_up(tiny_sinusoids):
    strategy = learner(FollowTheLeader, tiny_sinusoids, train_at="round_end")
    got = run(strategy, tiny_sinusoids, arrivals=SIZES, warmup=WarmUp(2, 6, 7), progress=False)
    assert [e.steps for e in got] == [7, 7, 7]  # with both of the rounds before, ahead of any score


def test_without_numbers_a_warm_up_takes_whole_rounds_and_an_arrivals_steps_for_each(tiny_sinusoids):
    got = run(learner(FTML, tiny_sinusoids), tiny_sinusoids, arrivals=10, warmup=WarmUp(2), progress=False)
    assert got[0].steps == 2 * 2 + 2
    epochs = learner(TrainOnEverything, tiny_sinusoids, steps=None)  # minibatches of 8: two for ten points
    got = run(epochs, tiny_sinusoids, arrivals=10, warmup=WarmUp(2), progress=False)
    assert got[0].steps == 2 * 2 + 2
    assert epochs.steps is None


def test_what_will_be_evaluated_is_known_beforehand(tiny_sinusoids):
    assert keys(tiny_sinusoids, SIZES, warmup=WarmUp(1), score="next_arrival") == [
        (1, 1, 4),
        (1, 1, 7),
        (2, 2, 4),
        (2, 2, 7),
    ]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"warmup": WarmUp(3)}, "warmup_rounds 3: expected fewer than the 3 rounds of the stream"),
        ({"warmup": WarmUp(1, 11)}, "warmup_datapoints 11: a round has 10"),
        ({"score": "next"}, "unknown score 'next'"),
    ],
)
def test_what_cannot_be_is_refused(tiny_sinusoids, settings, message):
    with pytest.raises(UsageError, match=message):
        run(learner(FTML, tiny_sinusoids), tiny_sinusoids, arrivals=SIZES, progress=False, **settings)


def test_a_stock_strategy_has_no_buffer_to_warm_up(tiny_sinusoids):
    model = SinusoidMLP(hidden=8)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    stock = Naive(model=model, optimizer=optimizer, criterion=tiny_sinusoids.criterion, evaluator=EvaluationPlugin())
    with pytest.raises(UsageError, match="Naive has no buffer"):
        run(stock, tiny_sinusoids, arrivals=SIZES, warmup=WarmUp(1), progress=False)


# -- in a leaderboard


def board(**settings):
    return from_dict(
        {
            "name": "small",
            "seeds": [0, 1],
            "benchmarks": {
                "sinusoids": {
                    "benchmark": "Sinusoids",
                    "settings": {"rounds": 5, "images_per_round": 10, "held_out_per_round": 20},
                    "arrivals": SIZES,
                    "checkpoints": [4],
                    "threshold": ["loss", 1.0],
                    "steps": 2,
                    "optimizer": {"name": "Adam", "lr": 0.01},
                    "strategies": {"FTML": {"meta_batch_size": 2}, "TrainOnEverything": {"train_mb_size": 8}},
                    **settings,
                }
            },
        },
        "small",
    )


AUTHORS = {"warmup_rounds": 2, "warmup_datapoints": 6, "warmup_steps": 3, "score": "next_arrival"}


def curve(folder):
    with (folder / "curve.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_leaderboard_of_it_is_run_verified_and_reported(tmp_path, capsys):
    definition = board(**AUTHORS)
    run_cells(definition, tmp_path, data=None, quiet=True)
    found = curve(tmp_path / "sinusoids/FTML/seed-0")
    assert [(row["round_from_0"], row["datapoints"]) for row in found] == [(t, n) for t in "234" for n in "47"]
    said = json.loads((tmp_path / "sinusoids/FTML/seed-0/record.json").read_text())["protocol"]
    assert said["warmup"] == {"rounds": 2, "datapoints": 6, "steps": 3}
    assert (said["score"], said["rounds"], said["datapoints_per_round"]) == ("next_arrival", 3, 7)
    assert verify.faults(tmp_path) == []
    text = report.write(tmp_path)
    assert "rounds 3–3 → 4–5" in text  # by their numbers in the stream
    assert '"x":[3,4,5]' in (tmp_path / "report.html").read_text()


def test_an_interrupted_cell_goes_on_after_its_warm_up(tmp_path, monkeypatch):
    definition = board(**AUTHORS)
    cell = definition.cells()[0]
    monkeypatch.setattr(resuming, "SAVE_EVERY", 0.0)
    run_cell(definition, cell, tmp_path / "whole", None, lambda done, total: None)

    def interrupt(done, total):
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_cell(definition, cell, tmp_path / "parted", None, interrupt)
    counts = []
    run_cell(definition, cell, tmp_path / "parted", None, lambda done, total: counts.append(done))
    assert counts[0] >= 2
    assert curve(tmp_path / "parted") == curve(tmp_path / "whole")


def test_the_hash_of_a_definition_changes_with_them_alone():
    hashes = {board().hash, board(warmup_rounds=2).hash, board(score="next_arrival").hash}
    assert len(hashes) == 3
    assert load("quick").hash == "9eef41405f1c"
    assert board(score="held_out").benchmark("sinusoids").score == "held_out"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"warmup_steps": 3}, "sinusoids: warmup_steps: expected warmup_rounds beside it"),
        ({"warmup_datapoints": 3}, "sinusoids: warmup_datapoints: expected warmup_rounds beside it"),
        ({"warmup_rounds": 0}, "sinusoids: warmup_rounds: expected a whole number of at least 1, got 0"),
        ({"score": "next"}, "sinusoids: score: unknown score 'next'"),
        (
            {"score": "next_arrival", "measures": ["regret"]},
            "sinusoids: regret is of the held-out data of all rounds: expected no score: next_arrival",
        ),
        (
            {"warmup_rounds": 1, "strategies": {"FTML": {}, "best": {"strategy": "FTML", "comparator": True}}},
            "sinusoids: best is a comparator, which knows all rounds: expected no warmup_rounds",
        ),
    ],
)
def test_a_definition_that_cannot_be_meant_is_refused(settings, message):
    with pytest.raises(UsageError, match=message):
        board(**settings)


@pytest.mark.parametrize("settings", [{"warmup_rounds": 2}, {"score": "next_arrival"}])
def test_what_a_stream_measures_by_itself_is_left_out(settings):
    """Its regret is of the held-out data of all rounds."""
    benchmark = LinearRegression(rounds=3)
    (plain,), (other,) = (board(benchmark="LinearRegression", **more).benchmarks for more in ({}, settings))
    assert measures_of(plain, benchmark) == ("regret",)
    assert measures_of(other, benchmark) == ()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"warmup_rounds": 5}, "warmup_rounds 5: expected fewer than the 5 rounds of the stream"),
        ({"warmup_rounds": 1, "warmup_datapoints": 11}, "warmup_datapoints 11: a round has 10"),
        (
            {"warmup_rounds": 1, "strategies": {"Naive": {"strategy": "avalanche.training:Naive"}}},
            "sinusoids: Naive: avalanche.training:Naive has no buffer: no rounds can be known to it beforehand",
        ),
        ({"score": "next_arrival", "checkpoints": [10]}, "no arrival ends at checkpoint 10: the nearest ends at 7"),
    ],
)
def test_what_the_stream_or_a_row_cannot_carry_is_refused_before_anything_runs(settings, message):
    with pytest.raises(UsageError, match=message):
        check(board(**settings), None)


def test_a_round_that_comes_whole_has_no_next_arrival():
    """Found before anything is trained, also where it is a later round."""
    benchmark = stream(10, 3, 10)
    strategy = learner(FTML, benchmark)
    with pytest.raises(
        UsageError, match=r"^score next_arrival: round 2 \(.*\) of .* comes in one arrival: expected at least two"
    ):
        run(strategy, benchmark, arrivals=5, score="next_arrival", progress=False)
    assert strategy.cost.steps == 0


@pytest.mark.parametrize(("train_at", "steps"), [("arrivals", None), ("round_end", 7)])
def test_one_round_is_too_little_for_who_trains_on_those_before(tiny_sinusoids, train_at, steps):
    """Its steps are refused, not lost; a learner that takes them when the round has ended does take them."""
    strategy = learner(FollowTheLeader, tiny_sinusoids, train_at=train_at)
    if steps is None:
        with pytest.raises(UsageError, match=r"^warmup_rounds 1: .* FollowTheLeader trains on nothing: expected more"):
            run(strategy, tiny_sinusoids, arrivals=SIZES, warmup=WarmUp(1, 6, 7), progress=False)
    else:
        first, *_ = run(strategy, tiny_sinusoids, arrivals=SIZES, warmup=WarmUp(1, 6, 7), progress=False)
        assert first.steps == steps


def test_a_leaderboard_whose_rounds_come_whole_has_no_next_arrival():
    with pytest.raises(UsageError, match="score next_arrival: a round comes in one arrival"):
        check(board(score="next_arrival", arrivals=10, checkpoints=[10]), None)
