"""A stream of your own: blobs in the plane, which keep their shape and are moved and turned in every round."""

import math

import torch
from torch import nn

from ftml_bench import protocol
from ftml_bench.benchmarks.stacked import StackedDataset
from ftml_bench.benchmarks.stream import TaskStream
from ftml_bench.seeding import generator
from ftml_bench.strategies import FTML

CLASSES = 5


class TurnedBlobs(TaskStream):
    """Five classes on a circle; a round turns the circle and moves its middle."""

    def __init__(self, *, seed: int = 0, rounds: int = 20, images_per_round: int = 50, held_out_per_round: int = 200):
        def points(t: int, split: str, count: int) -> StackedDataset:
            task = torch.rand(3, generator=generator(seed, "task", t))
            rng = generator(seed, "points", t, split)
            labels = torch.randint(0, CLASSES, (count,), generator=rng)
            angles = 2 * math.pi * (labels / CLASSES + task[0])
            x = torch.stack([angles.cos(), angles.sin()], dim=1) + 4 * task[1:] - 2
            return StackedDataset(x + 0.2 * torch.randn(x.shape, generator=rng), labels, torch.arange(count))

        super().__init__(
            title="Turned blobs",
            train=[points(t, "train", images_per_round) for t in range(rounds)],
            held_out=[points(t, "test", held_out_per_round) for t in range(rounds)],
            threshold=("accuracy", 0.9),
            checkpoints=[10, images_per_round],
            arrivals=5,
            criterion=nn.CrossEntropyLoss(),
            inner_lr=0.1,
            update_steps=20,
        )

    def model(self) -> nn.Module:
        """What is trained, where a definition names no other network."""
        return nn.Sequential(nn.Linear(2, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, CLASSES))


if __name__ == "__main__":
    torch.manual_seed(0)
    benchmark = TurnedBlobs()
    model = benchmark.model()
    strategy = FTML(
        model=model,
        optimizer=torch.optim.Adam(model.parameters(), lr=0.003),
        criterion=benchmark.criterion,
        inner_lr=benchmark.inner_lr,
        update_steps=benchmark.update_steps,
        steps=10,
        eval_mb_size=200,
        evaluator=None,
    )
    for evaluation in protocol.run(strategy, benchmark):
        if evaluation.datapoints == 10:
            print(f"round {evaluation.round + 1:2}: {evaluation.accuracy:.0%} after 10 datapoints")
