"""Avalanche's own strategies on arrivals: the budget, what they train on, the workarounds, and what is refused."""

import random

import numpy as np
import pytest
import torch
from avalanche.core import SupervisedPlugin
from avalanche.training.plugins import EvaluationPlugin
from avalanche.training.templates import SupervisedTemplate
from torch import nn

from ftml_bench import registry
from ftml_bench.benchmarks import RainbowDigits, Sinusoids, arrivals
from ftml_bench.errors import UsageError
from ftml_bench.protocol import run
from ftml_bench.runs import cell as cells
from ftml_bench.runs import record
from ftml_bench.runs.definition import Cell, from_dict
from ftml_bench.seeding import derive
from ftml_bench.strategies.avalanche.cost import Cost
from ftml_bench.strategies.avalanche.stock import on_arrivals

# Every strategy that docs/extending-strategy.md lists, with the keywords that it cannot do without.
STRATEGIES = {
    "avalanche.training:Naive": {},
    "avalanche.training:Cumulative": {},
    "avalanche.training:Replay": {"mem_size": 20},
    "avalanche.training:GDumb": {"mem_size": 20},
    "avalanche.training:EWC": {"ewc_lambda": 10.0},
    "avalanche.training:SynapticIntelligence": {"si_lambda": 10.0},
    "avalanche.training:LwF": {"alpha": 1.0, "temperature": 2.0},
    "avalanche.training:MAS": {},
    "avalanche.training:AGEM": {"patterns_per_exp": 5},
    "avalanche.training:DER": {"mem_size": 20, "batch_size_mem": 4},
    "avalanche.training:ER_ACE": {"mem_size": 20, "batch_size_mem": 4},
    "avalanche.training:MIR": {"mem_size": 20, "subsample": 10, "batch_size_mem": 4},
    "avalanche.training:MER": {"mem_size": 20, "batch_size_mem": 4, "n_inner_steps": 1},
    "avalanche.training.supervised.lamaml:LaMAML": {},
    "avalanche.training.supervised.lamaml_v2:LaMAML": {"buffer_mb_size": 4},
}


class Net(nn.Sequential):
    """Small, with a norm layer and dropout: it draws in training and has state."""

    def __init__(self):
        super().__init__(nn.Flatten(), nn.Linear(588, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 10))


@pytest.fixture(scope="module")
def digits():
    return RainbowDigits(rounds=3, images_per_round=24, held_out_per_round=20)


def settings(name, model=None, lr=0.01, **changes):
    torch.manual_seed(0)
    model = (nn.Sequential(nn.Flatten(), nn.Linear(588, 10)) if "MER" in name else Net()) if model is None else model
    given = {
        "model": model,
        "optimizer": torch.optim.SGD(model.parameters(), lr=lr),
        "criterion": nn.CrossEntropyLoss(),
        "train_mb_size": 8,
        "eval_mb_size": 20,
        "evaluator": EvaluationPlugin(),
        **STRATEGIES[name],
    }
    return {**given, **changes}


def build(name, steps=2, seed=0, **changes):
    return on_arrivals(registry.load("strategy", name))(steps=steps, seed=seed, **settings(name, **changes))


def parameters(strategy):
    return torch.cat([p.detach().flatten() for p in strategy.model.parameters()])


@pytest.mark.parametrize("name", STRATEGIES)
def test_a_strategy_runs_within_its_budget_and_the_same_seed_gives_the_same(name, digits):
    strategy = build(name)
    evaluations = run(strategy, digits, arrivals=8, progress=False)
    assert [e.steps for e in evaluations] == [2 * (i + 1) for i in range(9)]
    assert strategy.clock.train_iterations == 18
    assert strategy.clock.train_exp_counter == 3  # experiences are rounds
    assert torch.isfinite(parameters(strategy)).all()
    torch.rand(3)  # whatever happened in the process before
    random.random()
    again = build(name)
    for round in digits.train_stream:  # without any evaluation
        for arrival in arrivals(round, 8):
            again.train(arrival, eval_streams=[])
    assert torch.equal(parameters(strategy), parameters(again))
    assert strategy.cost == again.cost


# Where one arrival is a round there is nothing to work round but the bugs, and these have some.
MENDED = ("SynapticIntelligence", "MIR", "LwF", "lamaml_v2:LaMAML")


class StopAfter(SupervisedPlugin):
    """Ends an experience after so many steps."""

    def __init__(self, steps):
        super().__init__()
        self.steps = steps

    def after_training_iteration(self, strategy, **kwargs):
        if strategy.clock.train_exp_iterations + 1 >= self.steps:  # the clock ticks after the plugins
            strategy.stop_training()


