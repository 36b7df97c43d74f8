"""What the C library does with memory that was freed, and what tells a lack of it from other errors."""

from __future__ import annotations

import ctypes
import os
import platform

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # names of glibc's mallopt
_OF_ENVIRONMENT = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES")
_MOST, _MOST_OF_OLD_ONES = 2**30, 2**25  # a gigabyte; what every glibc takes
# PyTorch's of a CPU and of a GPU, on all systems, and cuBLAS's; it has a class for one of them alone.
_LACKS = ("out of memory", "allocate memory", "not enough memory", "ALLOC_FAILED")


def keep_freed_memory() -> None:
    """Let the process keep up to a gigabyte of freed memory for what comes next.

    Nothing is done without glibc, or where the environment says by glibc's own variables what it shall do.

    As it comes, glibc hands large tensors' memory back to the system when they are freed, after every training step,
    and every page of it is fetched anew in the next. Numbers do not change, and the peak of memory hardly.
    """
    if platform.libc_ver()[0] == "glibc" and not any(name in os.environ for name in _OF_ENVIRONMENT):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_TRIM_THRESHOLD, _MOST)
        if not mallopt(_MMAP_THRESHOLD, _MOST):  # tensors from here on are pages of their own
            mallopt(_MMAP_THRESHOLD, _MOST_OF_OLD_ONES)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether it says that there is no memory left, on the machine or on its GPU. PyTorch is not imported for that."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, RuntimeError) and any(lack in str(error) for lack in _LACKS)
