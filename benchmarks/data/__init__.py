"""The data sets that streams are made of, one a module, and where they lie."""

from ftml_bench.benchmarks.data.root import data_root

__all__ = ["data_root"]
