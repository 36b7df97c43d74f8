"""What only a GPU can show: recorded graphs compute what the calls compute, and nothing waits inside an arrival."""

from __future__ import annotations

import pytest
import torch
from avalanche.core import SupervisedPlugin
from avalanche.evaluation.metrics import loss_metrics
from avalanche.training.plugins import EvaluationPlugin
from torch import nn

from ftml_bench import saving
from ftml_bench.adaptation import make_engine
from ftml_bench.benchmarks import RainbowDigits, arrivals
from ftml_bench.models import PoseNet, RainbowNet, SinusoidMLP
from ftml_bench.protocol import evaluations
from ftml_bench.recorded.together import Together
from ftml_bench.strategies import FTML, FollowTheLeader, FromScratch, TrainOnEverything

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU: everything else is tested without")

CUDA = "cuda"
TASKS, POINTS = 3, 6


class Residual(nn.Module):
    """No plain stack, so that `batched` cannot treat it."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.last = nn.Linear(5, 8), nn.Linear(8, 8), nn.Linear(8, 1)
        self.norm = nn.BatchNorm1d(8)

    def forward(self, x):
        x = self.norm(self.first(x))
        return self.last(x + torch.tanh(self.second(x)))


SUBJECTS = {
    "convolutions": (lambda: RainbowNet(filters=4, layers=3, image_size=14), (3, 14, 14), "classes"),
    "pose": (lambda: PoseNet(), (3, 64, 64), 4),
    "sinusoid": (lambda: SinusoidMLP(), (1,), 1),
    "residual": (Residual, (5,), 1),
}


def problem(name):
    torch.manual_seed(0)
    make, shape, target = SUBJECTS[name]
    model = make().double()
    x = torch.rand(TASKS, 2 * POINTS, *shape, dtype=torch.float64)
    if target == "classes":
        y, criterion = torch.randint(10, (TASKS, 2 * POINTS)), nn.CrossEntropyLoss(label_smoothing=0.1)
    else:
        y, criterion = torch.rand(TASKS, 2 * POINTS, target, dtype=torch.float64), nn.MSELoss()
    return model, criterion, x, y


def meta_gradient(engine, model, criterion, x, y):
    parameters = dict(model.named_parameters())
    outputs = engine.predict(parameters, (x[:, :POINTS], y[:, :POINTS]), x[:, POINTS:])
    loss = criterion(outputs.flatten(0, 1), y[:, POINTS:].flatten(0, 1))
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(parameters.values()))])


@pytest.mark.parametrize("memory", ["unroll", "adjoint"])
@pytest.mark.parametrize(
    ("engine", "name"),
    [("batched", "convolutions"), ("batched", "pose"), ("batched", "sinusoid"), ("vmap", "residual")],
)
def test_graphs_compute_the_gradient_of_the_cpu(engine, name, memory):
    model, criterion, x, y = problem(name)
    settings = {"inner_lr": 0.05, "inner_steps": 3}
    settings |= {"memory": memory} if engine == "batched" else {}
    expected = meta_gradient(make_engine("loop", model, criterion, **settings), model, criterion, x, y)
    model.cuda()
    made = make_engine(engine, model, criterion, **settings)
    for _ in range(2):  # recorded, and replayed
        found = meta_gradient(made, model, criterion, x.cuda(), y.cuda()).cpu()
        assert float((found - expected).norm() / expected.norm()) < 1e-9
    assert made.graphs.note == ""
    assert len(made.graphs._recorded) == 1
    # other data and other parameters through the same recording
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(0.9)
    x = x.flip(1)
    found = meta_gradient(made, model, criterion, x.cuda(), y.cuda()).cpu()
    model.cpu()
    expected = meta_gradient(make_engine("loop", model, criterion, **settings), model, criterion, x, y)
    assert float((found - expected).norm() / expected.norm()) < 1e-9


def test_two_forwards_before_their_backwards_do_not_mix():
    model, criterion, x, y = problem("convolutions")
    model, x, y = model.cuda(), x.cuda(), y.cuda()
    engine = make_engine("batched", model, criterion, inner_lr=0.05, inner_steps=2)
    parameters = dict(model.named_parameters())

    def loss(x):
        outputs = engine.predict(parameters, (x[:, :POINTS], y[:, :POINTS]), x[:, POINTS:])
        return criterion(outputs.flatten(0, 1), y[:, POINTS:].flatten(0, 1))

    both = torch.autograd.grad(loss(x) + 2 * loss(x.flip(1)), list(parameters.values()))
    one = torch.autograd.grad(loss(x), list(parameters.values()))
    other = torch.autograd.grad(loss(x.flip(1)), list(parameters.values()))
    for a, b, c in zip(both, one, other, strict=True):
        assert torch.allclose(a, b + 2 * c, rtol=1e-9, atol=1e-12)


def test_gradients_that_are_kept_are_not_overwritten():
    model, criterion, x, y = problem("sinusoid")
    model, x, y = model.cuda(), x.cuda(), y.cuda()
    engine = make_engine("batched", model, criterion, inner_lr=0.05, inner_steps=2)
    kept = meta_gradient(engine, model, criterion, x, y)
    copy = kept.clone()
    meta_gradient(engine, model, criterion, x.flip(1), y)
    assert torch.equal(kept, copy)


def test_dropout_is_drawn_anew_in_every_replay():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 50), nn.Dropout(0.5), nn.Tanh(), nn.Linear(50, 1)).cuda()
    engine = make_engine("batched", model, nn.MSELoss(), inner_lr=0.05, inner_steps=2, memory="unroll")
    x, y = torch.rand(2, 8, 3, device=CUDA), torch.rand(2, 8, 1, device=CUDA)
    outputs = [engine.predict(dict(model.named_parameters()), (x, y), x) for _ in range(3)]
    assert engine.graphs.note == ""
    assert not torch.equal(outputs[0], outputs[1])
    assert not torch.equal(outputs[1], outputs[2])
    model.eval()
    outputs = [engine.predict(dict(model.named_parameters()), (x, y), x) for _ in range(2)]
    assert torch.equal(*outputs)


def test_what_cannot_be_recorded_is_called_and_said():
    class Asking(nn.Module):
        def forward(self, x):
            return x * 2 if float(x.detach().sum()) > -1e9 else x

    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)).cuda()
    engine = make_engine("batched", model, nn.MSELoss(), inner_lr=0.05, inner_steps=2)
    engine.layers.append(("asking", Asking()))
    from ftml_bench.adaptation import batched

    batched.LAYERS[Asking] = batched.LAYERS[nn.Tanh]
    try:
        x, y = torch.rand(2, 8, 3, device=CUDA), torch.rand(2, 8, 1, device=CUDA)
        outputs = [engine.predict(dict(model.named_parameters()), (x, y), x) for _ in range(2)]
    finally:
        del batched.LAYERS[Asking]
    assert torch.equal(*outputs)
    assert "no CUDA graph" in engine.chosen["engine_note"]


# -- learners


@pytest.fixture(scope="module")
def digits():
    return RainbowDigits(rounds=3, images_per_round=60, held_out_per_round=30)


def learner(
    cls=FTML,
    *,
    seed=0,
    plugins=None,
    evaluator=None,
    capturable=True,
    lr=1e-2,
    optimizer=torch.optim.Adam,
    device=CUDA,
    **settings,
):
    torch.manual_seed(seed)
    model = RainbowNet(filters=4, layers=3, image_size=14).to(device)
    more = {"capturable": capturable} if optimizer is torch.optim.Adam and device == CUDA else {}
    defaults = {"meta_batch_size": 3} if cls is FTML else {"train_mb_size": 40}
    return cls(
        model=model,
        optimizer=optimizer(model.parameters(), lr=lr, **more),
        criterion=nn.CrossEntropyLoss(label_smoothing=0.1),
        evaluator=evaluator or EvaluationPlugin(),
        plugins=plugins,
        device=device,
        seed=seed,
        **{**defaults, "steps": 8, "eval_mb_size": 50, **settings},
    )


def stream_of(digits):
    return (arrival for round in digits.train_stream for arrival in arrivals(round, 20))


def trained(strategy, pieces):
    for piece in pieces:
        strategy.train(piece, eval_streams=[])
    return tensors(strategy)


class Watching(SupervisedPlugin):
    """Acts inside iterations, so that Avalanche's loop is used."""

    iterations = 0

    def after_update(self, strategy, *args, **kwargs):
        self.iterations += 1


