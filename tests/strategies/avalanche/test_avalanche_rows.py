"""Avalanche's own strategies on arrivals: the budget, what they train on, costs, and what is refused."""

import random

import numpy as np
import pytest
import torch
from avalanche.core import SupervisedPlugin
from avalanche.training.plugins import EvaluationPlugin
from avalanche.training.templates import SupervisedTemplate

from ftml_bench.benchmarks import RainbowDigits, Sinusoids, arrivals
from ftml_bench.errors import UsageError
from ftml_bench.protocol import run
from ftml_bench.runs import cell as cells
from ftml_bench.runs import record
from ftml_bench.runs.definition import Cell, from_dict
from ftml_bench.strategies.avalanche.cost import Cost
from ftml_bench.strategies.avalanche.stock import on_arrivals
from tests.strategies.avalanche.stock import (
    STRATEGIES,
    Net,
    build,
    parameters,
    stock,
)


@pytest.mark.parametrize("name", STRATEGIES)
def test_a_strategy_runs_within_its_budget_and_the_same_seed_gives_the_same(name, few_digits):
    strategy = build(name)
    evaluations = run(strategy, few_digits, arrivals=8, progress=False)
    assert [e.steps for e in evaluations] == [2 * (i + 1) for i in range(9)]
    assert strategy.clock.train_iterations == 18
    assert strategy.clock.train_exp_counter == 3  # experiences are rounds
    assert torch.isfinite(parameters(strategy)).all()
    torch.rand(3)  # whatever happened in the process before
    random.random()
    again = build(name)
    for round in few_digits.train_stream:  # without any evaluation
        for arrival in arrivals(round, 8):
            again.train(arrival, eval_streams=[])
    assert torch.equal(parameters(strategy), parameters(again))
    assert strategy.cost == again.cost


# Where one arrival is a round there is nothing to work round but the bugs, and these have some.
MENDED = ("SynapticIntelligence", "MIR", "LwF", "lamaml_v2:LaMAML")


@pytest.mark.parametrize("name", [name for name in STRATEGIES if not name.endswith(MENDED)])
def test_with_a_round_an_arrival_it_is_avalanches_own_training(name, few_digits):
    ours = build(name, steps=5, seed=5)
    ours.train(few_digits.train_stream, eval_streams=[])
    theirs = stock(name, steps=5, seed=5)
    for round in few_digits.train_stream:  # one by one, since a stop would hold for the next one too
        theirs.train(round, eval_streams=[])
    assert torch.equal(parameters(ours), parameters(theirs))


def test_a_minibatch_is_drawn_from_the_rounds_data_so_far(few_digits):
    seen = []

    class Look(SupervisedPlugin):
        def before_training_iteration(self, strategy, **kwargs):
            seen.append((strategy.experience.current_experience, len(strategy.experience.dataset), len(strategy.mb_y)))

    strategy = build("avalanche.training:Naive", plugins=[Look()], steps=3)
    run(strategy, few_digits, arrivals=[4, 10], progress=False)
    # minibatches of 8: an epoch has 4, then 8 + 6, then 8 + 8 + 8
    of_a_round = [(4, 4), (4, 4), (4, 4), (14, 8), (14, 6), (14, 8), (24, 8), (24, 8), (24, 8)]
    assert seen == [(t, size, drawn) for t in range(3) for size, drawn in of_a_round]
    assert (strategy.cost.images, strategy.cost.gradient_evaluations) == (3 * 58, 3 * 58)


