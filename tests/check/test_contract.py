"""The contracts over everything registered, and that each of them can be broken."""

import numpy as np
import pytest
import torch
from avalanche.models import SimpleMLP
from avalanche.training import Naive
from torch import nn
from torch.utils.checkpoint import checkpoint

from ftml_bench import adaptation, registry
from ftml_bench import check as checks
from ftml_bench.adaptation.batched import BatchedEngine
from ftml_bench.adaptation.loop import LoopEngine
from ftml_bench.adaptation.steps import WrittenSteps
from ftml_bench.adaptation.vmap import VmapEngine
from ftml_bench.benchmarks import RainbowDigits, Sinusoids
from ftml_bench.benchmarks.data import data_root
from ftml_bench.check import BENCHMARK_CONTRACTS, MODEL_CONTRACTS, STRATEGY_CONTRACTS, check
from ftml_bench.cli import main
from ftml_bench.strategies import FTML, FromScratch, TrainOnEverything

META = {"meta_batch_size": 2, "support_size": 4, "query_size": 4, "inner_steps": 2, "update_steps": 2}
SMALL = {  # what makes it small, and what it needs
    "FTML": META,
    "ANIL": META,
    "MetaSGD": META,
    "ContinualMAML": {**META, "gamma": 0.01},
    "FOML": META,
    "IMAML": {**META, "cg_steps": 2},
    "MOGD": META,
    "MOML": {**META, "window": 2},
    "TaskAverages": {"inner_steps": 2, "update_steps": 2},
    "FTMLVS": META,
    "MAMLPlusPlus": {**META, "multi_loss_steps": 9, "first_order_steps": 3},
    "Reptile": {"meta_batch_size": 2, "support_size": 4, "inner_steps": 2, "update_steps": 2},
    "FollowTheLeader": {"update_steps": 2},
    "RainbowMNIST": {"images_per_round": 10, "held_out_per_round": 10},
    "RainbowDigits": {"images_per_round": 30, "held_out_per_round": 30},
    "FiveWayCIFAR100": {"images_per_class": 4, "held_out_per_class": 4, "subset": True},
    "ColoredMNIST": {"images_per_round": 20, "held_out_per_round": 10},
    "ColoredDigits": {"images_per_round": 30},
    "ObjectPose": {"images_per_round": 20, "held_out_per_round": 10},
    "HiddenBoundaries": {"of": "Sinusoids"},
    "RainbowNet": {"image_size": 14, "layers": 3, "filters": 4},
    "MultiHeadNet": {"image_size": 14, "layers": 3, "filters": 4, "classes": 10, "heads": 2},
    "PoseNet": {"filters": 4, "hidden": 10},
}
TRIED_ON = {
    "PoseNet": {"benchmark": "ObjectPose", "benchmark_settings": {"images_per_round": 20, "held_out_per_round": 10}},
    "SinusoidMLP": {"benchmark": "Sinusoids"},
    # descendants of FTML on models of seconds; those with rates of every weight diverge on sinusoids by plain SGD
    **{
        name: {"benchmark": "Sinusoids"}
        for name in ("ANIL", "ContinualMAML", "FOML", "FTMLVS", "IMAML", "MOGD", "MOML", "Reptile", "TaskAverages")
    },
    "MAMLPlusPlus": {"benchmark": "LinearRegression"},
}


def broken(outcomes):
    return [str(outcome) for outcome in outcomes if outcome.verdict == "broken"]


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


# -- each contract is broken by something


class Positional(FromScratch):
    def __init__(self, model, optimizer, **others):
        super().__init__(model=model, optimizer=optimizer, **others)


class TakesAnything(FromScratch):
    def __init__(self, *, no_such_keyword=None, **others):
        super().__init__(**others)


class Unseeded(TrainOnEverything):
    def _draw(self):
        x, *rest = super()._draw()
        return [x + np.random.rand(), *rest]


class EvaluationTrains(FromScratch):
    @torch.no_grad()
    def eval(self, *args, **kwargs):
        for parameter in self.model.parameters():
            parameter *= 0.9
        return super().eval(*args, **kwargs)


class EvaluationDraws(Naive):
    def __init__(self, *, steps, seed, **others):
        super().__init__(train_epochs=steps, **others)

    def eval(self, *args, **kwargs):
        torch.rand(1)
        return super().eval(*args, **kwargs)


class Idle(FromScratch):
    def _steps(self):
        return 0


class EmptyIsNaN(FromScratch):
    def train(self, experiences, *args, **kwargs):
        if not len(experiences.dataset):
            for parameter in self.model.parameters():
                parameter.data *= float("nan")
            return None
        return super().train(experiences, *args, **kwargs)


class NeedsTwo(TrainOnEverything):
    def _before_training_exp(self, **kwargs):
        if len(self.experience.dataset) < 2:
            raise RuntimeError("two, please")
        super()._before_training_exp(**kwargs)


