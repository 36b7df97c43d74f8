"""Several seeds of FTML that take their steps together, and update procedures of several tasks in one pass."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch
from avalanche.core import SupervisedPlugin
from avalanche.training.plugins import EvaluationPlugin
from torch import nn

from ftml_bench import metrics
from ftml_bench.adaptation import make_engine
from ftml_bench.benchmarks import RainbowDigits, arrivals
from ftml_bench.errors import UsageError
from ftml_bench.models import PoseNet, RainbowNet, SinusoidMLP
from ftml_bench.protocol import evaluations, in_two_parts
from ftml_bench.recorded.device_draws import DeviceDraws
from ftml_bench.recorded.together import Together
from ftml_bench.recorded.training_step import MetaStep, acts_after_training
from ftml_bench.runs import cell as cells
from ftml_bench.runs import record, resuming, schedule
from ftml_bench.runs.definition import Cell, from_dict
from ftml_bench.strategies import FTML, ftml
from ftml_bench.strategies.avalanche.per_round import per_round

SMOOTHED = nn.CrossEntropyLoss(label_smoothing=0.1)
NETWORKS = {
    "convolutions": (lambda: RainbowNet(filters=3, layers=3, image_size=8), SMOOTHED, (3, 8, 8)),
    "sinusoid": (lambda: SinusoidMLP(hidden=6), nn.MSELoss(), (1,)),
    "pose": (lambda: PoseNet(filters=2, layers=2, hidden=5, image_size=9), nn.MSELoss(), (3, 9, 9)),
}


@pytest.fixture(autouse=True)
def _double():
    """Double precision everywhere: in single precision two right ways differ by what training makes of rounding."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def problem(name, tasks=4, points=7):
    torch.manual_seed(0)
    build, criterion, shape = NETWORKS[name]
    model = build()
    x = torch.rand(tasks, 2 * points, *shape)
    outputs = model(x[0]).shape[1]
    if isinstance(criterion, nn.CrossEntropyLoss):
        return model, criterion, x, torch.randint(outputs, (tasks, 2 * points))
    return model, criterion, x, torch.rand(tasks, 2 * points, outputs)


# -- engines


@pytest.mark.parametrize("batch_norm", ["support", "transductive"])
@pytest.mark.parametrize("memory", ["unroll", "adjoint"])
@pytest.mark.parametrize("name", NETWORKS)
def test_tasks_from_parameters_of_their_own_are_those_of_engines_of_their_own(name, memory, batch_norm):
    model, criterion, x, y = problem(name)
    settings = {"inner_lr": 0.05, "inner_steps": 2, "memory": memory, "batch_norm": batch_norm}
    engine = make_engine("batched", model, criterion, **settings)
    each = {
        n: (p.detach() * torch.linspace(0.5, 1.5, 4).view(4, *[1] * p.dim())).requires_grad_()
        for n, p in model.named_parameters()
    }
    outputs = engine.predict_each(each, (x[:, :7], y[:, :7]), x[:, 7:], memory)
    gradients = torch.autograd.grad(outputs.square().sum(), list(each.values()))
    for task in range(4):
        own = {n: p[task].detach().requires_grad_() for n, p in each.items()}
        one = slice(task, task + 1)
        expected = engine.predict(own, (x[one, :7], y[one, :7]), x[one, 7:])
        assert torch.allclose(outputs[one], expected, rtol=1e-9)
        found = torch.cat([g[task].flatten() for g in gradients])
        wanted = torch.cat([g.flatten() for g in torch.autograd.grad(expected.square().sum(), list(own.values()))])
        assert float((found - wanted).norm() / wanted.norm()) < 1e-9


