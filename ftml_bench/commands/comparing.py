"""`ftml-bench compare`."""

from __future__ import annotations

import argparse


def compare(options: argparse.Namespace) -> int:
    from ftml_bench.report import comparing
    from ftml_bench.runs.packed import unpacked

    with unpacked(options.old) as old, unpacked(options.new) as new:
        found = comparing.tables(old, new)
    print("\n".join(table.text() for table in found), end="")
    return 0
