"""What ordinary Avalanche scripts of ours share: learners, streams and models."""

import pytest
import torch
from avalanche.benchmarks import (
    PermutedMNIST,
    RotatedMNIST,
    SplitCIFAR100,
    SplitMNIST,
    benchmark_from_datasets,
    class_incremental_benchmark,
    nc_benchmark,
    new_instances_benchmark,
    ni_benchmark,
    task_incremental_benchmark,
)
from avalanche.benchmarks.utils import as_classification_dataset
from avalanche.models import SimpleMLP
from avalanche.training.plugins import EvaluationPlugin
from torch.utils.data import TensorDataset

from ftml_bench.strategies import FTML, FollowTheLeader, FromScratch, TrainOnEverything

JOINT = {"train_mb_size": 16, "group_size": 8}
LEARNERS = {
    FTML: {"meta_batch_size": 2, "support_size": 4, "query_size": 4, "inner_steps": 2, "update_size": 20},
    FollowTheLeader: {**JOINT, "update_steps": 2, "update_size": 20},
    TrainOnEverything: {**JOINT, "update_size": 20},
    FromScratch: {"train_mb_size": 16, "update_size": 20},
}
every_learner = pytest.mark.parametrize("cls", LEARNERS, ids=lambda cls: cls.__name__)


def learner(cls, model, *, lr=0.05, evaluator=None, **changes):
    settings = {"train_mb_size": 16, "eval_mb_size": 32, **LEARNERS[cls], **changes}
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    return cls(model=model, optimizer=optimizer, evaluator=evaluator or EvaluationPlugin(), **settings)


def seeded(build, *args, **settings):
    torch.manual_seed(0)
    return build(*args, **settings)


def state(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[n], second[n]) for n in first)


def points(n, classes=4, seed=0):
    """(x, y) in five dimensions, a class a direction, as a dataset with targets."""
    rng = torch.Generator().manual_seed(seed)
    y = torch.arange(n) % classes
    dataset = TensorDataset(torch.randn(n, 5, generator=rng) / 2 + 2 * torch.eye(5)[y], y)
    dataset.targets = y.tolist()
    return dataset


def as_avalanche(*sizes):
    return [as_classification_dataset(points(n, seed=i)) for i, n in enumerate(sizes)]


def class_incremental(**settings):
    return class_incremental_benchmark(
        {"train": as_avalanche(48)[0], "test": as_avalanche(24)[0]}, num_experiences=2, class_order=[0, 1, 2, 3]
    )


STREAMS = {
    "SplitMNIST": lambda get: SplitMNIST(5, seed=1, dataset_root=get("mnist")),
    "SplitMNIST, task labels": lambda get: SplitMNIST(5, return_task_id=True, seed=1, dataset_root=get("mnist")),
    "PermutedMNIST": lambda get: PermutedMNIST(2, seed=1, dataset_root=get("mnist")),
    "RotatedMNIST": lambda get: RotatedMNIST(2, rotations_list=[0, 30], seed=1, dataset_root=get("mnist")),
    "SplitCIFAR100": lambda get: SplitCIFAR100(2, seed=1, dataset_root=get("cifar100")),
    "nc_benchmark": lambda get: nc_benchmark(points(48), points(24), n_experiences=2, task_labels=False),
    "nc_benchmark, task labels": lambda get: nc_benchmark(points(48), points(24), n_experiences=2, task_labels=True),
    "ni_benchmark": lambda get: ni_benchmark(points(48), points(24), n_experiences=3, task_labels=False),
    "ni_benchmark, task labels": lambda get: ni_benchmark(points(48), points(24), n_experiences=3, task_labels=True),
    "benchmark_from_datasets": lambda get: benchmark_from_datasets(train=as_avalanche(30, 31), test=as_avalanche(9, 8)),
    "class_incremental_benchmark": lambda get: class_incremental(),
    "task_incremental_benchmark": lambda get: task_incremental_benchmark(class_incremental()),
    "new_instances_benchmark": lambda get: new_instances_benchmark(*as_avalanche(48, 24), num_experiences=3, seed=0),
}


def mlp_for(stream):
    sizes = next(iter(stream.train_stream)).dataset[0][0].numel()
    classes = 100 if sizes == 3 * 32 * 32 else 10
    return seeded(SimpleMLP, input_size=sizes, hidden_size=16, num_classes=classes, drop_rate=0)


def stacked(experience, rows=slice(None)):
    dataset = experience.dataset.eval()
    x, y = zip(*[dataset[i][:2] for i in range(len(dataset))][rows], strict=True)
    return torch.stack(x), torch.tensor(y)


def trained(stream, rounds=None):
    strategy = learner(FTML, mlp_for(stream), update_size=1000)
    for experience in stream.train_stream[:rounds]:
        strategy.train(experience, eval_streams=[])
    return strategy
