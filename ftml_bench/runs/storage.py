"""What disk and machine do to a run: no room, no memory, the folder is gone. It is no fault of the cell's, which can go
on later."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ftml_bench.memory import is_out_of_memory

# What a write of somebody else's (of TensorBoard's events, say) raises, too, when the disk is to blame.
_OF_DISKS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS, errno.ESTALE}


class StorageError(OSError):
    """A file of a run cannot be written, or is not what the run wrote."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(f"{path}: {reason}")
        self.reason = reason


def of_disk(error: BaseException, path: Path) -> StorageError | None:
    """The error as one of storage, if the disk is to blame for it; `path`: of what, if it does not say."""
    if isinstance(error, StorageError):
        return error
    if isinstance(error, OSError) and error.errno in _OF_DISKS:
        return StorageError(Path(error.filename or path), error.strerror or str(error))
    return None


def is_passing(error: BaseException | None) -> bool:
    """Whether it is no fault of the cell's, or comes of one that is none: memory was short, or the system has refused
    something. What the cell has saved is good then."""
    while error is not None:
        if isinstance(error, OSError) or is_out_of_memory(error):
            return True
        error = error.__cause__
    return False


@contextmanager
def storing(path: Path) -> Iterator[None]:
    """Inside, what the system refuses is a `StorageError` of that file or folder."""
    try:
        yield
    except StorageError:
        raise
    except OSError as error:
        raise StorageError(path, error.strerror or str(error)) from error
