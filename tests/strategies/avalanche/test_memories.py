"""A-GEM, GEM and MIR with FTML: the projected meta-gradient and what is replayed, by hand."""

import pytest
import torch
from avalanche.training.plugins import AGEMPlugin, GEMPlugin, MIRPlugin
from torch.func import functional_call
from torch.nn.functional import cross_entropy

from ftml_bench.errors import UsageError
from tests.strategies.avalanche.small import Around, flat, ftml, long_gradients, model


def last_round(t):
    return torch.tensor([0.0] * (t - 1) + [1.0])


def test_agem_projects_the_meta_gradient_on_the_gradient_of_its_memory(contradicting):
    around = Around()
    plugin = AGEMPlugin(patterns_per_experience=12, sample_size=12)
    drawn = []
    draw = plugin.sample_from_memory
    plugin.sample_from_memory = lambda: drawn.append(draw()) or drawn[-1]
    strategy = ftml(*around.of(plugin), task_sampler=last_round)
    for experience in contradicting.train_stream[:2]:
        strategy.train(experience, eval_streams=[])
    projected = 0
    for step in range(4, 8):
        net = model()
        with torch.no_grad():
            for p, v in zip(net.parameters(), around.before.steps[step][0], strict=True):
                p.copy_(v)
        x, y = drawn[step - 4][:2]
        reference = flat(torch.autograd.grad(cross_entropy(net(x), y), list(net.parameters())))
        gradient = flat(around.before.meta_gradients[step])
        dot = gradient @ reference
        if dot < 0:
            projected += 1
            gradient = gradient - dot / (reference @ reference) * reference
        assert torch.allclose(flat(around.after.gradients[step]), gradient, atol=1e-5)
    assert projected > 0


def test_gem_projects_the_meta_gradient_so_that_no_memory_gets_worse(contradicting):
    around = Around()
    plugin = GEMPlugin(patterns_per_experience=12, memory_strength=0.0)
    strategy = ftml(*around.of(plugin), task_sampler=last_round)
    for experience in contradicting.train_stream[:2]:
        strategy.train(experience, eval_streams=[])
    x, y = plugin.memory_x[0], plugin.memory_y[0]
    assert sorted(y.tolist()) == sorted(contradicting.train_stream[0].dataset.targets)
    projected = 0
    for step in range(4, 8):
        net = model()
        with torch.no_grad():
            for p, v in zip(net.parameters(), around.before.steps[step][0], strict=True):
                p.copy_(v)
        reference = flat(torch.autograd.grad(cross_entropy(net(x), y), list(net.parameters())))
        gradient = flat(around.before.meta_gradients[step])
        dot = gradient @ reference
        if dot < 0:  # one constraint: the quadratic program in closed form, with GEM's ridge of 1e-3
            projected += 1
            gradient = gradient - dot / (reference @ reference + 1e-3) * reference
        assert torch.allclose(flat(around.after.gradients[step]), gradient, atol=1e-4)
    assert projected > 0


def test_gem_projects_long_gradients_too():
    plugin = GEMPlugin(patterns_per_experience=12, memory_strength=0.5)
    strategy = ftml(plugin)
    strategy._before_training()
    plugin.G, g = long_gradients()
    projected = plugin.solve_quadprog(g)
    reference = plugin.G.double()
    v = torch.linalg.lstsq(reference.T, (projected - g).double()[:, None]).solution.flatten()
    slope = reference @ projected.double()  # of the program, in each multiplier: 0, or above where it is at its bound
    assert (v > 0.5 - 1e-5).all()
    assert (slope > -1e-5 * slope.abs().max()).all()
    assert ((v < 0.5 + 1e-5) | (slope < 1e-5 * slope.abs().max())).all()
    assert (reference @ g.double() < 0).any()


def test_gem_says_that_gradients_are_not_finite():
    plugin = GEMPlugin(patterns_per_experience=12, memory_strength=0.5)
    ftml(plugin)._before_training()
    plugin.G = torch.full((2, 30), float("inf"))
    with pytest.raises(UsageError, match="GEMPlugin finds no projection, for gradients are not finite") as error:
        plugin.solve_quadprog(torch.ones(30))
    assert "\n" not in str(error.value)


def test_mir_replays_what_the_meta_step_would_harm_most(stream):
    around = Around()
    plugin = MIRPlugin(batch_size_mem=3, mem_size=30, subsample=8)
    strategy = ftml(*around.of(plugin), steps=1)
    for experience in stream.train_stream[:2]:
        strategy.train(experience, eval_streams=[])
    drawn = []
    loader = plugin.replay_loader
    assert loader is not None
    plugin.replay_loader = (drawn.append(batch) or batch for batch in loader)
    strategy.train(stream.train_stream[2], eval_streams=[])
    x, y = drawn[0][:2]
    assert set(y.tolist()) <= {0, 1}  # not of the experience before
    start = dict(zip(["weight", "bias"], around.before.steps[-1][0], strict=True))
    stepped = {n: p - 0.3 * g for (n, p), g in zip(start.items(), around.before.meta_gradients[-1], strict=True)}
    loss = {
        which: cross_entropy(functional_call(strategy.model, p, (x,)), y, reduction="none")
        for which, p in (("old", start), ("new", stepped))
    }
    harmed = (loss["new"] - loss["old"]).argsort()[-3:]
    added = around.after.losses[-1] - around.before.losses[-1]
    assert added == pytest.approx(float(loss["old"][harmed].mean()), rel=1e-4)
