"""Classes are renamed among themselves as they are trained on; what is no class keeps its name or is refused."""

import pytest
import torch
from avalanche.benchmarks import benchmark_from_datasets
from avalanche.benchmarks.utils import AvalancheDataset, as_classification_dataset
from avalanche.benchmarks.utils.transform_groups import TransformGroups
from avalanche.benchmarks.utils.transforms import TupleTransform
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits, one_hot
from torch.utils.data import Dataset, TensorDataset

from ftml_bench.buffer import TaskBuffer
from ftml_bench.buffer.rules import ShareOfClasses
from ftml_bench.errors import UsageError
from ftml_bench.strategies import FTML
from tests.buffer.points import rng
from tests.strategies.avalanche.scripts import learner

N = 20


class Labelled(Dataset):
    """Point i is the number i, of class i % 4."""

    targets = [i % 4 for i in range(N)]

    def __len__(self):
        return N

    def __getitem__(self, index):
        return torch.tensor([float(index)]), self.targets[index]


def transformed(of_target):
    groups = TransformGroups({name: TupleTransform([None, of_target]) for name in ("train", "eval")})
    return as_classification_dataset(Labelled(), transform_groups=groups)


def of(y):
    return AvalancheDataset([TensorDataset(torch.arange(N)[:, None].float(), y)])


def buffer_of(dataset):
    buffer = TaskBuffer()
    buffer.add(benchmark_from_datasets(train=[dataset]).train_stream[0])
    return buffer


def names(buffer, draws=40, **options):
    """What each point was called in each of many draws: by draw, a dictionary of points."""
    (sx, sy), (qx, qy), _ = buffer.split([0] * draws, 5, 5, rng(), permute_labels=True, **options)
    x, y = torch.cat([sx, qx], dim=1)[..., 0].long(), torch.cat([sy, qy], dim=1)
    return [dict(zip(points, labels, strict=True)) for points, labels in zip(x.tolist(), y.tolist(), strict=True)]


def check(drawn, trained_on, classes):
    """Each draw renames the classes one to one, and every class gets every name in some draw."""
    seen = set()
    for draw in drawn:
        pairs = {(trained_on(point), label) for point, label in draw.items()}
        assert len({old for old, _ in pairs}) == len({new for _, new in pairs}) == len(pairs)
        seen |= pairs
    assert seen == {(a, b) for a in classes for b in classes}


@pytest.mark.parametrize(
    ("of_target", "classes"), [(lambda y: y // 2, [0, 1]), (lambda y: y + 4, [4, 5, 6, 7]), (None, [0, 1, 2, 3])]
)
def test_the_classes_are_those_behind_a_transform_of_targets(of_target, classes):
    check(names(buffer_of(transformed(of_target))), lambda point: (of_target or int)(point % 4), classes)


def test_the_classes_of_arrivals_are_read_once_as_they_come():
    read = []

    def noted(y):
        read.append(y)
        return y

    buffer = buffer_of(transformed(noted))
    assert buffer.rounds[0].classes.tolist() == [i % 4 for i in range(N)]
    state = torch.get_rng_state()
    assert buffer.rounds[0].classes.tolist() == [i % 4 for i in range(N)]
    assert torch.equal(torch.get_rng_state(), state)
    assert len(read) == N
    buffer.rounds[0].keep(torch.tensor([1, 2, 19]))
    assert buffer.rounds[0].classes.tolist() == [1, 2, 3]


@pytest.mark.parametrize("ignored", [-100, 3, 255])
def test_points_to_ignore_are_ignored_by_their_name_in_every_draw(ignored):
    y = torch.arange(N) % 3
    y[::4] = ignored
    drawn = names(buffer_of(of(y)), ignore_index=ignored)
    for draw in drawn:
        assert all((label == ignored) == (point % 4 == 0) for point, label in draw.items())
    others = [{point: label for point, label in draw.items() if point % 4} for draw in drawn]
    check(others, lambda point: point % 3, [0, 1, 2])


def test_a_round_to_ignore_as_a_whole_stays_as_it_is():
    assert {label for draw in names(buffer_of(of(torch.full((N,), -100)))) for label in draw.values()} == {-100}


@pytest.mark.parametrize(
    ("y", "message"),
    [
        (torch.arange(N) % 3 - 1, "needs classes 0, 1, ..., and -100 for points to ignore: a target is -1"),
        (torch.rand(N, 4), "class_balanced and permute_labels need classes"),
    ],
)
def test_targets_that_are_no_classes_are_refused(y, message):
    with pytest.raises(UsageError, match=message):
        names(buffer_of(of(y)))


def test_targets_that_change_from_draw_to_draw_are_refused():
    with pytest.raises(UsageError, match="permute_labels needs targets that are the same in every draw"):
        names(buffer_of(transformed(lambda y: y + int(torch.randint(1000, ())))))


HOT = one_hot(torch.arange(N) % 4, 4)


def test_points_of_several_classes_cannot_be_balanced():
    message = r"need one class a point: a target of this round has the shape \(4,\)"
    buffer = buffer_of(of(HOT))
    with pytest.raises(UsageError, match=message):
        buffer.split([0], 3, 3, rng(), class_balanced=True)
    with pytest.raises(UsageError, match=message):
        ShareOfClasses(8).keep(buffer.rounds, seed=0)


def stream_of(y):
    x = torch.randn(N, 6, generator=rng())
    return benchmark_from_datasets(train=[AvalancheDataset([TensorDataset(x, y)])]).train_stream


def test_several_answers_a_point_are_not_renamed():
    def criterion(outputs, y):
        return binary_cross_entropy_with_logits(outputs, y.float())

    strategy = learner(FTML, nn.Linear(6, 4), criterion=criterion, permute_labels=True)
    before = strategy.model.weight.detach().clone()
    with pytest.raises(UsageError, match=r"permute_labels renames classes: targets of shape \(6, 4\)") as error:
        strategy.train(stream_of(HOT)[0], eval_streams=[])
    assert "\n" not in str(error.value)
    assert torch.equal(strategy.model.weight, before)


def test_the_index_to_ignore_is_the_criterions():
    y = torch.arange(N) % 4
    data = stream_of(y)
    strategy = learner(
        FTML, nn.Linear(6, 4), criterion=nn.CrossEntropyLoss(ignore_index=2), permute_labels=True, class_balanced=True
    )
    strategy.buffer.add(data[0])
    places = {tuple(point[0].tolist()): int(point[1]) for point in data[0].dataset}
    names = set()
    for _ in range(40):
        query_x, query_y, support_x, support_y, _ = strategy._draw()
        for x, y in ((query_x, query_y), (support_x.flatten(0, 1), support_y.flatten())):
            names |= {(places[tuple(a.tolist())], int(b)) for a, b in zip(x, y, strict=True)}
    assert names == {(2, 2)} | {(a, b) for a in (0, 1, 3) for b in (0, 1, 3)}
