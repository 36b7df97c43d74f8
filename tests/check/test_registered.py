"""Everything registered holds its contracts, and some of Avalanche's own."""

import pytest
from avalanche.models import SimpleMLP
from torch import nn

from ftml_bench import registry
from ftml_bench.benchmarks.data import data_root
from ftml_bench.check import check
from tests.check.contracts import SMALL, TRIED_ON, broken

needs_mnist = pytest.mark.skipif(not (data_root() / "MNIST/raw").is_dir(), reason="needs MNIST's files")

needs_cifar100 = pytest.mark.skipif(
    not (data_root() / "cifar-100-subset/train").is_dir(), reason="needs the strips of CIFAR-100"
)

NEEDS = {"RainbowMNIST": needs_mnist, "ColoredMNIST": needs_mnist, "FiveWayCIFAR100": needs_cifar100}


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=NEEDS.get(name, ()))
        for name in registry.STRATEGIES | registry.BENCHMARKS | registry.MODELS
    ],
)
def test_everything_registered_holds_its_contracts(name):
    outcomes = list(check(name, SMALL.get(name), **TRIED_ON.get(name, {})))
    assert not broken(outcomes)
    assert sum(outcome.verdict == "holds" for outcome in outcomes) >= 6


@pytest.mark.parametrize(("name", "settings"), [("EWC", {"ewc_lambda": 1.0}), ("GDumb", {}), ("ER_ACE", {})])
def test_avalanches_own_hold_them_too(name, settings):
    assert not broken(check(f"avalanche.training:{name}", settings))


def test_a_strategy_on_a_regression_stream():
    assert not broken(check("FromScratch", benchmark="Sinusoids"))


def test_a_model_of_avalanche_with_dropout_and_one_with_batch_norm_hold_them():
    settings = {"num_classes": 10, "input_size": 588, "hidden_size": 8}
    outcomes = list(check("avalanche.models:SimpleMLP", settings))
    assert issubclass(SimpleMLP, nn.Module)
    # it may be given its arguments by position: the one contract that is ours alone
    assert [o.contract for o in outcomes if o.verdict == "broken"] == ["keyword-only constructor"]
