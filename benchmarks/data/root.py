"""Where data sets lie."""

from __future__ import annotations

import os
from pathlib import Path

from ftml_bench.files import in_home


def data_root(root: str | os.PathLike[str] | None = None) -> Path:
    """The folder that data sets are in: `root`, else `FTML_BENCH_DATA`, else `ftml-bench` in the user's cache folder.

    The cache folder is `XDG_CACHE_HOME`, else `~/.cache`. A variable set to nothing counts as unset.

    :raises UsageError: it is in the user's home, and there is none.
    """
    given = root or os.environ.get("FTML_BENCH_DATA")
    if given:
        return in_home(given)
    return in_home(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "ftml-bench"
