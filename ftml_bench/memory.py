"""What the C library does with memory that was freed."""

from __future__ import annotations

import ctypes
import platform

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # names of glibc's mallopt
_SMALLEST_LARGE = 2**25  # the most that every glibc takes


def keep_freed_memory() -> None:
    """Let the process keep up to a gigabyte of freed memory for what comes next; without glibc nothing is done.

    As it comes, glibc hands large tensors' memory back to the system when they are freed, after every training step,
    and every page of it is fetched anew in the next. Numbers do not change, and the peak of memory hardly.
    """
    if platform.libc_ver()[0] == "glibc":
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_TRIM_THRESHOLD, 2**30)
        mallopt(_MMAP_THRESHOLD, _SMALLEST_LARGE)
