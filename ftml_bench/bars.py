"""tqdm's bars, for who watches them move and for who reads them in a log."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from tqdm import tqdm

SECONDS_IN_A_LOG = 10  # between two states of a bar where nobody watches it move
COLUMNS_IN_A_LOG = 100


def watched() -> bool:
    """Whether the error output is a terminal."""
    return sys.stderr.isatty()


def settings() -> dict[str, Any]:
    """How wide a bar is and how often it is shown."""
    if watched():
        return {"dynamic_ncols": True, "mininterval": 0.1}
    return {"ncols": COLUMNS_IN_A_LOG, "mininterval": SECONDS_IN_A_LOG}


class Lines(tqdm):
    """A bar for a file or a pipe: a line each time, instead of one that is overwritten."""

    @staticmethod
    def status_printer(file: Any) -> Callable[[str], None]:
        """How a state of the bar is printed."""
        return lambda text: print(text, file=file, flush=True) if text else None
