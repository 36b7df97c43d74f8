"""Compute every scenario and compare it with the committed values; `--write` writes them anew.

tox -e audit                  exit status 1, and a table of what differs, if anything does
tox -e audit -- --write
"""

from __future__ import annotations

import argparse
import sys
import warnings
from dataclasses import astuple
from typing import Any

import torch

from ftml_bench.adaptation.native.library import built
from ftml_bench.benchmarks.data import data_root

from . import committed
from .outcome import Difference, compute
from .running import FORM
from .scenarios import missing, scenarios


def shown(differences: list[Difference]) -> str:
    """A table for people."""
    rows = [("where", "quantity", "expected", "found"), *(tuple(map(_cell, astuple(d))) for d in differences)]
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    return "\n".join("  ".join([*(c.ljust(w) for c, w in zip(row, widths, strict=False)), row[3]]) for row in rows)


def _cell(value: Any) -> str:
    return f"{value:.10g}" if isinstance(value, float) else str(value)


def main(arguments: list[str]) -> int:
    """The exit status."""
    parser = argparse.ArgumentParser(prog="audit", description="numbers and counted operations against values.json")
    parser.add_argument("--write", action="store_true", help="write values.json anew")
    write = parser.parse_args(arguments).write
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # of Avalanche and of what it imports
    if built(FORM) is None:
        print("audit: nothing computed, since the engine native, of which the counts are, has not been built here")
        return 0

    old, outcome = committed.read(), compute(scenarios())
    if write:
        changed = compute(scenarios(), committed.CHANGE)
        outcome.wrong += [difference for difference in changed.wrong if difference not in outcome.wrong]
        if not outcome.wrong:
            outcome.values = committed.decided(outcome.values, changed.values)
    new = committed.table(outcome.values)
    not_computed = outcome.left_out | {difference.where for difference in outcome.wrong}
    different = [*outcome.wrong, *committed.differences(old, new, not_computed)]
    problems = list(missing())
    if outcome.left_out:
        streams = ", ".join(sorted({name.split()[0] for name in outcome.left_out}))
        print(f"left out, since their data are not in {data_root()} (FTML_BENCH_DATA names the folder): {streams}")
    if versions := committed.other_versions(old, new):
        print(f"counts of operators and tensors left out: they were made with {versions}")
    if undecided := committed.undecided(new if write else old):
        print(f"left out, since rounding decides them: {sum(undecided.values())} numbers of {', '.join(undecided)}")
    for problem in problems:
        print(problem)
    if different:
        print(shown(different))
    print(
        f"audit: {len(outcome.values)} scenarios computed, {outcome.refused} refused as they should be, "
        f"{len(different) + len(problems)} differences"
    )
    if not write:
        return int(bool(different or problems))
    if outcome.wrong or problems:
        print(f"{committed.FILE.name}: nothing was written")
        return 1
    try:
        committed.write(committed.made_anew(old, new, outcome.left_out))
    except ValueError as error:
        print(f"{committed.FILE.name}: nothing was written: {error}")
        return 1
    print(f"{committed.FILE.name}: written; say in the commit why each of the above changed")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
