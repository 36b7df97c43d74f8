"""The whole protocol in one loop: FTML on sinusoids. Takes about half a minute."""

import torch
from avalanche.logging import TensorboardLogger
from avalanche.training.plugins import EvaluationPlugin

from ftml_bench.benchmarks import Sinusoids, arrivals
from ftml_bench.metrics import checkpoint_metrics, efficiency_metrics
from ftml_bench.protocol import held_out
from ftml_bench.strategies import FTML

torch.manual_seed(0)
benchmark = Sinusoids(seed=0, rounds=15)
model = benchmark.model()
strategy = FTML(
    model=model,
    optimizer=torch.optim.Adam(model.parameters(), lr=3e-3),
    criterion=benchmark.criterion,
    inner_lr=benchmark.inner_lr,
    update_steps=benchmark.update_steps,
    meta_batch_size=10,
    steps=20,  # meta-steps an arrival
    eval_mb_size=100,
    evaluator=EvaluationPlugin(
        efficiency_metrics(threshold=benchmark.threshold),
        checkpoint_metrics(checkpoints=benchmark.checkpoints, metric="loss"),
        loggers=[TensorboardLogger("runs/example-sinusoids")],
    ),
)

for round in benchmark.train_stream:
    for arrival in arrivals(round, 4):  # four new datapoints at a time
        strategy.train(arrival, eval_streams=[])
        metrics = strategy.eval([held_out(benchmark, round)])
    needed = metrics["Datapoints_To_Threshold/eval_phase/test_stream"]
    print(f"round {round.current_experience + 1:2}: {needed:2.0f} datapoints to a loss below {benchmark.threshold[1]}")
