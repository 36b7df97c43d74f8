"""A model or criterion that differs, with tensors of the same shapes, is refused when a state is loaded."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from ftml_bench.errors import UsageError
from ftml_bench.saving import load, save
from tests.saving.criteria import Criterion, CriterionThatIsNoModule
from tests.saving.strategies import build, go


class Configured(nn.Module):
    def __init__(self, **settings):
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(588, 10))
        vars(self).update(settings)

    def forward(self, x):
        return self.body(x)

    def extra_repr(self):
        return str(getattr(self, "said", ""))


class Config:
    def __init__(self, rate):
        self.rate, self.steps = rate, (1, 2)


def layers(*between):
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(588, 6), *between, nn.Linear(6, 10))


@pytest.mark.parametrize(
    ("saved", "other", "message"),
    [
        (
            lambda: layers(nn.Tanh()),
            lambda: layers(nn.ReLU()),
            "2 of the saved model is Tanh, of this one ReLU",
        ),
        (
            lambda: layers(nn.Dropout(0.1)),
            lambda: layers(nn.Dropout(0.9)),
            r"2 \(Dropout\) of the model was saved with p=0\.1; here it is 0\.9",
        ),
        (
            lambda: layers(nn.LayerNorm(6)),
            lambda: layers(nn.LayerNorm(6, eps=0.1)),
            r"2 \(LayerNorm\) of the model was saved with eps=1e-05; here it is 0\.1",
        ),
        (
            lambda: Configured(activation=torch.tanh),
            lambda: Configured(activation=torch.relu),
            r"model Configured was saved with activation='.*tanh'; here it is '.*relu'",
        ),
        (
            lambda: Configured(config=Config(0.1)),
            lambda: Configured(config=Config(0.2)),
            r"model Configured was saved with config=\[\['rate', 0\.1\], .*; here it is \[\['rate', 0\.2\], .*",
        ),
        (
            lambda: Configured(),
            lambda: Configured(scale=2.0),
            r"model Configured was saved with scale=missing; here it is 2\.0",
        ),
        (
            lambda: Configured(scale=2.0),
            lambda: Configured(),
            r"model Configured was saved with scale=2\.0; here it is missing",
        ),
        (
            lambda: Configured(said=[torch.ones(1)]),
            lambda: Configured(said=[object()]),
            r"model Configured was saved with said=\['Tensor'\]; here it is \['object'\]",
        ),
        (
            lambda: layers().double(),
            lambda: layers(),
            r"1\.weight of the saved model has type torch\.float64, of this one torch\.float32",
        ),
    ],
)
def test_another_model_with_tensors_of_the_same_shapes_is_refused(saved, other, message, digits, stream, tmp_path):
    save(build("TrainOnEverything", model=saved()), tmp_path / "state.pt")
    assert load(build("TrainOnEverything", model=saved()), tmp_path / "state.pt", stream) == 0
    with pytest.raises(UsageError, match=f"^{message}$"):
        load(build("TrainOnEverything", model=other()), tmp_path / "state.pt", stream)


def test_a_model_that_says_something_else_of_itself_is_refused_by_the_line(digits, stream, tmp_path):
    class Said(Configured):
        def extra_repr(self):
            return f"{text} of {object()}\n"

    def built():
        return build("TrainOnEverything", model=Said())

    text = "first"
    save(built(), tmp_path / "state.pt")
    assert load(built(), tmp_path / "state.pt", stream) == 0  # an address in memory is another each time
    text = "second"
    message = r"^the saved model has 'first of <object object>' where this one has 'second of <object object>'$"
    with pytest.raises(UsageError, match=message):
        load(built(), tmp_path / "state.pt", stream)


@pytest.mark.parametrize(
    ("saved", "other", "message"),
    [
        (
            lambda: nn.CrossEntropyLoss(label_smoothing=0.1),
            lambda: nn.CrossEntropyLoss(),
            r"criterion CrossEntropyLoss was saved with label_smoothing=0\.1; here it is 0\.0",
        ),
        (
            lambda: nn.CrossEntropyLoss(weight=torch.arange(10.0)),
            lambda: nn.CrossEntropyLoss(weight=torch.ones(10)),
            r"criterion CrossEntropyLoss was saved with weight=\[0\.0, 1\.0, .*; here it is \[1\.0, 1\.0, .*",
        ),
        (
            lambda: nn.CrossEntropyLoss(weight=torch.ones(10)),
            lambda: nn.CrossEntropyLoss(),
            "the saved criterion has a weight, this one does not match",
        ),
        (
            lambda: Criterion(weight=torch.ones(10)),
            lambda: Criterion(weight=torch.ones(10), smoothing=0.2),
            r"criterion Criterion was saved with smoothing=0\.1; here it is 0\.2",
        ),
        (
            lambda: CriterionThatIsNoModule(),
            lambda: CriterionThatIsNoModule(0.2),
            r"criterion CriterionThatIsNoModule was saved with smoothing=0\.1; here it is 0\.2",
        ),
        (
            lambda: F.cross_entropy,
            lambda: F.nll_loss,
            "TrainOnEverything was saved with criterion='cross_entropy'; here it is 'nll_loss'",
        ),
        (
            lambda: partial(F.cross_entropy, label_smoothing=0.1),
            lambda: partial(F.cross_entropy, label_smoothing=0.2),
            r"TrainOnEverything was saved with criterion=.*0\.1.*; here it is .*0\.2.*",
        ),
    ],
)
def test_another_criterion_is_refused(saved, other, message, digits, stream, tmp_path):
    save(go(build("TrainOnEverything", criterion=saved()), digits, stream[:1]), tmp_path / "state.pt")
    assert load(build("TrainOnEverything", criterion=saved()), tmp_path / "state.pt", stream) == 1
    with pytest.raises(UsageError, match=f"^{message}$"):
        load(build("TrainOnEverything", criterion=other()), tmp_path / "state.pt", stream)
