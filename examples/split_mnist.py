"""FTML in an ordinary Avalanche script: SplitMNIST. Only the import of the strategy differs from a script of Naive."""

import os

import torch
from avalanche.benchmarks import SplitMNIST
from avalanche.evaluation.metrics import accuracy_metrics, forgetting_metrics
from avalanche.logging import InteractiveLogger
from avalanche.models import SimpleMLP
from avalanche.training.plugins import EvaluationPlugin

from ftml_bench.strategies import FTML as Strategy

torch.manual_seed(0)
folder = os.environ.get("FTML_BENCH_DATA")  # of MNIST, which is fetched if it is not there; None: Avalanche's own
benchmark = SplitMNIST(n_experiences=5, return_task_id=True, seed=0, dataset_root=folder)
model = SimpleMLP(num_classes=10)
strategy = Strategy(
    model=model,
    optimizer=torch.optim.Adam(model.parameters(), lr=0.001),
    criterion=torch.nn.CrossEntropyLoss(),
    train_mb_size=128,
    train_epochs=1,
    eval_mb_size=1000,
    evaluator=EvaluationPlugin(
        accuracy_metrics(experience=True, stream=True),
        forgetting_metrics(experience=True, stream=True),
        loggers=[InteractiveLogger()],
    ),
)

for experience in benchmark.train_stream:
    strategy.train(experience)
    results = strategy.eval(benchmark.test_stream)
