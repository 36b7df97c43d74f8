"""FTML where somebody changes the model or the criterion between experiences, compared with gradient steps by hand."""

from copy import deepcopy

import pytest
import torch
from avalanche.benchmarks import benchmark_from_datasets, task_incremental_benchmark
from avalanche.benchmarks.utils import as_classification_dataset
from avalanche.training.plugins import EvaluationPlugin
from torch import nn
from torch.utils.data import TensorDataset

from ftml_bench.adaptation import ENGINES
from ftml_bench.errors import UsageError
from ftml_bench.strategies import FTML, FollowTheLeader, TrainOnEverything

STEPS, RATE = 2, 0.1


@pytest.fixture
def stream():
    g = torch.Generator().manual_seed(0)
    datasets = []
    for _ in range(3):
        data = TensorDataset(torch.randn(30, 4, generator=g), torch.randint(0, 3, (30,), generator=g))
        data.targets = data.tensors[1].tolist()
        datasets.append(as_classification_dataset(data))
    return task_incremental_benchmark(benchmark_from_datasets(train=datasets, test=datasets))


def build(engine="auto", cls=FTML, model=None, criterion=None, **settings):
    torch.manual_seed(0)
    model = model or nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))
    if cls is FTML:
        sizes = {"meta_batch_size": 3, "support_size": 5, "query_size": 5, "inner_steps": 2, "engine": engine}
        settings = {**sizes, "inner_lr": RATE, "update_steps": STEPS, **settings}
    elif cls is FollowTheLeader:
        settings = {"inner_lr": RATE, "update_steps": STEPS, **settings}
    return cls(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.05),
        criterion=criterion or nn.CrossEntropyLoss(),
        train_mb_size=10,
        evaluator=EvaluationPlugin(),
        steps=2,
        **settings,
    )


def adapted_by_hand(model, data, criterion):
    """A copy after plain gradient descent of what asks for a gradient."""
    x, y = (torch.stack([torch.as_tensor(point[i]) for point in data]) for i in (0, 1))
    copy = deepcopy(model)
    optimizer = torch.optim.SGD([p for p in copy.parameters() if p.requires_grad], lr=RATE)
    for _ in range(STEPS):
        optimizer.zero_grad()
        criterion(copy(x), y).backward()
        optimizer.step()
    return copy


def check(strategy, stream, criterion=None):
    """The copy that is evaluated on the second round."""
    strategy.model.eval()
    found = strategy.model_for(stream.test_stream[1])
    expected = adapted_by_hand(strategy.model, stream.train_stream[1].dataset, criterion or nn.CrossEntropyLoss())
    for a, b in zip(found.parameters(), expected.parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-6)
    strategy.model.train()


@pytest.mark.parametrize("engine", ["auto", *ENGINES])
def test_layers_that_are_unfrozen_and_frozen_between_experiences_are_followed(engine, stream):
    strategy = build(engine)
    body = strategy.model[0].requires_grad_(False)
    before = body.weight.clone()
    strategy.train(stream.train_stream[0], eval_streams=[])
    assert torch.equal(body.weight, before)
    body.requires_grad_(True)
    strategy.train(stream.train_stream[1], eval_streams=[])
    assert "0.weight" in strategy.engine.adapted
    assert not torch.equal(body.weight, before)
    check(strategy, stream)
    body.requires_grad_(False)
    before = body.weight.clone()
    check(strategy, stream)  # at once, before anything is trained again
    strategy.train(stream.train_stream[2], eval_streams=[])
    assert torch.equal(body.weight, before)
    assert "0.weight" not in strategy.engine.adapted
    check(strategy, stream)


@pytest.mark.parametrize("cls", [FTML, FollowTheLeader])
def test_another_criterion_counts_inside_and_outside(cls, stream):
    strategy = build(cls=cls)
    for experience in stream.train_stream[:2]:
        strategy.train(experience, eval_streams=[])
    strategy._criterion = nn.CrossEntropyLoss(weight=torch.tensor([1.0, 5.0, 20.0]))
    check(strategy, stream, strategy._criterion)
    before = deepcopy(strategy.model)
    strategy.train(stream.train_stream[2], eval_streams=[])
    assert not torch.equal(before[0].weight, strategy.model[0].weight)
    if cls is FTML:
        assert strategy.engine.criterion is strategy._criterion


def test_a_hook_that_scales_inputs_acts_in_training_too(stream):
    strategy = build()
    strategy.model[0].register_forward_pre_hook(lambda layer, inputs: (inputs[0] / 4,))
    strategy.train(stream.train_stream[0], eval_streams=[])
    hooked = strategy.model[2].weight.grad
    model = build().model
    plain = nn.Sequential(Divided(), *model)
    strategy = build(model=plain, adapted=["1.weight", "1.bias", "3.weight", "3.bias"])
    strategy.train(stream.train_stream[0], eval_streams=[])
    assert torch.allclose(hooked, plain[3].weight.grad, rtol=1e-4, atol=1e-7)


class Divided(nn.Module):
    def forward(self, x):
        return x / 4


@pytest.mark.parametrize("cls", [FTML, TrainOnEverything])
def test_a_loss_that_would_be_spread_over_all_pairs_is_refused_before_anything_is_trained(cls):
    datasets = [as_classification_dataset(labelled(TensorDataset(torch.randn(30, 4), torch.randn(30))))]
    stream = benchmark_from_datasets(train=datasets).train_stream
    strategy = build(cls=cls, model=nn.Linear(4, 1), criterion=nn.MSELoss())
    before = deepcopy(strategy.model.state_dict())
    with pytest.raises(UsageError, match=r"MSELoss of outputs of shape .* would spread one over the other"):
        strategy.train(stream[0], eval_streams=[])
    assert all(torch.equal(value, before[name]) for name, value in strategy.model.state_dict().items())


def labelled(data):
    data.targets = [0] * len(data)
    return data


def test_a_model_that_gives_no_single_tensor_is_refused_before_anything_is_trained(stream):
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(4, 3)

        def forward(self, x):
            return self.linear(x), x

    strategy = build(model=Two(), criterion=lambda outputs, y: nn.functional.cross_entropy(outputs[0], y))
    with pytest.raises(UsageError, match="it gives a tuple: expected one tensor"):
        strategy.train(stream.train_stream[0], eval_streams=[])
