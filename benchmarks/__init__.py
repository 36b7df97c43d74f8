"""Streams: Avalanche benchmarks of one task a round, and the cutting of a round into arrivals.

::

    benchmark = Sinusoids(seed=0)
    for round in benchmark.train_stream:
        for arrival in arrivals(round, benchmark.arrivals):
            strategy.train(arrival)
            strategy.eval(benchmark.test_stream[round.current_experience])

- :class:`RainbowMNIST`: MNIST under 56 colours, sizes and rotations (needs MNIST's files)
- :class:`RainbowDigits`: the same on scikit-learn's small digits (needs no files)
- :class:`FiveWayCIFAR100`: five-way tasks on CIFAR-100, one new class a round (needs its files, or strips of a part)
- :class:`ColoredMNIST`: MNIST under a background colour a round, the data class by class
- :class:`ColoredDigits`: the same on scikit-learn's small digits
- :class:`ObjectPose`: where an object stands on a table, regression of rendered images (needs no files)
- :class:`Sinusoids`: regression
- :class:`LinearRegression`: convex regression whose best solutions, and so the regret, are known exactly
- :class:`HiddenBoundaries`: the tasks of any of them in small windows, without a sign of where one ends

Each is an Avalanche benchmark with a `train_stream` and a `test_stream` (the same rounds' held-out data), a task label
a round, and its own defaults: `threshold`, `checkpoints`, `arrivals`, `criterion`, `inner_lr`, `update_steps` and
`model()`. :class:`~ftml_bench.benchmarks.stream.TaskStream` makes such a benchmark of any stacked tensors;
:func:`~ftml_bench.benchmarks.sheets.contact_sheet` draws one.
"""

from ftml_bench.benchmarks.arrivals import arrivals
from ftml_bench.benchmarks.colored_digits import ColoredDigits
from ftml_bench.benchmarks.colored_mnist import ColoredMNIST
from ftml_bench.benchmarks.five_way_cifar100 import FiveWayCIFAR100
from ftml_bench.benchmarks.hidden_boundaries import HiddenBoundaries
from ftml_bench.benchmarks.linear_regression import LinearRegression
from ftml_bench.benchmarks.object_pose import ObjectPose
from ftml_bench.benchmarks.rainbow_digits import RainbowDigits
from ftml_bench.benchmarks.rainbow_mnist import RainbowMNIST
from ftml_bench.benchmarks.sinusoids import Sinusoids

__all__ = [
    "ColoredDigits",
    "ColoredMNIST",
    "FiveWayCIFAR100",
    "HiddenBoundaries",
    "LinearRegression",
    "ObjectPose",
    "RainbowDigits",
    "RainbowMNIST",
    "Sinusoids",
    "arrivals",
]
