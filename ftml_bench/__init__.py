"""Online meta-learning benchmarks for Avalanche: does a learner learn new tasks faster and faster?

Import from the subpackages (`ftml_bench.strategies`, `ftml_bench.benchmarks`, `ftml_bench.metrics`,
`ftml_bench.models`, `ftml_bench.adaptation`, `ftml_bench.protocol`). This module imports nothing heavy, so that the
command line answers at once.
"""

from ftml_bench import moved

__version__ = "0.1.0"

moved.find()
