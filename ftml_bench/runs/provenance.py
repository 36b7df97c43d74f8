"""How a record came about: versions, commit, machine, command and time; and the memory that it took."""

from __future__ import annotations

import os
import platform
import shlex
import subprocess
import sys
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ftml_bench import __version__
from ftml_bench.errors import encodable

_PACKAGES = ("torch", "avalanche-lib", "numpy")


def provenance() -> dict[str, Any]:
    """Versions, commit, machine, command and time: what every record says about how it came about."""
    return {
        "versions": {
            "python": platform.python_version(),
            "ftml-bench": __version__,
            **{package: version(package) for package in _PACKAGES},
        },
        "commit": _commit(),
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        "command": encodable(shlex.join([Path(sys.argv[0]).name, *map(_without_folders, sys.argv[1:])])),
        "started": now(),
    }


def _without_folders(argument: str) -> str:
    """An absolute path as its name alone: records go to others, to whom one's folders say nothing."""
    option, equals, value = argument.rpartition("=")
    return f"{option}{equals}{Path(value).name}" if Path(value).is_absolute() else argument


def now() -> str:
    """The time, UTC, to the second."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def peak_memory_mb() -> float | None:
    """The largest resident size of this process so far, in MB; None on Windows, which has no such module."""
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (1e6 if sys.platform == "darwin" else 1e3), 1)  # macOS counts bytes, Linux kB


def _commit() -> str | None:
    """The commit of the checkout that the package is run from, if it is one, with "+" if files differ from it."""
    folder = Path(__file__).resolve().parents[2]
    if not (folder / ".git").exists():
        return None
    try:
        commit = _git(folder, "rev-parse", "--short=12", "HEAD")
        return commit + ("+" if _git(folder, "status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.SubprocessError):
        return None


def _git(folder: Path, *arguments: str) -> str:
    command = ["git", "-C", str(folder), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
