"""The meta-gradient of plain stacks by hand, compiled: `engine`. Absent where it has not been built: `library`."""

from ftml_bench.adaptation.native.engine import NativeEngine, see_that_it_is_built

__all__ = ["NativeEngine", "see_that_it_is_built"]