@pytest.mark.parametrize("engine", ["loop", "vmap", "higher", "batched"])
def test_engines_that_start_all_tasks_alike_say_so(engine):
    model, criterion, x, y = problem("sinusoid")
    made = make_engine(engine, model, criterion, inner_lr=0.1, inner_steps=1, adapted="last_layer")
    assert not made.takes_each
    with pytest.raises(UsageError, match=f"{engine}.*starts all tasks from the same parameters"):
        made.predict_each(dict(model.named_parameters()), (x, y), x, "unroll")
    with pytest.raises(UsageError, match=f"{engine}.*starts all tasks from the same parameters"):
        made.choose_memory(dict(model.named_parameters()), (x, y))


@pytest.mark.parametrize("passes", ["one", "many"])
@pytest.mark.parametrize("adapted", ["all", "last_layer"])
@pytest.mark.parametrize("engine", ["batched", "loop"])
@pytest.mark.parametrize("name", NETWORKS)
def test_update_procedures_in_one_pass_are_those_of_one_task_after_the_other(name, engine, adapted, passes):
    model, criterion, x, y = problem(name)
    budget = {"memory_budget": 1} if passes == "many" else {}
    made = make_engine(engine, model, criterion, inner_lr=0.2, inner_steps=1, adapted=adapted, **budget)
    parameters = dict(model.named_parameters())
    before = deepcopy(model.state_dict())
    found = made.adapt_each(parameters, x, y, 3)
    assert len(found) == 4
    for task, weights in enumerate(found):
        expected = made.adapt(parameters, x[task], y[task], 3)
        assert list(weights) == list(expected)
        for n, value in weights.items():
            assert not value.requires_grad
            assert torch.allclose(value, expected[n], rtol=1e-9, atol=1e-12)
    assert not torch.equal(found[0][list(before)[-1]], before[list(before)[-1]])
    assert all(torch.equal(value, before[n]) for n, value in model.state_dict().items())


# -- learners


@pytest.fixture(scope="module")
def streams():
    return [RainbowDigits(rounds=3, images_per_round=40, held_out_per_round=30, seed=seed) for seed in range(3)]


def learner(seed=0, plugins=None, evaluator=None, cls=FTML, optimizer=torch.optim.Adam, **settings):
    """One on what is taken for a GPU: it draws from tables, and every step is taken as it is."""
    torch.manual_seed(seed)
    model = RainbowNet(filters=4, layers=3, image_size=14)
    strategy = cls(
        model=model,
        optimizer=optimizer(model.parameters(), lr=1e-2),
        criterion=SMOOTHED,
        plugins=plugins,
        evaluator=evaluator or EvaluationPlugin(),
        seed=seed,
        **{"meta_batch_size": 3, "steps": 6, "eval_mb_size": 50, **settings},
    )
    strategy.device_draws = DeviceDraws(strategy.buffer, seed)
    strategy._meta_step._record = lambda: False
    return strategy


def trained_together(learners, streams, sizes=20):
    """Their curves, how many learners took each pass of steps together, and the steps that were taken apart."""
    together, at_once, apart = Together(), [], []
    for strategy in learners:
        strategy.together = together
        strategy.take_steps = lambda steps, own=strategy.take_steps: (apart.append(steps), own(steps))
    build = together._meta_step_of

    def meta_step_of(some):
        meta_step = build(some)
        meta_step._record = lambda: False
        at_once.append(len(some))
        return meta_step

    together._meta_step_of = meta_step_of
    curves = [[] for _ in learners]
    running = {i: in_two_parts(*pair, sizes) for i, pair in enumerate(zip(learners, streams, strict=True))}
    while running:
        for i in list(running):
            part = next(running[i], "ended")
            if part not in (None, "ended"):
                curves[i].append(part)
                part = next(running[i], "ended")
            if part == "ended":
                del running[i]
        together.take_steps()
    return curves, at_once, apart, together


def tensors(strategy):
    state = [v for part in strategy.optimizer.state.values() for v in part.values() if isinstance(v, torch.Tensor)]
    return [*strategy.model.state_dict().values(), *state]


def numbers(strategy):
    return strategy.cost, {n: v for n, v in vars(strategy.clock).items() if isinstance(v, int)}


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
    strategy.together = together
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


