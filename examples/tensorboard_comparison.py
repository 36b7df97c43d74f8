"""Two learners on one stream, with the same tags in TensorBoard: `tensorboard --logdir runs/comparison`."""

import torch
from avalanche.logging import TensorboardLogger
from avalanche.training.plugins import EvaluationPlugin

from ftml_bench import protocol
from ftml_bench.benchmarks import Sinusoids
from ftml_bench.metrics import checkpoint_metrics, efficiency_metrics, learning_curve_metrics
from ftml_bench.strategies import FTML, FollowTheLeader

benchmark = Sinusoids(rounds=15)
learners = {
    "FTML": (FTML, {"meta_batch_size": 10}),
    "FTML, first order": (FTML, {"meta_batch_size": 10, "second_order": False}),
    "FollowTheLeader": (FollowTheLeader, {"train_mb_size": 200}),
}

for name, (learner, settings) in learners.items():
    torch.manual_seed(0)  # all start from the same parameters
    model = benchmark.model()
    strategy = learner(
        model=model,
        optimizer=torch.optim.Adam(model.parameters(), lr=0.003),
        criterion=benchmark.criterion,
        inner_lr=benchmark.inner_lr,
        update_steps=benchmark.update_steps,
        steps=20,
        eval_mb_size=100,
        evaluator=EvaluationPlugin(
            efficiency_metrics(threshold=benchmark.threshold),
            checkpoint_metrics(checkpoints=benchmark.checkpoints, metric="loss"),
            learning_curve_metrics(metric="loss"),
            loggers=[TensorboardLogger(f"runs/comparison/{name}")],  # a folder a learner: that is all
        ),
        **settings,
    )
    protocol.run(strategy, benchmark)
