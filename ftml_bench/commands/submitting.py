"""`ftml-bench submit`."""

from __future__ import annotations

import argparse
from pathlib import Path

from ftml_bench.errors import UsageError


def submit(options: argparse.Namespace) -> int:
    from ftml_bench.commands.verifying import print_faults
    from ftml_bench.runs import locking
    from ftml_bench.runs.packed import pack
    from ftml_bench.runs.reading import read_definition

    if options.folder.is_dir():
        locking.refuse_in_use(options.folder)
    archive: Path = options.out or Path(f"{read_definition(options.folder).name}.zip")
    if archive.suffix.lower() != ".zip":
        raise UsageError(f"--out: expected a name that ends in .zip, got {archive}")
    if archive.exists():
        raise UsageError(f"{archive} exists: move it away or choose another --out")
    if print_faults(options.folder, options.folder):
        print("\nnothing was packed: mend this and run the cells again (ftml-bench leaderboard --redo CELL)")
        return 1
    pack(options.folder, archive)
    print(f"packed: {archive} ({archive.stat().st_size / 1e6:.1f} MB); how it joins the others: docs/submitting.md")
    return 0