@pytest.mark.parametrize("settings", [{"engine": "loop"}, {"adapted": "last_layer"}])
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
        lambda s: s.device_draws._make_room(500, 2000),
        lambda s: s.model[-1].eval(),
    ],
)
def test_a_change_of_any_of_them_is_seen_by_what_was_recorded(streams, which, change):
    learners = [learner(seed, optimizer=torch.optim.SGD) for seed in range(2)]
    meta_step = MetaStep(learners)
    before = meta_step._found_key()
    assert meta_step._found_key() == before
    change(learners[which])
    assert meta_step._found_key() != before


def test_a_step_that_cannot_be_recorded_together_is_taken_apart(streams):
    learners, apart = [learner(seed) for seed in range(2)], []
    together = Together()
    for strategy, stream in zip(learners, streams, strict=False):
        strategy.together = together
        strategy.take_steps = lambda steps, strategy=strategy: apart.append((strategy, steps))
        strategy.train(next(iter(arrivals(stream.train_stream[0], 20))), eval_streams=[])
    together._meta_step_of(learners).note = "no CUDA graph of the training step (a reason)"
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
        strategy._meta_step._key = strategy._meta_step._found_key()  # as if its step had been recorded
        strategy.together = together
        strategy.train(next(iter(arrivals(stream.train_stream[1], 20))), eval_streams=[])
    together.take_steps()  # there is no GPU to record on
    assert together.note.startswith("not together: no CUDA graph of the training step (")
    assert [strategy.cost.steps for strategy in learners] == [12, 12]
    assert all(strategy._meta_step._key is None for strategy in learners)
    for strategy, stream in zip(learners, streams, strict=False):
        strategy.train(next(iter(arrivals(stream.train_stream[2], 20))), eval_streams=[])
    together.take_steps()
    assert together._meta_step.strategies == learners, "it is not tried again"
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
    strategy.together = Together()
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


# -- evaluations of several tasks


class Losses(SupervisedPlugin):
    """The loss of every experience that is evaluated."""

    def __init__(self):
        super().__init__()
        self.found = []

    def after_eval_exp(self, strategy, *args, **kwargs):
        self.found.append((strategy.experience.current_experience, float(strategy.loss)))


def evaluated(stream, experiences, *, in_one_pass, sizes=(40, 40), **settings):
    losses = Losses()
    strategy = learner(plugins=[losses], **settings)
    strategy._updates_in_one_pass = in_one_pass
    for round, size in zip(stream.train_stream, sizes, strict=False):
        strategy.train(next(iter(arrivals(round, [size, 40] if size < 40 else 40))), eval_streams=[])
    passes = []
    adapt_each = strategy.engine.adapt_each
    strategy.engine.adapt_each = lambda p, x, y, steps: (passes.append(len(x)), adapt_each(p, x, y, steps))[1]
    before, cost = deepcopy(strategy.model.state_dict()), strategy.cost.gradient_evaluations
    strategy.eval(experiences(stream.test_stream))
    assert all(torch.equal(value, before[n]) for n, value in strategy.model.state_dict().items())
    assert strategy._ahead == {}
    return losses.found, strategy.cost.gradient_evaluations - cost, passes


@pytest.mark.parametrize(
    ("experiences", "sizes", "passes"),
    [
        (lambda s: s, (40, 40), [2]),  # the last round is not seen yet
        (lambda s: s, (40, 40, 40), [3]),
        (lambda s: s, (40, 30, 40), [2, 1]),
        (lambda s: [s[1], s[0], s[1]], (40, 40), [2]),
        (lambda s: s[0], (40, 40), []),
        (lambda s: [s[0]], (40, 40), []),
        (lambda s: iter([s[0], s[1]]), (40, 40), []),
    ],
)
def test_tasks_that_are_evaluated_are_adapted_in_one_pass(streams, experiences, sizes, passes):
    expected, cost, _ = evaluated(streams[0], experiences, in_one_pass=False, sizes=sizes)
    found, cost_2, made = evaluated(streams[0], experiences, in_one_pass=True, sizes=sizes)
    assert [round for round, _ in found] == [round for round, _ in expected]
    assert [loss for _, loss in found] == pytest.approx([loss for _, loss in expected], rel=1e-8)
    assert cost == cost_2 > 0
    assert made == passes