def stock(name, *, steps, seed, **changes):
    """Avalanche's class as it is, with `steps` steps an experience, and the random states that `on_arrivals` seeds."""
    changes = {"train_epochs": steps, "plugins": [StopAfter(steps)], **changes}
    strategy = registry.load("strategy", name)(**settings(name, **changes))
    seed = derive(seed, "stock")
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
    return strategy


@pytest.mark.parametrize("name", [name for name in STRATEGIES if not name.endswith(MENDED)])
def test_with_a_round_an_arrival_it_is_avalanches_own_training(name, digits):
    ours = build(name, steps=5, seed=5)
    ours.train(digits.train_stream, eval_streams=[])
    theirs = stock(name, steps=5, seed=5)
    for round in digits.train_stream:  # one by one, since a stop would hold for the next one too
        theirs.train(round, eval_streams=[])
    assert torch.equal(parameters(ours), parameters(theirs))


def test_a_minibatch_is_drawn_from_the_rounds_data_so_far(digits):
    seen = []

    class Look(SupervisedPlugin):
        def before_training_iteration(self, strategy, **kwargs):
            seen.append((strategy.experience.current_experience, len(strategy.experience.dataset), len(strategy.mb_y)))

    strategy = build("avalanche.training:Naive", plugins=[Look()], steps=3)
    run(strategy, digits, arrivals=[4, 10], progress=False)
    # minibatches of 8: an epoch has 4, then 8 + 6, then 8 + 8 + 8
    of_a_round = [(4, 4), (4, 4), (4, 4), (14, 8), (14, 6), (14, 8), (24, 8), (24, 8), (24, 8)]
    assert seen == [(t, size, drawn) for t in range(3) for size, drawn in of_a_round]
    assert (strategy.cost.images, strategy.cost.gradient_evaluations) == (3 * 58, 3 * 58)


def test_memories_hold_every_point_once(digits):
    for name, memory in {
        "Cumulative": lambda s: s.dataset,
        "Replay": lambda s: s.plugins[0].storage_policy.buffer,
        "GDumb": lambda s: s.plugins[0].storage_policy.buffer,
        "DER": lambda s: s.storage_policy.buffer,
        "ER_ACE": lambda s: s.storage_policy.buffer,
        "MIR": lambda s: s.plugins[0].storage_policy.buffer,
        "MER": lambda s: s.buffer.storage_policy.buffer,
    }.items():
        larger = {} if name == "Cumulative" else {"mem_size": 1000}
        strategy = build(f"avalanche.training:{name}", **larger)
        run(strategy, digits, arrivals=8, progress=False)
        kept = torch.stack([item[0] for item in memory(strategy)])
        there = torch.stack([x for round in digits.train_stream for x, *_ in round.dataset])
        assert sorted(kept.flatten(1).sum(1).tolist()) == sorted(there.flatten(1).sum(1).tolist()), name


def test_gdumb_starts_anew_with_a_round_not_with_an_arrival(digits):
    strategy = build("avalanche.training:GDumb", lr=1e-9)  # as good as no training: what changes is the reset
    run(strategy, digits, arrivals=8, progress=False)
    first = parameters(strategy)
    strategy = build("avalanche.training:GDumb", lr=0.1)
    distances = []
    for round in digits.train_stream:
        for arrival in arrivals(round, 8):
            strategy.train(arrival, eval_streams=[])
            distances.append(float((parameters(strategy) - first).norm()))
            assert {id(p) for g in strategy.optimizer.param_groups for p in g["params"]} == {
                id(p) for p in strategy.model.parameters()
            }
    for t in range(3):
        assert distances[3 * t] < distances[3 * t + 1] < distances[3 * t + 2]


