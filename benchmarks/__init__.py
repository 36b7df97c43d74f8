"""Streams: Avalanche benchmarks of one task a round, and the cutting of a round into arrivals.

::

    benchmark = Sinusoids(seed=0)
    for round in benchmark.train_stream:
        for arrival in arrivals(round, benchmark.arrivals):
            strategy.train(arrival)
            strategy.eval(benchmark.test_stream[round.current_experience])

- :class:`RainbowMNIST`: MNIST under 56 colours, sizes and rotations (needs MNIST's files)
- :class:`RainbowDigits`: the same on scikit-learn's small digits (needs no files)
- :class:`ObjectPose`: where an object stands on a table, regression of rendered images (needs no files)
- :class:`Sinusoids`: regression

Each is an Avalanche benchmark with a `train_stream` and a `test_stream` (the same rounds' held-out data), a task label
a round, and its own defaults: `threshold`, `checkpoints`, `arrivals`, `criterion`, `inner_lr`, `update_steps` and
`model()`. :class:`~ftml_bench.benchmarks.stream.TaskStream` makes such a benchmark of any stacked tensors;
:func:`~ftml_bench.benchmarks.sheets.contact_sheet` draws one.
"""

from ftml_bench.benchmarks.arrivals import arrivals
from ftml_bench.benchmarks.object_pose import ObjectPose
from ftml_bench.benchmarks.rainbow_digits import RainbowDigits
from ftml_bench.benchmarks.rainbow_mnist import RainbowMNIST
from ftml_bench.benchmarks.sinusoids import Sinusoids

__all__ = ["ObjectPose", "RainbowDigits", "RainbowMNIST", "Sinusoids", "arrivals"]
