"""What Avalanche's own strategies keep counts rounds, not arrivals; the workarounds."""

import pytest
import torch
from avalanche.core import SupervisedPlugin
from torch import nn

from ftml_bench.benchmarks import RainbowDigits, arrivals
from ftml_bench.errors import UsageError
from ftml_bench.protocol import run
from tests.strategies.avalanche.stock import (
    build,
    parameters,
    stock,
)


def test_memories_hold_every_point_once(few_digits):
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
        run(strategy, few_digits, arrivals=8, progress=False)
        kept = torch.stack([item[0] for item in memory(strategy)])
        there = torch.stack([x for round in few_digits.train_stream for x, *_ in round.dataset])
        assert sorted(kept.flatten(1).sum(1).tolist()) == sorted(there.flatten(1).sum(1).tolist()), name


def test_gdumb_starts_anew_with_a_round_not_with_an_arrival(few_digits):
    strategy = build("avalanche.training:GDumb", lr=1e-9)  # as good as no training: what changes is the reset
    run(strategy, few_digits, arrivals=8, progress=False)
    first = parameters(strategy)
    strategy = build("avalanche.training:GDumb", lr=0.1)
    distances = []
    for round in few_digits.train_stream:
        for arrival in arrivals(round, 8):
            strategy.train(arrival, eval_streams=[])
            distances.append(float((parameters(strategy) - first).norm()))
            assert {id(p) for g in strategy.optimizer.param_groups for p in g["params"]} == {
                id(p) for p in strategy.model.parameters()
            }
    for t in range(3):
        assert distances[3 * t] < distances[3 * t + 1] < distances[3 * t + 2]


def test_ewc_keeps_a_copy_a_round_and_its_penalty_is_in_the_update(few_digits):
    """The update of one step of SGD against the gradient by hand: loss + lambda * sum F (w - w*)^2."""
    plain, lr, strength = nn.Sequential(nn.Flatten(), nn.Linear(588, 10)), 0.01, 50.0
    strategy = build("avalanche.training:EWC", model=plain, lr=lr, steps=2, ewc_lambda=strength)
    first, second, _ = few_digits.train_stream
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


def test_synaptic_intelligence_has_a_path_on_a_cpu_and_it_is_of_the_round(few_digits):
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
    for arrival in arrivals(few_digits.train_stream[0], 8):
        strategy.train(arrival, eval_streams=[])
    by_hand = torch.stack(steps).sum(0) / ((parameters(strategy) - start) ** 2 + 1e-7)
    plugin = next(p for p in strategy.plugins if hasattr(p, "ewc_data"))
    kept = torch.cat([plugin.ewc_data[1][n].data for n, _ in plain.named_parameters()])
    torch.testing.assert_close(kept, (-by_hand).clamp(max=0.001), rtol=1e-3, atol=1e-5)
    assert float(kept.max()) > 0

    # the bug that is worked round: when this fails, `_SI` may go
    theirs = stock(name, steps=6, seed=0)
    theirs.train(few_digits.train_stream[0], eval_streams=[])
    plugin = next(p for p in theirs.plugins if hasattr(p, "ewc_data"))
    assert all(float(p.data.abs().max()) == 0 for p in plugin.ewc_data[1].values())


def test_agem_goes_on_where_rounds_are_more_than_its_sample(few_digits):
    changes = {"sample_size": 1}
    plain = [nn.Sequential(nn.Flatten(), nn.Linear(588, 10)) for _ in range(2)]  # a norm layer needs two points
    run(build("avalanche.training:AGEM", model=plain[0], **changes), few_digits, arrivals=24, progress=False)
    theirs = stock("avalanche.training:AGEM", steps=1, seed=0, model=plain[1], **changes)
    theirs.train(few_digits.train_stream[0], eval_streams=[])
    theirs.train(few_digits.train_stream[1], eval_streams=[])
    with pytest.raises(ValueError, match="batch_size"):  # when this fails, `_AGEM` may go
        theirs.train(few_digits.train_stream[2], eval_streams=[])


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


def test_lwf_distils_the_classes_of_all_rounds(few_digits):
    ours, theirs = build("avalanche.training:LwF"), stock("avalanche.training:LwF", steps=2, seed=0)
    for round in few_digits.train_stream:
        ours.train(round, eval_streams=[])
        theirs.train(round, eval_streams=[])
    classes = set(torch.cat([e.stacked.y for e in few_digits.train_stream]).tolist())
    of_first = set(few_digits.train_stream[0].stacked.y.tolist())
    assert of_first < classes
    assert next(p for p in ours.plugins if hasattr(p, "lwf")).lwf.prev_classes_by_task[0] == classes
    # when this fails, `_LwF` may go
    assert next(p for p in theirs.plugins if hasattr(p, "lwf")).lwf.prev_classes_by_task[0] == of_first


@pytest.mark.parametrize("norm", [nn.BatchNorm1d, nn.SyncBatchNorm])
def test_norms_without_running_statistics_are_refused(norm):
    """A point would be predicted by what else is evaluated with it."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(588, 10), norm(10, track_running_stats=False))
    with pytest.raises(UsageError, match=rf"^2: a {norm.__name__} that keeps no running statistics"):
        build("avalanche.training:Naive", model=model)
    build("avalanche.training:Naive", model=nn.Sequential(*model[:2], norm(10)))
