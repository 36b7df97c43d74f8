"""What an evaluation may adapt to, by hand; and forgetting and transfer as Avalanche counts them."""

import pytest
import torch
from avalanche.benchmarks import (
    benchmark_from_datasets,
    new_instances_benchmark,
    split_online_stream,
    task_incremental_benchmark,
)
from avalanche.evaluation.metrics import bwt_metrics, forgetting_metrics, forward_transfer_metrics
from avalanche.models import SimpleMLP
from avalanche.training.plugins import EvaluationPlugin
from torch import nn
from torch.func import functional_call

from ftml_bench.benchmarks import arrivals
from ftml_bench.strategies import FTML
from tests.strategies.avalanche.pipelines import (
    STREAMS,
    as_avalanche,
    class_incremental,
    learner,
    mlp_for,
    seeded,
    stacked,
    trained,
)

# -- the rule of evaluation


def gradient_steps(model, parameters, x, y, steps, lr):
    for _ in range(steps):
        loss = nn.functional.cross_entropy(functional_call(model, parameters, (x,)), y)
        gradients = torch.autograd.grad(loss, list(parameters.values()))
        parameters = {
            n: (p - lr * g).detach().requires_grad_() for (n, p), g in zip(parameters.items(), gradients, strict=True)
        }
    return parameters


def evaluated_by(strategy, experience):
    """The parameters of the copy that predicts an experience."""
    strategy.model.eval()
    model = strategy.model_for(experience)
    return {n: p.detach() for n, p in model.named_parameters()}


def close(first, second):
    return all(torch.allclose(first[n], second[n], atol=1e-6) for n in first)


def adapted_to(strategy, x, y):
    start = {n: p.detach().clone().requires_grad_() for n, p in strategy.model.named_parameters()}
    return gradient_steps(strategy.model, start, x, y, 2, 0.1)


def test_with_task_labels_each_experience_is_predicted_after_adapting_to_its_own_tasks_data():
    stream = task_incremental_benchmark(class_incremental())
    strategy = trained(stream)
    for k in (0, 1):
        own = adapted_to(strategy, *stacked(stream.train_stream[k]))
        other = adapted_to(strategy, *stacked(stream.train_stream[1 - k]))
        assert close(evaluated_by(strategy, stream.test_stream[k]), own)
        assert not close(evaluated_by(strategy, stream.test_stream[k]), other)


@pytest.mark.parametrize("stream", [class_incremental, STREAMS["nc_benchmark"].__call__], ids=["new", "nc_benchmark"])
def test_without_task_labels_all_experiences_are_predicted_by_one_copy_adapted_to_all_rounds(stream):
    stream = stream() if stream is class_incremental else stream(None)
    strategy = trained(stream)
    x, y = zip(*map(stacked, stream.train_stream), strict=True)
    expected = adapted_to(strategy, torch.cat(x), torch.cat(y))  # rounds of one size: all points of both
    for experience in stream.test_stream:
        assert close(evaluated_by(strategy, experience), expected)


def test_without_task_labels_rounds_of_unequal_size_count_equally():
    stream = benchmark_from_datasets(train=as_avalanche(30, 10), test=as_avalanche(9, 8))
    strategy = trained(stream)
    data = strategy.buffer.for_label(None, limit=1000, seed=0)
    assert len(data[0]) == 20
    (x, _), (small, _) = map(stacked, stream.train_stream)
    assert sum((row == x).all(1).any().item() for row in data[0]) == 10
    assert sum((row == small).all(1).any().item() for row in data[0]) == 10


def test_data_incremental_without_labels_one_test_set_is_predicted_after_adapting_to_what_has_arrived():
    stream = new_instances_benchmark(*as_avalanche(48, 24), num_experiences=3, seed=0)
    strategy = learner(FTML, mlp_for(stream), update_size=1000)
    arrived = []
    for experience in stream.train_stream:
        strategy.train(experience, eval_streams=[])
        arrived.append(stacked(experience))
        x, y = (torch.cat(part) for part in zip(*arrived, strict=True))
        assert close(evaluated_by(strategy, next(iter(stream.test_stream))), adapted_to(strategy, x, y))


def test_a_task_that_has_not_come_is_predicted_without_adaptation():
    stream = task_incremental_benchmark(class_incremental())
    strategy = trained(stream, rounds=1)
    meta = {n: p.detach() for n, p in strategy.model.named_parameters()}
    assert close(evaluated_by(strategy, stream.test_stream[1]), meta)
    assert not close(evaluated_by(strategy, stream.test_stream[0]), meta)


# -- forgetting and transfer, counted by hand


class Scripted(FTML):
    """FTML whose predictions are right on a prescribed share of each experience's points."""

    def forward(self):
        if self.is_training:
            return super().forward()
        share = self.script.get((self.clock.train_exp_counter, self.experience.current_experience), 0.0)
        right = torch.arange(len(self.mb_y)) < round(share * len(self.mb_y))
        return nn.functional.one_hot(torch.where(right, self.mb_y, (self.mb_y + 1) % 4), 4).float()


@pytest.mark.parametrize("cut", [None, "ours", "avalanche"])
def test_forgetting_and_transfer_are_what_avalanche_says_they_are(cut):
    data = as_avalanche(20, 20, 20)
    stream = task_incremental_benchmark(benchmark_from_datasets(train=data, test=as_avalanche(10, 10, 10)))
    evaluator = EvaluationPlugin(
        forgetting_metrics(experience=True, stream=True),
        bwt_metrics(experience=True, stream=True),
        forward_transfer_metrics(experience=True, stream=True),
    )
    model = seeded(SimpleMLP, input_size=5, hidden_size=8, num_classes=4, drop_rate=0)
    strategy = Scripted(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
        steps=1,
        eval_mb_size=10,
        evaluator=evaluator,
        meta_batch_size=1,
        eval_every=0,
    )
    pieces = {
        None: lambda: ([e] for e in stream.train_stream),
        "ours": lambda: (arrivals(e, 5) for e in stream.train_stream),
        "avalanche": lambda: (split_online_stream([e], 5, seed=0) for e in stream.train_stream),
    }[cut]()
    # accuracy[after so many rounds][of experience k]
    accuracy = [[0.1, 0.2, 0.3], [1.0, 0.4, 0.3], [0.7, 0.9, 0.5], [0.8, 0.6, 1.0]]
    strategy.script = {(0, k): a for k, a in enumerate(accuracy[0])}
    strategy.eval_every = -1
    for plugin in strategy.plugins:
        if type(plugin).__name__ == "PeriodicEval":
            plugin.eval_every, plugin.do_initial = -1, False
    strategy.eval_every = 0  # what Avalanche's forward transfer asks for
    strategy.eval(stream.test_stream)
    for after, arriving in enumerate(pieces, start=1):
        for piece in arriving:
            strategy.train(piece, eval_streams=[])
        strategy.script = {(strategy.clock.train_exp_counter, k): a for k, a in enumerate(accuracy[after])}
        results = strategy.eval(stream.test_stream)
    # forgetting: accuracy right after its own training minus accuracy at the end; backward transfer: its negative
    value = lambda name: next(v for k, v in results.items() if k.startswith(name))  # noqa: E731
    assert value("StreamForgetting/") == pytest.approx(((1.0 - 0.8) + (0.9 - 0.6)) / 2)
    assert value("StreamBWT/") == pytest.approx(-((1.0 - 0.8) + (0.9 - 0.6)) / 2)
    # forward transfer: accuracy just before its own training minus accuracy before any
    assert value("StreamForwardTransfer/") == pytest.approx(((0.4 - 0.2) + (0.5 - 0.3)) / 2)
