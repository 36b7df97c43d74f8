"""`ftml-bench check`."""

from __future__ import annotations

import argparse

from ftml_bench.commands.options import key_values


def check(options: argparse.Namespace) -> int:
    from ftml_bench import check

    outcomes = check.check(
        options.name,
        key_values("--set", options.set),
        benchmark=options.benchmark,
        benchmark_settings=key_values("--benchmark-set", options.benchmark_set),
    )
    broken = 0
    for outcome in outcomes:
        print(outcome, flush=True)
        broken += outcome.verdict == "broken"
    return 1 if broken else 0
