"""What a disk refuses, as one error that names the file; and what has to be on it before a rename.

Owns which failures of the operating system are the disk's own: full, over quota, too large, broken, read-only. A path
that does not exist or may not be written is the user's to correct, and stays the exception it is. Imports nothing
heavy.
"""

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

DISK_ERRNOS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS})
"""No space left, quota exceeded, file too large, input/output error, read-only file system."""

_RUST_ERRNO = re.compile(r"os error (\d+)")


class DiskError(RuntimeError):
    """The disk did not take a file; what was there before is unchanged."""


@contextmanager
def writing(path: str | Path) -> Iterator[None]:
    """Turns a refusal of the disk, by Python or by safetensors, into a `DiskError`; any other exception passes.

    Args:
        path: What is being written, for the message.

    Raises:
        DiskError: naming `path` and the reason.
    """
    try:
        yield
    except (OSError, SafetensorError) as error:
        number = _errno_of(error)
        if number not in DISK_ERRNOS:
            raise
        reason = os.strerror(number).lower()
        raise DiskError(f"{path} could not be written ({reason}); make room on that disk") from error


def flush(path: Path) -> None:
    """Waits until a file's content, or a folder's entries, are on the disk and outlive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _errno_of(error: OSError | SafetensorError) -> int | None:
    if isinstance(error, OSError):
        return error.errno
    found = _RUST_ERRNO.search(str(error))
    return int(found[1]) if found else None
