"""Ordinary Avalanche scripts: stock streams of every kind."""

import re
from functools import partial
from pathlib import Path

import avalanche.benchmarks
import pytest
import torch
from avalanche.benchmarks import (
    FixedSizeExperienceSplitter,
    SplitMNIST,
    split_online_stream,
    task_incremental_benchmark,
)
from avalanche.evaluation.metrics import accuracy_metrics, forgetting_metrics, loss_metrics
from avalanche.training import Naive
from avalanche.training.plugins import EvaluationPlugin

from ftml_bench.strategies import FTML, FollowTheLeader
from tests.strategies.avalanche.pipelines import (
    STREAMS,
    class_incremental,
    every_learner,
    learner,
    mlp_for,
    same,
    state,
)


@every_learner
@pytest.mark.parametrize("name", STREAMS)
def test_an_ordinary_script_runs_on_every_stock_stream(name, cls, request):
    stream = STREAMS[name](request.getfixturevalue)
    model = mlp_for(stream)
    evaluator = EvaluationPlugin(accuracy_metrics(experience=True, stream=True), loss_metrics(experience=True))
    strategy = learner(cls, model, evaluator=evaluator, train_epochs=2, eval_every=1, steps=1)
    start = state(model)
    for experience in stream.train_stream:
        strategy.train(experience, eval_streams=[stream.test_stream])
        assert len(strategy.buffer.rounds[experience.current_experience]) == len(experience.dataset)
    results = strategy.eval(stream.test_stream)
    evaluated = [key for key in results if key.startswith("Top1_Acc_Exp/eval_phase/test_stream")]
    assert len(evaluated) == len(list(stream.test_stream))
    assert all(0 <= results[key] <= 1 for key in evaluated)
    assert all(value.isfinite().all() for value in model.state_dict().values())
    assert not same(start, state(model))
    rounds = len(strategy.buffer.rounds)
    # an epoch each of one step; who leaves out the first round has one round less
    assert strategy.cost.steps == 2 * (rounds - 1 if cls is FollowTheLeader else rounds)


@every_learner
def test_it_learns_on_a_stock_stream(cls, mnist):
    """Rows of pixels tell the classes apart."""
    stream = SplitMNIST(5, return_task_id=True, seed=1, dataset_root=mnist)
    evaluator = EvaluationPlugin(accuracy_metrics(stream=True))
    changes = {"update_steps": 30} if cls is FollowTheLeader else {}
    strategy = learner(cls, mlp_for(stream), evaluator=evaluator, train_epochs=20, lr=0.1, **changes)
    for experience in stream.train_stream:
        strategy.train(experience, eval_streams=[])
    last = strategy.eval(stream.test_stream[4])
    assert last["Top1_Acc_Stream/eval_phase/test_stream/Task004"] > 0.8


@every_learner
@pytest.mark.parametrize("size", [8, 10])
@pytest.mark.parametrize("boundaries", [False, True])
def test_mini_experiences_of_avalanches_own_splitter_are_filed_under_their_round(cls, boundaries, size):
    stream = task_incremental_benchmark(class_incremental())
    evaluator = EvaluationPlugin(accuracy_metrics(experience=True), forgetting_metrics(experience=True, stream=True))
    strategy = learner(cls, mlp_for(stream), evaluator=evaluator, steps=1)
    seen = []
    for piece in split_online_stream(stream.train_stream, size, access_task_boundaries=boundaries, seed=0):
        strategy.train(piece)  # evaluates nothing: eval_every is -1
        seen.append({number: len(r) for number, r in strategy.buffer.rounds.items()})
        results = strategy.eval(stream.test_stream)
    pieces = -(-24 // size)
    ends = [min((i + 1) * size, 24) for i in range(pieces)]
    assert seen == [{0: n} for n in ends] + [{0: 24, 1: n} for n in ends]
    assert strategy.buffer.rounds[1].labels == (1,)
    # rounds for experiences: with the splitter's own numbers there would be Exp002, 003, ... and a forgetting of 0
    assert {key[-6:] for key in results if key.startswith("ExperienceForgetting")} == {"Exp000"}


def test_data_of_a_stream_cut_by_avalanche_may_come_twice_and_count_once():
    stream = class_incremental()
    strategy = learner(FTML, mlp_for(stream), steps=1)
    for _ in range(2):
        for piece in split_online_stream(stream.train_stream, 10, seed=0):
            strategy.train(piece)
    assert {number: len(r) for number, r in strategy.buffer.rounds.items()} == {0: 24, 1: 24}


def test_pieces_of_the_splitter_used_without_a_stream_are_taken_too():
    stream = class_incremental()
    strategy = learner(FTML, mlp_for(stream), steps=1)
    for experience in stream.train_stream:
        for piece in FixedSizeExperienceSplitter(experience, 10, seed=0):
            strategy.train(piece, eval_streams=[])
    assert {number: len(r) for number, r in strategy.buffer.rounds.items()} == {0: 24, 1: 24}


def test_several_experiences_may_be_given_at_once():
    stream = class_incremental()
    one, by_one = (learner(FTML, mlp_for(stream)) for _ in range(2))
    one.train(stream.train_stream, eval_streams=[])
    for experience in stream.train_stream:
        by_one.train(experience, eval_streams=[])
    assert same(state(one.model), state(by_one.model))


def test_steps_of_an_epoch_are_those_of_avalanches_naive():
    stream = class_incremental()
    ours = learner(FTML, mlp_for(stream), train_epochs=3)
    naive_model = mlp_for(stream)
    naive = Naive(
        model=naive_model,
        optimizer=torch.optim.SGD(naive_model.parameters(), lr=0.1),
        train_mb_size=16,
        train_epochs=3,
        evaluator=EvaluationPlugin(),
    )
    for strategy in (ours, naive):
        strategy.train(stream.train_stream[0], eval_streams=[])
    assert ours.clock.train_iterations == naive.clock.train_iterations == 3 * 2


def test_the_page_shows_code_that_runs(mnist, monkeypatch, capsys):
    page = (Path(__file__).parents[3] / "docs" / "avalanche.md").read_text(encoding="utf-8")
    monkeypatch.setattr(avalanche.benchmarks, "SplitMNIST", partial(SplitMNIST, dataset_root=mnist))
    blocks = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert len(blocks) == 2
    for block in blocks:
        exec(block, {})
    assert "Top1_Acc_Stream/eval_phase/test_stream" in capsys.readouterr().out