def test_a_pass_holds_so_many_tasks_at_most(streams, monkeypatch):
    monkeypatch.setattr(ftml, "UPDATES_AT_ONCE", 2)
    found, _, passes = evaluated(streams[0], lambda s: s, in_one_pass=True, sizes=(40, 40, 40))
    expected, _, _ = evaluated(streams[0], lambda s: s, in_one_pass=False, sizes=(40, 40, 40))
    assert passes == [2, 1]
    assert [loss for _, loss in found] == pytest.approx([loss for _, loss in expected], rel=1e-8)


def test_regret_adapts_its_own_model_beside_those_of_an_evaluation(streams):
    found = []
    for in_one_pass in (True, False):
        (regret,) = metrics.regret_metrics()
        strategy = learner(evaluator=EvaluationPlugin(regret))
        strategy._updates_in_one_pass = in_one_pass
        for round in streams[0].train_stream:
            strategy.train(next(iter(arrivals(round, 40))), eval_streams=[])
            strategy.eval(streams[0].test_stream)
        found.append(list(regret.losses.values()))
    assert found[0] == pytest.approx(found[1], rel=1e-8)


# -- cells


def definition(seeds=(0, 1, 2), **settings):
    entry = {
        "benchmark": "RainbowDigits",
        "settings": {"rounds": 2, "images_per_round": 40, "held_out_per_round": 30},
        "model": {"name": "RainbowNet", "filters": 4, "layers": 3, "image_size": 14},
        "arrivals": 20,
        "checkpoints": [20, 40],
        "steps": 3,
        "optimizer": {"name": "Adam", "lr": 0.01},
        "strategies": {"FTML": {"meta_batch_size": 2, **settings}, "FromScratch": {"train_mb_size": 10}},
    }
    return from_dict({"name": "tiny", "seeds": list(seeds), "benchmarks": {"digits": entry}}, "tiny")


@pytest.fixture
def _as_on_a_gpu(monkeypatch):
    """Cells whose learners draw from tables, on the CPU."""
    build = cells.build_strategy

    def on_device(*arguments, **settings):
        strategy = build(*arguments, **settings)
        if isinstance(strategy, FTML):
            strategy.device_draws = DeviceDraws(strategy.buffer, strategy.seed)
        return strategy

    monkeypatch.setattr(cells, "build_strategy", on_device)
    monkeypatch.setattr(MetaStep, "_record", lambda self: False)
    monkeypatch.setattr(schedule, "_one_thread", lambda: None)


def curve(folder):
    return record.read(folder).curve


def together_in(root, board, *, stop=None):
    """The outcomes of all seeds of FTML; `stop`: interrupt them at that evaluation of seed 1."""
    told = []

    def on_evaluation(cell, done, total):
        told.append((cell.seed, done, total))
        if stop is not None and (cell.seed, done) == (1, stop):
            raise KeyboardInterrupt

    seeds = {cell: root / cell.folder for cell in board.cells() if cell.row == "FTML"}
    return cells.run_together(board, seeds, None, on_evaluation, "cpu"), told