def test_ewc_keeps_a_copy_a_round_and_its_penalty_is_in_the_update(digits):
    """The update of one step of SGD against the gradient by hand: loss + lambda * sum F (w - w*)^2."""
    plain, lr, strength = nn.Sequential(nn.Flatten(), nn.Linear(588, 10)), 0.01, 50.0
    strategy = build("avalanche.training:EWC", model=plain, lr=lr, steps=2, ewc_lambda=strength)
    first, second, _ = digits.train_stream
    for arrival in arrivals(first, 8):
        strategy.train(arrival, eval_streams=[])
    assert list(strategy.plugins[0].saved_params) == [0]
    consolidated = {n: p.detach().clone() for n, p in plain.named_parameters()}
    fisher = dict.fromkeys(consolidated, 0.0)
    order = torch.cat([a.stacked.rows for a in arrivals(first, 8)])
    place = {int(row): i for i, row in enumerate(first.stacked.rows)}
    x, y = first.stacked.take(torch.tensor([place[int(row)] for row in order]))
    for batch, labels in zip(x.float().div(255).split(8), y.split(8), strict=True):
        grads = torch.autograd.grad(nn.functional.cross_entropy(plain(batch), labels), plain.parameters())
        fisher = {n: f + g**2 / 3 for (n, f), g in zip(fisher.items(), grads, strict=True)}
    for n, importance in strategy.plugins[0].importances[0].items():
        torch.testing.assert_close(importance.data, fisher[n])

    updates = []

    class Look(SupervisedPlugin):
        def before_update(self, strategy, **kwargs):
            loss = nn.functional.cross_entropy(plain(strategy.mb_x), strategy.mb_y)
            penalty = sum((fisher[n] * (p - consolidated[n]) ** 2).sum() for n, p in plain.named_parameters())
            by_hand = torch.autograd.grad(loss + strength * penalty, plain.parameters())
            updates.append([(p.grad.clone(), g) for p, g in zip(plain.parameters(), by_hand, strict=True)])

    strategy.plugins.insert(0, Look())
    strategy.train(next(arrivals(second, 8)), eval_streams=[])
    assert len(updates) == 2
    for pairs in updates:
        for applied, by_hand in pairs:
            torch.testing.assert_close(applied, by_hand)


def test_synaptic_intelligence_has_a_path_on_a_cpu_and_it_is_of_the_round(digits):
    """The importances against the definition: sum of gradient times step, over the squared way of the round."""
    name, plain = "avalanche.training:SynapticIntelligence", nn.Sequential(nn.Flatten(), nn.Linear(588, 10))
    steps = []

    class Look(SupervisedPlugin):
        def before_update(self, strategy, **kwargs):
            self.before = parameters(strategy)

        def after_update(self, strategy, **kwargs):
            gradient = torch.cat([p.grad.flatten() for p in strategy.model.parameters()])
            steps.append(gradient * (parameters(strategy) - self.before))

    strategy = build(name, model=plain, plugins=[Look()])
    start = parameters(strategy)
    for arrival in arrivals(digits.train_stream[0], 8):
        strategy.train(arrival, eval_streams=[])
    by_hand = torch.stack(steps).sum(0) / ((parameters(strategy) - start) ** 2 + 1e-7)
    plugin = next(p for p in strategy.plugins if hasattr(p, "ewc_data"))
    kept = torch.cat([plugin.ewc_data[1][n].data for n, _ in plain.named_parameters()])
    torch.testing.assert_close(kept, (-by_hand).clamp(max=0.001), rtol=1e-3, atol=1e-5)
    assert float(kept.max()) > 0

    # the bug that is worked round: when this fails, `_SI` may go
    theirs = stock(name, steps=6, seed=0)
    theirs.train(digits.train_stream[0], eval_streams=[])
    plugin = next(p for p in theirs.plugins if hasattr(p, "ewc_data"))
    assert all(float(p.data.abs().max()) == 0 for p in plugin.ewc_data[1].values())


def test_agem_goes_on_where_rounds_are_more_than_its_sample(digits):
    changes = {"sample_size": 1}
    plain = [nn.Sequential(nn.Flatten(), nn.Linear(588, 10)) for _ in range(2)]  # a norm layer needs two points
    run(build("avalanche.training:AGEM", model=plain[0], **changes), digits, arrivals=24, progress=False)
    theirs = stock("avalanche.training:AGEM", steps=1, seed=0, model=plain[1], **changes)
    theirs.train(digits.train_stream[0], eval_streams=[])
    theirs.train(digits.train_stream[1], eval_streams=[])
    with pytest.raises(ValueError, match="batch_size"):  # when this fails, `_AGEM` may go
        theirs.train(digits.train_stream[2], eval_streams=[])


def test_mir_replays_though_every_minibatch_has_all_classes():
    benchmark = RainbowDigits(rounds=2, images_per_round=100, held_out_per_round=20)
    changes = {"train_mb_size": 100, "mem_size": 20, "batch_size_mem": 4}
    ours, theirs = (
        build("avalanche.training:MIR", **changes),
        stock("avalanche.training:MIR", steps=2, seed=0, **changes),
    )
    for strategy in (ours, theirs):
        strategy.train(benchmark.train_stream[0], eval_streams=[])
    assert ours.plugins[0].replay_loader is not None
    mir = next(p for p in theirs.plugins if hasattr(p, "replay_loader"))
    assert mir.replay_loader is None  # when this fails, `_MIR` may go


