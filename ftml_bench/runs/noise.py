"""What Avalanche warns of, and nobody who runs a command can mend. Never called by what a script imports."""

from __future__ import annotations

import warnings


def without_noise() -> None:
    """Has this process, a command or a worker of one, leave out the warnings that Avalanche's own code gives.

    They are of what the suite leaves out on purpose (loggers) and of what Avalanche calls old in itself.
    """
    warnings.filterwarnings("ignore", module="avalanche")
