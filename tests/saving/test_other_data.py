"""A stream of data with other inputs and the same labels is refused; one that draws when it is read is not."""

import random

import numpy as np
import pytest
import torch
from avalanche.benchmarks import benchmark_from_datasets
from avalanche.benchmarks.utils import as_classification_dataset
from torch import nn
from torch.utils.data import TensorDataset

from ftml_bench.benchmarks import RainbowDigits, arrivals
from ftml_bench.buffer import LastRounds
from ftml_bench.errors import UsageError
from ftml_bench.saving import load, load_state_dict, save, state_dict
from tests.saving.strategies import build, somewhere_else


def rounds(changed=None, transform=None, classes=True):
    """The rounds of a stream of datasets; `changed`: rows of the second that are others."""
    rng = torch.Generator().manual_seed(0)
    data = []
    for t in range(2):
        x, y = torch.randn(6, 588, generator=rng), torch.arange(6)
        if t == 1 and changed is not None:
            x[changed] += 1
        dataset = TensorDataset(x, y)
        dataset.targets = y.tolist()
        groups = None if transform is None else {"train": (None, None), "eval": (transform, None)}
        data.append(as_classification_dataset(dataset, transform_groups=groups))
    return list(benchmark_from_datasets(train=data).train_stream)


def learner():
    torch.manual_seed(0)
    return build("TrainOnEverything", model=nn.Linear(588, 10))


def saved_after(stream, path):
    strategy = learner()
    for experience in stream:
        strategy.train(experience, eval_streams=[])
    save(strategy, path)


@pytest.mark.parametrize("changed", [0, 5])
def test_datasets_with_other_inputs_are_refused(changed, tmp_path):
    saved_after(rounds(), tmp_path / "state.pt")
    assert load(learner(), tmp_path / "state.pt", rounds()) == 2
    with pytest.raises(UsageError, match=r"^not the stream that was trained on: round 2 has other data$"):
        load(learner(), tmp_path / "state.pt", rounds(changed))


@pytest.mark.parametrize("rule", [None, LastRounds(1)])
def test_stacked_data_are_compared_in_every_point(rule, tmp_path):
    """Also those that a rule has let go of, on which the model was trained."""

    def pieces(changed=None):
        found = []
        for t, whole in enumerate(RainbowDigits(rounds=3, images_per_round=24, held_out_per_round=10).train_stream):
            parts = list(arrivals(whole, 12))
            if t == changed:
                parts[0].stacked.x[parts[0].stacked.rows[5]] ^= 1  # neither the first nor the last
            found += parts
        return found

    def learner():
        return build("TrainOnEverything", buffer=rule)

    strategy = learner()
    for piece in pieces():
        strategy.train(piece, eval_streams=[])
    save(strategy, tmp_path / "state.pt")
    assert load(learner(), tmp_path / "state.pt", pieces()) == 6
    for t in range(3):
        with pytest.raises(UsageError, match=f"^not the stream that was trained on: round {t + 1} has other data$"):
            load(learner(), tmp_path / "state.pt", pieces(changed=t))


def test_another_transform_for_evaluations_is_refused(tmp_path):
    saved_after(rounds(transform=lambda x: x * 2), tmp_path / "state.pt")
    with pytest.raises(UsageError, match="round 1 has other data"):
        load(learner(), tmp_path / "state.pt", rounds(transform=lambda x: x * 3))


OWN = torch.Generator().manual_seed(0)
DRAWING = {
    "from PyTorch": lambda x: x + torch.randn(588),
    "from NumPy": lambda x: x + float(np.random.rand()),
    "from Python": lambda x: x + random.random(),
    "from its own": lambda x: x + torch.rand((), generator=OWN),
    "no tensor": lambda x: "a picture",
}


@pytest.mark.parametrize("transform", DRAWING.values(), ids=DRAWING)
def test_an_evaluation_transform_that_draws_is_no_other_stream(transform, tmp_path):
    saved_after(rounds(transform=transform), tmp_path / "state.pt")
    somewhere_else()
    assert load(learner(), tmp_path / "state.pt", rounds(transform=transform)) == 2


def test_looking_at_data_leaves_the_random_states(tmp_path):
    strategy = learner()
    for experience in rounds(transform=lambda x: x + torch.randn(588) + np.random.rand() + random.random()):
        strategy.train(experience, eval_streams=[])
    before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    state_dict(strategy)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (np.random.get_state()[1] == before[1]).all()
    assert random.getstate() == before[2]


def test_pieces_of_a_round_are_compared_at_the_ends_of_the_whole(tmp_path):
    def pieces(changed=None):
        return [piece for whole in rounds(changed) for piece in arrivals(whole, 3)]

    strategy = learner()
    for experience in pieces():
        strategy.train(experience, eval_streams=[])
    state = state_dict(strategy)
    assert load_state_dict(learner(), state, pieces()) == 4
    with pytest.raises(UsageError, match="has other data"):
        load_state_dict(learner(), state, pieces(slice(None)))