def test_lwf_distils_the_classes_of_all_rounds(digits):
    ours, theirs = build("avalanche.training:LwF"), stock("avalanche.training:LwF", steps=2, seed=0)
    for round in digits.train_stream:
        ours.train(round, eval_streams=[])
        theirs.train(round, eval_streams=[])
    classes = set(torch.cat([e.stacked.y for e in digits.train_stream]).tolist())
    of_first = set(digits.train_stream[0].stacked.y.tolist())
    assert of_first < classes
    assert next(p for p in ours.plugins if hasattr(p, "lwf")).lwf.prev_classes_by_task[0] == classes
    # when this fails, `_LwF` may go
    assert next(p for p in theirs.plugins if hasattr(p, "lwf")).lwf.prev_classes_by_task[0] == of_first


def test_costs_by_hand(digits):
    def cost(name, **changes):
        strategy = build(next(full for full in STRATEGIES if full.endswith(f":{name}")), **changes)
        strategy.train(digits.train_stream[:2], eval_streams=[])
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
    strategy.train(digits.train_stream[:2], eval_streams=[])
    inner, outer = 2 * 2 * 10 * 2, 2 * 5 * (10 + 14)
    assert strategy.cost == Cost(steps=4, images=2 * (10 + 14), gradient_evaluations=inner + outer)
    assert cost("MER", n_inner_steps=3) == (4, 3 * (32 + 2 * 4), 3 * (32 + 2 * 4))


@pytest.mark.parametrize("name", STRATEGIES)
def test_evaluation_changes_nothing(name, digits):
    strategy = build(name)
    strategy.train(next(arrivals(digits.train_stream[0], 8)), eval_streams=[])
    before = [*strategy.model.state_dict().values(), *strategy.optimizer.state_dict()["state"]]
    before = [value.clone() if torch.is_tensor(value) else value for value in before]
    random_states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    model = strategy.model
    first = strategy.eval(digits.test_stream)
    assert strategy.model is model
    assert (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()) == random_states
    after = [*strategy.model.state_dict().values(), *strategy.optimizer.state_dict()["state"]]
    for a, b in zip(before, after, strict=True):
        assert torch.equal(a, b) if torch.is_tensor(a) else a == b
    assert strategy.eval(digits.test_stream) == first


def test_no_point_is_seen_before_it_arrives(digits):
    """With the rest of the round and all later rounds spoilt, the first arrival's training is the same."""
    spoilt = RainbowDigits(rounds=3, images_per_round=24, held_out_per_round=20)
    rows = next(arrivals(spoilt.train_stream[0], 8)).stacked.rows
    base = spoilt.train_stream[0].stacked.x
    base[[row for row in range(len(base)) if row not in set(rows.tolist())]] = 255
    for name in ("Naive", "Replay", "EWC", "GDumb"):
        a, b = build(f"avalanche.training:{name}"), build(f"avalanche.training:{name}")
        a.train(next(arrivals(digits.train_stream[0], 8)), eval_streams=[])
        b.train(next(arrivals(spoilt.train_stream[0], 8)), eval_streams=[])
        assert torch.equal(parameters(a), parameters(b))


def test_a_plain_strategy_of_ones_own_runs_too(digits):
    class Mine(SupervisedTemplate):
        def __init__(self, *, patience=3, **others):
            super().__init__(**others)
            self.patience = patience

    model = Net()
    given = {"model": model, "optimizer": torch.optim.SGD(model.parameters(), lr=0.1), "evaluator": EvaluationPlugin()}
    strategy = on_arrivals(Mine)(steps=3, patience=7, train_mb_size=4, **given)
    run(strategy, digits, arrivals=12, progress=False)
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


def test_a_budget_that_cannot_be_spent_is_an_error(digits):
    class Lazy(SupervisedPlugin):
        def before_training_epoch(self, strategy, **kwargs):
            strategy.stop_training()

    with pytest.raises(UsageError, match="Naive took 0 steps instead of 2"):
        build("avalanche.training:Naive", plugins=[Lazy()]).train(digits.train_stream[0], eval_streams=[])


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
    assert result.record["cost"] == {"steps": 8, "images": 40, "gradient_evaluations": 40 + 2 * 20}
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
