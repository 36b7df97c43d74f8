"""What the disk does to a run: it is full, the folder is gone. It is no fault of the cell's, which can go on later."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

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


@contextmanager
def storing(path: Path) -> Iterator[None]:
    """Inside, what the system refuses is a `StorageError` of that file or folder."""
    try:
        yield
    except StorageError:
        raise
    except OSError as error:
        raise StorageError(path, error.strerror or str(error)) from error
