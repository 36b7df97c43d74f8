"""The meta-gradient of plain stacks by hand, compiled: `engine`. Absent where it has not been built: `library`."""

from ftml_bench.adaptation.native.engine import NativeEngine

__all__ = ["NativeEngine"]
