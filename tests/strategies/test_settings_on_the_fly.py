"""Settings of the inner loop that are set after a strategy was built: followed by training, evaluation and saving."""

import pytest
import torch
from avalanche.benchmarks import nc_benchmark
from avalanche.models import IncrementalClassifier
from torch import nn
from torch.nn.functional import cross_entropy

from ftml_bench.errors import UsageError
from ftml_bench.saving import load, save
from ftml_bench.strategies import FTML, FTMLVS, MAMLPlusPlus, MetaSGD
from tests.strategies.avalanche.small import points

BUILT = {"inner_lr": 0.5, "inner_steps": 2, "second_order": True, "inner_clip": None, "adapted": "all"}
SET = {"inner_lr": 0.05, "inner_steps": 1, "second_order": False, "inner_clip": 0.01, "adapted": ["2.bias"]}
changed = pytest.mark.parametrize("name", SET)


@pytest.fixture(scope="module")
def stream():
    return nc_benchmark(points(30), points(30), n_experiences=2, task_labels=True, shuffle=False).train_stream


def plain():
    return nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 6))


class Growing(nn.Module):
    def __init__(self):
        super().__init__()
        self.classifier = IncrementalClassifier(5, initial_out_features=6)

    def forward(self, x):
        return self.classifier(x)


def build(net=plain, cls=FTML, **settings):
    torch.manual_seed(0)
    model = net()
    sizes = {"meta_batch_size": 2, "support_size": 3, "query_size": 3, "steps": 2, "update_steps": 3}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    return cls(model=model, optimizer=optimizer, evaluator=None, **{**sizes, **BUILT, **settings})


def train(strategy, stream):
    for experience in stream:
        strategy.train(experience, eval_streams=[])
    return torch.cat([p.detach().flatten() for p in strategy.model.parameters()])


@changed
def test_a_setting_of_the_strategy_or_of_its_engine_trains_as_one_it_was_built_with(name, stream):
    expected = train(build(**{name: SET[name]}), stream)
    assert not torch.equal(expected, train(build(), stream))
    for of in (lambda strategy: strategy, lambda strategy: strategy.engine):
        strategy = build()
        setattr(of(strategy), name, SET[name])
        assert getattr(strategy, name) == SET[name]
        assert torch.equal(train(strategy, stream), expected)


@pytest.mark.parametrize("net", [plain, Growing])
def test_an_evaluation_adapts_by_the_rate_of_now(net, stream):
    strategy = build(net)
    train(strategy, stream)
    strategy.engine.inner_lr = 0.05
    strategy.model.eval()
    found = strategy.model_for(stream[0])
    x, y = (torch.stack([torch.as_tensor(point[i]) for point in stream[0].dataset]) for i in (0, 1))
    by_hand = [p.detach().clone() for p in strategy.model.parameters()]
    names = [name for name, _ in strategy.model.named_parameters()]
    for _ in range(3):
        leaves = [p.requires_grad_() for p in by_hand]
        outputs = torch.func.functional_call(strategy.model, dict(zip(names, leaves, strict=True)), (x,))
        gradients = torch.autograd.grad(cross_entropy(outputs, y), leaves)
        by_hand = [(p - 0.05 * g).detach() for p, g in zip(by_hand, gradients, strict=True)]
    for own, expected in zip(found.parameters(), by_hand, strict=True):
        assert torch.allclose(own, expected, atol=1e-6)


@changed
def test_it_is_saved_and_goes_on(name, stream, tmp_path):
    strategy = build()
    train(strategy, stream[:1])
    setattr(strategy, name, SET[name])
    save(strategy, tmp_path / "state.pt")
    again = build()
    load(again, tmp_path / "state.pt", stream)
    assert getattr(again.engine, name) == SET[name]
    assert torch.equal(train(again, stream[1:]), train(strategy, stream[1:]))
    with pytest.raises(UsageError, match=f"FTML was saved with {name}="):  # what it was built with is compared as ever
        load(build(**{name: SET[name]}), tmp_path / "state.pt", stream)


def test_learners_that_differ_in_what_was_set_are_not_alike():
    one, other = build(), build()
    assert one.alike() == other.alike()
    other.inner_clip = 0.01
    assert one.alike() != other.alike()


@pytest.mark.parametrize("cls", [MetaSGD, MAMLPlusPlus, FTMLVS])
def test_rates_that_are_learned_are_not_set_by_inner_lr(cls, stream):
    strategy = build(cls=cls)
    refused = pytest.raises(
        UsageError, match=rf"^inner_lr=0\.1: the rates of {cls.__name__} are learned and only start from inner_lr"
    )
    with refused:
        strategy.inner_lr = 0.1
    assert strategy.inner_lr == 0.5
    train(strategy, stream[:1])
    strategy.engine.inner_lr = 0.1
    with refused:
        strategy.model_for(stream[0])
    with refused:
        train(strategy, stream[1:])


def test_maml_plus_plus_without_a_schedule_keeps_the_order_that_is_set(stream):
    expected = train(build(cls=MAMLPlusPlus, second_order=False), stream)
    strategy = build(cls=MAMLPlusPlus)
    strategy.engine.second_order = False
    assert torch.equal(train(strategy, stream), expected)