def test_costs_by_hand(few_digits):
    def cost(name, **changes):
        strategy = build(next(full for full in STRATEGIES if full.endswith(f":{name}")), **changes)
        strategy.train(few_digits.train_stream[:2], eval_streams=[])
        return strategy.cost.steps, strategy.cost.images, strategy.cost.gradient_evaluations

    # 2 steps a round of 8 points
    assert cost("LwF") == (4, 32, 32)  # the teacher learns nothing
    assert cost("EWC") == (4, 32, 32 + 2 * 24)  # importances of each round's 24 points
    assert cost("AGEM") == (4, 32 + 2 * 5, 32 + 2 * 5)  # the reference gradient: all 5 that it keeps
    assert cost("DER") == (4, 32 + 2 * 4, 32 + 2 * 4)
    assert cost("ER_ACE") == (4, 32 + 2 * 4, 32 + 2 * 4)
    assert cost("MIR", mem_size=1000) == (4, 32 + 2 * (10 + 4), 32 + 2 * 4)  # 10 are compared, 4 of them trained on
    # second order: inner passes twice, and all 8 after each of 5 slices
    assert cost("LaMAML") == (4, 32, 4 * (2 * 8 + 5 * 8))
    # the same in the second form; from the second round on 4 of its memory, which are in each of 5 outer passes
    full = "avalanche.training.supervised.lamaml_v2:LaMAML"
    strategy = build(full, train_mb_size=10)
    strategy.train(few_digits.train_stream[:2], eval_streams=[])
    inner, outer = 2 * 2 * 10 * 2, 2 * 5 * (10 + 14)
    images = 2 * (10 + 14)
    # two rounds of 24
    assert strategy.cost == Cost(steps=4, images=images, gradient_evaluations=inner + outer, points_kept=2 * 24)
    assert cost("MER", n_inner_steps=3) == (4, 3 * (32 + 2 * 4), 3 * (32 + 2 * 4))


@pytest.mark.parametrize("name", STRATEGIES)
def test_evaluation_changes_nothing(name, few_digits):
    strategy = build(name)
    strategy.train(next(arrivals(few_digits.train_stream[0], 8)), eval_streams=[])
    before = [*strategy.model.state_dict().values(), *strategy.optimizer.state_dict()["state"]]
    before = [value.clone() if torch.is_tensor(value) else value for value in before]
    random_states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    model = strategy.model
    first = strategy.eval(few_digits.test_stream)
    assert strategy.model is model
    assert (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()) == random_states
    after = [*strategy.model.state_dict().values(), *strategy.optimizer.state_dict()["state"]]
    for a, b in zip(before, after, strict=True):
        assert torch.equal(a, b) if torch.is_tensor(a) else a == b
    assert strategy.eval(few_digits.test_stream) == first


def test_no_point_is_seen_before_it_arrives(few_digits):
    """With the rest of the round and all later rounds spoilt, the first arrival's training is the same."""
    spoilt = RainbowDigits(rounds=3, images_per_round=24, held_out_per_round=20)
    rows = next(arrivals(spoilt.train_stream[0], 8)).stacked.rows
    base = spoilt.train_stream[0].stacked.x
    base[[row for row in range(len(base)) if row not in set(rows.tolist())]] = 255
    for name in ("Naive", "Replay", "EWC", "GDumb"):
        a, b = build(f"avalanche.training:{name}"), build(f"avalanche.training:{name}")
        a.train(next(arrivals(few_digits.train_stream[0], 8)), eval_streams=[])
        b.train(next(arrivals(spoilt.train_stream[0], 8)), eval_streams=[])
        assert torch.equal(parameters(a), parameters(b))


def test_a_plain_strategy_of_ones_own_runs_too(few_digits):
    class Mine(SupervisedTemplate):
        def __init__(self, *, patience=3, **others):
            super().__init__(**others)
            self.patience = patience

    model = Net()
    given = {"model": model, "optimizer": torch.optim.SGD(model.parameters(), lr=0.1), "evaluator": EvaluationPlugin()}
    strategy = on_arrivals(Mine)(steps=3, patience=7, train_mb_size=4, **given)
    run(strategy, few_digits, arrivals=12, progress=False)
    assert (strategy.patience, strategy.cost.steps, type(strategy).__name__) == (7, 18, "Mine")
    with pytest.raises(TypeError, match="patiense"):
        on_arrivals(Mine)(steps=3, patiense=7, **given)


