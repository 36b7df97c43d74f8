"""The paper's Figure 3: FTML and its baselines over the rounds. About a minute on digits that come with the suite.

python examples/rainbow_mnist.py                 RainbowDigits, nothing to download
python examples/rainbow_mnist.py FOLDER          RainbowMNIST at 14x14, from the MNIST in FOLDER: about ten minutes
"""

import sys

import matplotlib.pyplot as plt
import torch

from ftml_bench import protocol
from ftml_bench.benchmarks import RainbowDigits, RainbowMNIST
from ftml_bench.metrics.curves import Threshold, datapoints_to_threshold
from ftml_bench.models import RainbowNet
from ftml_bench.strategies import FTML, FollowTheLeader, FromScratch, TrainOnEverything

benchmark = RainbowMNIST(image_size=14, root=sys.argv[1]) if len(sys.argv) > 1 else RainbowDigits()
arrivals = [10, 10, 30, 50, 100, 200, 500] if len(sys.argv) > 1 else benchmark.arrivals
learners = {  # a step is 100 images for each: FTML's 5 tasks of 10 + 10
    FTML: {"meta_batch_size": 5, "inner_lr": 0.1, "update_steps": 20},
    FollowTheLeader: {"train_mb_size": 100, "inner_lr": 0.1, "update_steps": 20},
    TrainOnEverything: {"train_mb_size": 100},
    FromScratch: {"train_mb_size": 100},
}
figure, panels = plt.subplots(1, 3, figsize=(11, 3.5), layout="constrained")

for learner, settings in learners.items():
    torch.manual_seed(0)  # all start from the same parameters
    model = RainbowNet(layers=4, filters=16, image_size=14)
    strategy = learner(
        model=model,
        optimizer=torch.optim.Adam(model.parameters(), lr=0.003),
        criterion=benchmark.criterion,
        steps=10,  # an arrival
        eval_mb_size=500,
        evaluator=None,
        **settings,
    )
    found = protocol.run(strategy, benchmark, arrivals=arrivals)
    rounds = [[e for e in found if e.round == t] for t in range(len(benchmark.train_stream))]
    needed = [
        datapoints_to_threshold([e.datapoints for e in r], [e.accuracy for e in r], Threshold("accuracy", 0.8))[0]
        for r in rounds
    ]
    at_100 = [next(1 - e.accuracy for e in r if e.datapoints >= 100 or e is r[-1]) for r in rounds]
    at_end = [1 - r[-1].accuracy for r in rounds]
    for panel, values in zip(panels, [needed, at_100, at_end], strict=True):
        panel.plot(range(1, len(rounds) + 1), values, label=learner.__name__)

titles = ["Datapoints to 80 % accuracy", "Error after 100 datapoints", "Error after all datapoints"]
for panel, title in zip(panels, titles, strict=True):
    panel.set(title=title, xlabel="round")
panels[0].legend()
figure.savefig("figure3.png", dpi=150)
print("figure3.png")