def tensors(strategy):
    state = [v for part in strategy.optimizer.state.values() for v in part.values() if isinstance(v, torch.Tensor)]
    return [*strategy.model.state_dict().values(), *state]


@pytest.mark.parametrize(
    "settings", [{}, {"capturable": False}, {"optimizer": torch.optim.SGD}, {"second_order": False}]
)
def test_a_recorded_step_is_the_step_of_avalanches_loop(digits, settings):
    torch.backends.cudnn.deterministic = True
    watching = Watching()
    at_once, in_loop = learner(**settings), learner(plugins=[watching], **settings)
    curves = [[e.loss for e in evaluations(strategy, digits, 20)] for strategy in (at_once, in_loop)]
    torch.backends.cudnn.deterministic = False
    assert at_once.execution.recorded.note == ""
    assert at_once.execution.recorded._graph is not None
    assert watching.iterations == 8 * 9
    assert in_loop.execution.recorded._graph is None
    assert at_once.cost == in_loop.cost
    assert at_once.clock.train_iterations == in_loop.clock.train_iterations == 8 * 9
    assert curves[0] == pytest.approx(curves[1], rel=1e-3)
    for a, b in zip(tensors(at_once), tensors(in_loop), strict=True):
        assert torch.allclose(a.double(), b.double(), rtol=1e-2, atol=1e-4)


@pytest.mark.parametrize("engine", ["loop", "higher", "vmap"])
def test_every_engine_trains_on_a_gpu(digits, engine):
    strategy = learner(engine=engine, steps=4)
    assert all(0 < e.loss < 20 for e in evaluations(strategy, digits, 30))