@pytest.mark.parametrize(
    ("strategy", "message"),
    [
        ("avalanche.training:ICaRL", "ICaRL cannot be run here: Avalanche 0.6.0 has it for benchmarks of the older"),
        ("avalanche.training:JointTraining", "take TrainOnEverything"),
        ("avalanche.training:FromScratchTraining", "take FromScratch"),
        ("fractions:Fraction", "no strategy of Avalanche's kind"),
    ],
)
def test_what_cannot_be_run_is_refused_by_name(strategy, message):
    with pytest.raises(UsageError, match=message) as error:
        cells.check(definition({"row": {"strategy": strategy}}), None)
    assert "\n" not in str(error.value)


def test_a_budget_that_cannot_be_spent_is_an_error(few_digits):
    class Lazy(SupervisedPlugin):
        def before_training_epoch(self, strategy, **kwargs):
            strategy.stop_training()

    with pytest.raises(UsageError, match="Naive took 0 steps instead of 2"):
        build("avalanche.training:Naive", plugins=[Lazy()]).train(few_digits.train_stream[0], eval_streams=[])


def definition(rows, **changes):
    entry = {
        "benchmark": "RainbowDigits",
        "settings": {"rounds": 2, "images_per_round": 20, "held_out_per_round": 10},
        "arrivals": 10,
        "checkpoints": [10, 20],
        "steps": 2,
        "optimizer": {"name": "Adam", "lr": 0.001},
        "strategies": rows,
        **changes,
    }
    return from_dict({"name": "tiny", "seeds": [3], "benchmarks": {"digits": entry}}, "tiny")


def test_a_row_of_a_definition_names_the_class_and_its_arguments(tmp_path):
    row = {"strategy": "avalanche.training:EWC", "ewc_lambda": 2.0, "mode": "online", "decay_factor": 0.9}
    made = definition({"EWC online": {**row, "train_mb_size": 5}})
    cells.check(made, None)
    assert cells.run_cell(made, Cell("digits", "EWC online", 3), tmp_path, None, lambda *_: None) == "finished"
    result = record.read(tmp_path)
    assert [r.steps for r in result.curve] == [2, 4, 6, 8]
    assert result.record["cost"] == {
        "steps": 8,
        "images": 40,
        "gradient_evaluations": 40 + 2 * 20,
        "points_kept": None,
    }
    assert result.record["protocol"]["batch_norm"] == "running"
    assert result.record["protocol"]["settings"]["decay_factor"] == 0.9
    with pytest.raises(UsageError, match="unknown setting of digits: row 'ewc_lamda': did you mean 'ewc_lambda'"):
        cells.check(definition({"row": {"strategy": "avalanche.training:EWC", "ewc_lamda": 1.0}}), None)
    with pytest.raises(UsageError, match="'train_epochs'"):  # the budget says how many
        cells.check(definition({"row": {"strategy": "avalanche.training:Naive", "train_epochs": 3}}), None)


def test_regression_streams_take_what_needs_no_classes():
    benchmark = Sinusoids(rounds=2, images_per_round=10, held_out_per_round=10)
    for name in ("Naive", "Cumulative", "EWC", "SynapticIntelligence", "MAS"):
        name = f"avalanche.training:{name}"
        torch.manual_seed(0)
        strategy = build(name, model=benchmark.model(), criterion=benchmark.criterion)
        assert all(np.isfinite(e.loss) for e in run(strategy, benchmark, arrivals=5, progress=False))
    changes = {"benchmark": "Sinusoids", "settings": {"rounds": 2, "images_per_round": 20}}
    with pytest.raises(UsageError, match=r"avalanche.training:LwF needs classes: this is a regression stream"):
        cells.check(
            definition({"row": {"strategy": "avalanche.training:LwF", "alpha": 1.0, "temperature": 2.0}}, **changes),
            None,
        )