class Explodes(FromScratch):
    def model_for(self, experience):
        model = super().model_for(experience)
        next(model.parameters()).data *= float("nan")
        return model


class Forgets(TrainOnEverything):
    """Keeps a state that it does not save."""

    drawn = 0

    def _draw(self):
        self.drawn += 1
        x, *rest = super()._draw()
        return [x * self.drawn, *rest]


class SeesTheFuture(TrainOnEverything):
    """Draws from the whole round, of which a part has arrived."""

    def _draw(self):
        whole = self.experience.origin_experience.stacked
        x, y = whole.take(torch.arange(len(whole)))
        return [x.float() / 255, y, torch.zeros(len(y), dtype=torch.long)]


class SeesTheAnswers(FTML):
    """Adapts to held-out labels."""

    def model_for(self, experience):
        x, y = experience.stacked.take(torch.arange(10))
        return self._adapted_copy(x.float() / 255, y)


@pytest.mark.parametrize(
    ("contract", "cls"),
    [
        ("keyword-only constructor", Positional),
        ("a misspelt keyword raises", TakesAnything),
        ("same seed, same result", Unseeded),
        ("evaluation changes nothing", EvaluationTrains),
        ("evaluation changes nothing", EvaluationDraws),
        ("training steps are taken and counted", Idle),
        ("an empty arrival is refused or harmless", EmptyIsNaN),
        ("arrivals of one sample", NeedsTwo),
        ("metrics are finite numbers", Explodes),
        ("save and resume", Forgets),
        ("no leak of what has not arrived or is held out", SeesTheFuture),
        ("no leak of what has not arrived or is held out", SeesTheAnswers),
    ],
)
def test_a_strategy_can_break_each(contract, cls):
    settings = SMALL["FTML"] if issubclass(cls, FTML) else {}
    subject = checks.StrategySubject(f"{__name__}:{cls.__name__}", cls, settings, "RainbowDigits", {})
    outcome = checks.outcome_of(contract, STRATEGY_CONTRACTS[contract], subject)
    assert outcome.verdict == "broken", outcome


def changed(base, **attributes):
    """A benchmark class whose objects differ in some attributes."""

    class Changed(base):
        def __init__(self, *, seed=0, rounds=3, images_per_round=20):
            super().__init__(seed=seed, rounds=rounds, images_per_round=images_per_round)
            for name, value in attributes.items():
                setattr(self, name, value)

    return Changed


class UnseededStream(Sinusoids):
    def __init__(self, *, seed=0, rounds=3):
        super().__init__(seed=int(torch.randint(99999, ())), rounds=rounds)


class Seedless(Sinusoids):
    def __init__(self, *, seed=0, rounds=3):
        super().__init__(seed=0, rounds=rounds)


class OneRound(Sinusoids):
    def __init__(self, *, seed=0, rounds=3):
        super().__init__(seed=seed, rounds=1)


class NoSeed(Sinusoids):
    def __init__(self, *, rounds=3):
        super().__init__(seed=0, rounds=rounds)


class Leaky(Sinusoids):
    """The held-out data of round 0 are training data of round 1."""

    def __init__(self, *, seed=0, rounds=3):
        super().__init__(seed=seed, rounds=rounds)
        data, test = self.train_stream[1].stacked, self.test_stream[0].stacked
        data.x[data.rows[:5]] = test.x[test.rows[:5]]


class Numbered(Sinusoids):
    def __init__(self, *, seed=0, rounds=3):
        super().__init__(seed=seed, rounds=rounds)
        for experience in (*self.train_stream, *self.test_stream):
            experience.task_label = 0


@pytest.mark.parametrize(
    ("contract", "cls"),
    [
        ("takes seed and rounds", NoSeed),
        ("takes seed and rounds", OneRound),
        ("same seed, same stream", UnseededStream),
        ("another seed, another stream", Seedless),
        ("no held-out input is training data", Leaky),
        ("rounds are numbered and labelled", Numbered),
        ("has the defaults that a leaderboard takes", changed(Sinusoids, threshold=("precision", 0.5))),
        ("has the defaults that a leaderboard takes", changed(Sinusoids, checkpoints=[3])),
        ("has the defaults that a leaderboard takes", changed(Sinusoids, update_steps=0)),
        ("its version is a whole number, if it says one", type("Worded", (Sinusoids,), {"version": "1.1"})),
        ("its model and criterion fit its data", changed(Sinusoids, model=lambda: nn.Linear(2, 1))),
        ("its model and criterion fit its data", changed(RainbowDigits, criterion=lambda a, b: a.sum() * 0)),
    ],
)
def test_a_benchmark_can_break_each(contract, cls):
    outcome = checks.outcome_of(contract, BENCHMARK_CONTRACTS[contract], checks.BenchmarkSubject(cls, {}))
    assert outcome.verdict == "broken", outcome