def test_the_gradient_after_another_pass_is_that_of_the_first_ones_draws():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 50), nn.Dropout(0.5), nn.Tanh(), nn.Linear(50, 1)).double().cuda()
    engine = make_engine("batched", model, nn.MSELoss(), inner_lr=0.05, inner_steps=2, memory="unroll")
    x, y = (torch.rand(2, 8, n, dtype=torch.float64, device=CUDA) for n in (3, 1))
    parameters = dict(model.named_parameters())

    def loss():
        return engine.predict(parameters, (x, y), x).square().sum()

    loss()  # recorded
    torch.cuda.manual_seed(1)
    first = loss()
    loss()
    found = torch.autograd.grad(first, list(parameters.values()), retain_graph=True)
    again = torch.autograd.grad(first, list(parameters.values()))
    torch.cuda.manual_seed(1)
    expected = torch.autograd.grad(loss(), list(parameters.values()))
    for a, b, c in zip(found, again, expected, strict=True):
        assert torch.allclose(a, c, rtol=1e-9)
        assert torch.allclose(b, c, rtol=1e-9)


def test_a_new_learning_rate_is_recorded_anew(digits):
    strategy = learner()
    first, second = list(arrivals(digits.train_stream[0], 30))
    strategy.train(first, eval_streams=[])
    for group in strategy.optimizer.param_groups:
        group["lr"] = 0.0
    before = [p.detach().clone() for p in strategy.model.parameters()]
    strategy.train(second, eval_streams=[])
    assert all(torch.equal(a, b) for a, b in zip(before, strategy.model.parameters(), strict=True))


def test_nothing_waits_for_the_device_inside_an_arrival(digits):
    strategy = learner()
    pieces = list(stream_of(digits))
    for arrival in pieces[:3]:
        strategy.train(arrival, eval_streams=[])
    graph = strategy.execution.recorded._graph
    epoch = strategy.training_epoch

    def watched(**kwargs):
        torch.cuda.set_sync_debug_mode("error")
        try:
            epoch(**kwargs)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    strategy.training_epoch = watched
    strategy.train(pieces[3], eval_streams=[])  # the tables have room for it
    assert strategy.execution.recorded._graph is graph is not None
    watching = learner(plugins=[Watching()])
    watching.train(pieces[0], eval_streams=[])
    epoch, watching.training_epoch = watching.training_epoch, watched
    watching.train(pieces[1], eval_streams=[])


def test_saving_and_resuming_continues_as_if_nothing_had_been(digits, tmp_path):
    torch.backends.cudnn.deterministic = True

    whole = trained(learner(), stream_of(digits))
    pieces = list(stream_of(digits))
    halfway = learner()
    trained(halfway, pieces[:4])
    saving.save(halfway, tmp_path / "state.pt")
    resumed = learner()
    rest = stream_of(digits)
    assert saving.load(resumed, tmp_path / "state.pt", rest) == 4
    found = trained(resumed, rest)
    torch.backends.cudnn.deterministic = False
    for a, b in zip(found, whole, strict=True):
        assert torch.allclose(a.double(), b.double(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("cls", [FTML, FollowTheLeader, TrainOnEverything, FromScratch])
def test_every_learner_learns_on_a_gpu(digits, cls):
    curve = list(evaluations(learner(cls, lr=3e-3, steps=20), digits, 30))
    assert len(curve) == 6
    assert all(0 < e.loss < 20 for e in curve)


def test_what_has_no_tables_is_drawn_on_the_host(digits):
    strategy = learner(class_balanced=True)
    assert strategy.execution.draws is None
    curve = list(evaluations(strategy, digits, 30))
    assert len(curve) == 6


def test_seeds_that_step_together_come_to_what_they_come_to_alone(digits):
    torch.backends.cudnn.deterministic = True
    alone = [learner(seed=seed) for seed in range(3)]
    for strategy in alone:
        trained(strategy, stream_of(digits))
    learners, together = [learner(seed=seed) for seed in range(3)], Together()
    for strategy in learners:
        strategy.execution.together = together
    for arrival in stream_of(digits):
        for strategy in learners:
            strategy.train(arrival, eval_streams=[])
        together.take_steps()
    torch.backends.cudnn.deterministic = False
    assert together.note == "steps taken together by 3 seeds"
    assert together._recorded._graph is not None
    for one, other in zip(learners, alone, strict=True):
        assert one.cost == other.cost
        assert one.clock.train_iterations == other.clock.train_iterations
        for a, b in zip(tensors(one), tensors(other), strict=True):
            assert torch.allclose(a.double(), b.double(), rtol=1e-2, atol=1e-4)


def test_tasks_that_are_evaluated_are_adapted_in_one_pass(digits):
    strategy = learner(evaluator=EvaluationPlugin(loss_metrics(experience=True)))
    trained(strategy, stream_of(digits))
    in_one_pass = strategy.eval(digits.test_stream)
    strategy._updates_in_one_pass = False
    assert in_one_pass == pytest.approx(strategy.eval(digits.test_stream), rel=1e-2)
