"""FTML on context parameters, like CAVIA (Zintgraf et al. 2019): they alone adapt, by steps written out."""

import pytest
import torch
from avalanche.training.plugins import EvaluationPlugin
from torch import nn

from ftml_bench.benchmarks import Sinusoids
from ftml_bench.errors import UsageError
from ftml_bench.models import SinusoidMLP
from ftml_bench.protocol import held_out
from ftml_bench.strategies import FTML


def test_the_context_alone_adapts_to_a_task():
    benchmark = Sinusoids(rounds=2, images_per_round=20)
    torch.manual_seed(0)
    model = SinusoidMLP(context=3)
    strategy = FTML(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.01),
        criterion=nn.MSELoss(),
        evaluator=EvaluationPlugin(),
        adapted=["context.vector"],
        inner_lr=0.1,
        update_steps=3,
        meta_batch_size=2,
        support_size=5,
        query_size=5,
        steps=4,
    )
    strategy.train(benchmark.train_stream[0], eval_streams=[])
    assert strategy.chosen["engine"] in ("native", "batched")
    assert float(model.context.vector.abs().min()) > 0, "where it starts is learned, too"
    model.eval()
    copy = strategy.model_for(held_out(benchmark, 0))
    x, y = benchmark.train_stream[0].stacked.take(torch.arange(20))
    context = model.context.vector.detach().clone()
    for _ in range(3):
        leaf = context.clone().requires_grad_()
        outputs = model[1:](torch.cat([x, leaf.expand(20, -1)], 1))
        context -= 0.1 * torch.autograd.grad(nn.functional.mse_loss(outputs, y), leaf)[0]
    assert torch.allclose(copy.context.vector, context, atol=1e-6)
    for name, p in model.named_parameters():
        assert name == "context.vector" or torch.equal(copy.get_parameter(name), p)


def test_without_a_context_nothing_has_changed():
    assert next(name for name, _ in SinusoidMLP().named_parameters()) == "linear1.weight"
    with pytest.raises(UsageError, match="context=-1: expected a number of at least 0"):
        SinusoidMLP(context=-1)