@pytest.mark.usefixtures("_as_on_a_gpu")
def test_cells_that_run_together_have_the_files_of_cells_that_run_alone(tmp_path):
    board = definition()
    outcomes, told = together_in(tmp_path / "together", board)
    assert {cell.seed: status for cell, status in outcomes.items()} == dict.fromkeys(range(3), "finished")
    assert told[:4] == [(0, 1, 4), (1, 1, 4), (2, 1, 4), (0, 2, 4)]
    for cell in outcomes:
        cells.run_cell(board, cell, tmp_path / "alone" / cell.folder, None, lambda done, total: None)
        one, other = (record.read(tmp_path / kind / cell.folder) for kind in ("alone", "together"))
        assert [row.loss for row in other.curve] == pytest.approx([row.loss for row in one.curve], rel=1e-8)
        assert [row.gradient_evaluations for row in other.curve] == [row.gradient_evaluations for row in one.curve]
        assert other.record["cost"] == one.record["cost"]
        assert other.record["engine_note"] == "steps taken together by 3 seeds"
        assert "engine_note" not in one.record


@pytest.mark.usefixtures("_as_on_a_gpu")
def test_cells_that_were_interrupted_together_go_on_with_whoever_is_left(tmp_path, monkeypatch):
    monkeypatch.setattr(resuming, "SAVE_EVERY", 0.0)
    board = definition()
    together_in(tmp_path / "whole", board)
    with pytest.raises(KeyboardInterrupt):
        together_in(tmp_path / "again", board, stop=3)
    assert sorted(
        len((tmp_path / "again" / c.folder / "curve.csv").read_text().splitlines()) for c in board.cells()[:3]
    ) == [3, 4, 4]
    outcomes, told = together_in(tmp_path / "again", board)
    assert set(outcomes.values()) == {"finished"}
    assert (1, 3, 4) in told
    assert (0, 3, 4) not in told
    for cell in outcomes:
        found, expected = ([row.loss for row in curve(tmp_path / kind / cell.folder)] for kind in ("again", "whole"))
        assert found == pytest.approx(expected, rel=1e-8)


@pytest.mark.usefixtures("_as_on_a_gpu")
def test_a_cell_that_fails_leaves_the_others_running(tmp_path, monkeypatch):
    build = cells.build_benchmark

    def but_for_one(spec, seed, data):
        if seed == 1:
            raise UsageError("no data for seed 1")
        return build(spec, seed, data)

    monkeypatch.setattr(cells, "build_benchmark", but_for_one)
    monkeypatch.setattr(schedule, "_groups", lambda definition, todo, device: [todo])
    board = definition()
    todo = [cell for cell in board.cells() if cell.row == "FTML"]
    outcomes = schedule._run_group(
        (schedule.RUN_CELL, schedule.RUN_TOGETHER), board, todo, tmp_path, (None, "cpu"), lambda *told: None
    )
    assert outcomes == [
        (Cell("digits", "FTML", 0), "finished", ""),
        (Cell("digits", "FTML", 1), "failed", "no data for seed 1"),
        (Cell("digits", "FTML", 2), "finished", ""),
    ]
    assert record.read(tmp_path / "digits/FTML/seed-1").record["reason"] == "no data for seed 1"


@pytest.mark.usefixtures("_as_on_a_gpu")
def test_an_error_of_the_steps_is_one_of_all_that_take_them(tmp_path, monkeypatch):
    def too_much(self):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(Together, "take_steps", too_much)
    board = definition(seeds=(0, 1))
    outcomes, _ = together_in(tmp_path, board)
    assert [str(error) for error in outcomes.values()] == ["out of memory"] * 2


def test_on_a_gpu_seeds_of_ftml_are_a_group_of_at_most_four(tmp_path):
    board = definition(seeds=range(6))

    def seeds_by_row(device):
        groups = schedule._groups(board, board.cells(), device)
        return [(group[0].row, [cell.seed for cell in group]) for group in groups]

    alone = [("FromScratch", [seed]) for seed in range(6)]
    assert seeds_by_row("cpu") == [("FTML", [seed]) for seed in range(6)] + alone
    assert seeds_by_row("cuda") == [("FTML", [0, 1, 2, 3]), ("FTML", [4, 5]), *alone]
    hindsight = definition(comparator=True)
    assert [len(group) for group in schedule._groups(hindsight, hindsight.cells(), "cuda")] == [1] * 6


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