class TooFew(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Flatten(), nn.Linear(588, 3))


class OwnSeed(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Flatten(), nn.Linear(588, 10))
        self[1].bias.data += np.random.rand()


class Neighbours(TooFew):
    def forward(self, x):
        return super().forward(x - x.mean(0))


class LeftBehind(OwnSeed):
    """What it multiplies by is no buffer, and stays where it was made."""

    def __init__(self):
        super().__init__()
        self.factors = torch.ones(10)

    def forward(self, x):
        return super().forward(x) * self.factors


class Elsewhere(TooFew):
    def forward(self, x):
        super().forward(x)
        return torch.zeros(len(x), 10)


@pytest.mark.parametrize(
    ("contract", "cls"),
    [
        ("output fits the benchmark's labels", TooFew),
        ("another device", LeftBehind),
        ("another device", Elsewhere),
        ("same seed, same parameters", OwnSeed),
        ("evaluation mode predicts point by point", Neighbours),
    ],
)
def test_a_model_can_break_each(contract, cls):
    outcome = checks.outcome_of(contract, MODEL_CONTRACTS[contract], checks.ModelSubject(cls, {}, "RainbowDigits", {}))
    assert outcome.verdict == "broken", outcome


class Checkpointed(nn.Module):
    """Computed once more on the way back."""

    def __init__(self, *, inputs=1):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(inputs, 4), nn.Tanh())
        self.head = nn.Linear(4, 1)

    def forward(self, x):
        return self.head(checkpoint(self.body, x, use_reentrant=False))


class Rounded(Checkpointed):
    """With a gradient that is not that of what it computes."""

    def forward(self, x):
        hidden = self.body(x)
        return self.head(hidden + (hidden.round(decimals=1) - hidden).detach())


def exactness(cls):
    subject = checks.ModelSubject(cls, {}, "Sinusoids", {})
    return checks.outcome_of("exact", MODEL_CONTRACTS["an engine treats it exactly"], subject)


def test_whether_an_engine_is_exact_is_found_out_by_finite_differences(monkeypatch):
    sinusoid = registry.load("model", "SinusoidMLP")
    assert exactness(sinusoid).verdict == exactness(Checkpointed).verdict == "holds"
    outcome = exactness(Rounded)
    assert outcome.verdict == "broken"
    assert "no engine can treat Rounded: loop has another derivative than finite differences show" in outcome.why
    # engines whose steps are a thousandth too long
    monkeypatch.setitem(adaptation.TRIED, "auto", [BatchedEngine, VmapEngine, LoopEngine])
    right = WrittenSteps._move
    monkeypatch.setattr(
        WrittenSteps, "_move", lambda self, fast, found: right(self, fast, [1.001 * gradient for gradient in found])
    )
    assert exactness(sinusoid).verdict == "broken"


def test_a_model_of_avalanche_with_dropout_and_one_with_batch_norm_hold_them():
    settings = {"num_classes": 10, "input_size": 588, "hidden_size": 8}
    outcomes = list(check("avalanche.models:SimpleMLP", settings))
    assert issubclass(SimpleMLP, nn.Module)
    # it may be given its arguments by position: the one contract that is ours alone
    assert [o.contract for o in outcomes if o.verdict == "broken"] == ["keyword-only constructor"]


# -- the command


def test_the_command_prints_a_line_a_contract(capsys):
    assert main(["check", "SinusoidMLP", "--benchmark", "Sinusoids", "--set", "hidden=5"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line[:11].strip() for line in lines] == ["holds"] * 5 + ["not tested", "holds", "holds"]
    assert lines[5] == "not tested  batch norm can be converted: it has no batch norm"


def test_a_broken_contract_is_named_and_the_exit_code_is_1(capsys):
    assert main(["check", f"{__name__}:Seedless"]) == 1
    out = capsys.readouterr().out
    assert "broken      another seed, another stream: seed=1 makes the same stream as seed=0" in out
    assert out.count("broken") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["FTLM"], "unknown strategy, benchmark or model 'FTLM': did you mean 'FTML'"),
        (["fractions:Fraction"], "fractions:Fraction is no strategy (SupervisedTemplate), benchmark (CLScenario) or"),
        (["no_such:Thing"], "cannot import no_such"),
        (["Sinusoids", "--set", "round=3"], "unknown setting of Sinusoids 'round': did you mean 'rounds'"),
        (["FTML", "--set", "inner_lrr=3"], "'inner_lrr': did you mean 'inner_lr'"),
        (["FTML", "--benchmark", "Sinusoid"], "unknown benchmark 'Sinusoid': did you mean 'Sinusoids'"),
    ],
)
def test_errors_of_use_are_one_line_and_exit_code_2(capsys, arguments, message):
    assert main(["check", *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
